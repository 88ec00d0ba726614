"""The command line as one of two processes; the second dies of SIGKILL before it reads its second image."""

import os
import signal

from transformersr.upscale import batch
from transformersr.upscale.cli import main

read, started = batch.read_image_from, []


def read_or_die(*args, **options):
    if os.environ["RANK"] == "1" and started:
        os.kill(os.getpid(), signal.SIGKILL)
    started.append(args)
    return read(*args, **options)


batch.read_image_from = read_or_die
main()
