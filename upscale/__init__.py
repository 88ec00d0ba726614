"""Images in, images out: `upscaler` is the door, `engine` the work, `image_io` the files, `cli` the shell."""
