"""Images in, images out.

`upscaler` is the entry point, `engine` runs the network, `image_io` reads and writes files (with `metadata` and `transparency`), and
`batch` and `cli` are the command line.
"""
