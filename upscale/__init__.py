"""Images in, images out.

`upscaler` is the door, `engine` the work, `image_io` the files (with `metadata` and `transparency`), `batch` and `cli` the shell.
"""
