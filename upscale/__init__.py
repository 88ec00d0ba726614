"""Images in, images out.

`upscaler` is the entry point, `checkpoint` loads a network, `engine` runs it, `image_io` reads and writes files, and `batch` and `cli` are
the command line.
"""
