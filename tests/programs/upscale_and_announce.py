"""The command line; prints a line when the first image is about to be read."""

from transformersr.upscale import batch, cli

read = batch.read_image_from


def announce_and_read(*args):
    print("reading", flush=True)
    return read(*args)


batch.read_image_from = announce_and_read
cli.main()
