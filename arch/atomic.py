"""Writing files so that nobody ever finds half of one."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` at the end, or is removed on an error."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    aside = path.with_name(f".{os.getpid()}-{threading.get_ident():x}-{zlib.crc32(path.name.encode(errors='surrogateescape')):08x}.part")
    aside.touch()
    mode = aside.stat().st_mode  # what this user's files have; some writers leave them readable by their owner alone
    try:
        yield aside
        with suppress(OSError):  # some network and memory card file systems know no rights
            aside.chmod(mode)
        os.replace(aside, path)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()
