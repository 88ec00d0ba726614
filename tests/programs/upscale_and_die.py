"""The `upscale` command, of whose two processes the second is killed before it writes its second result."""

import os
import signal

from transformersr.upscale import batch
from transformersr.upscale.cli import main

write, written = batch.write_picture, []


def write_or_die(picture, path, **options):
    if os.environ["RANK"] == "1" and written:
        os.kill(os.getpid(), signal.SIGKILL)
    write(picture, path, **options)
    written.append(path)


batch.write_picture = write_or_die
main()
