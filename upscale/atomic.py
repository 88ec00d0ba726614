"""Atomic file writes: a reader never sees a partial file."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

ABANDONED = 3600.0
"""Age in seconds after which a temporary file counts as left by a killed process."""
CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""Errors of file systems that cannot flush to disk."""


@contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it replaces `path` at the end, or is removed on an error.

    It is flushed to disk first, so a power cut leaves either the old file or the new one. Its name is hidden and unique; files left by
    killed processes are removed by a later call.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    _remove_abandoned(path.parent)
    aside = path.with_name(f".transformersr-{secrets.token_hex(8)}.part")
    try:
        aside.touch(exist_ok=False)
    except OSError as error:  # name the user's file, not the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error
    mode = aside.stat().st_mode  # the user's default; some writers make files private
    try:
        yield aside
        _bring_to_disk(aside)
        with suppress(OSError):  # some network and memory card file systems have no permissions
            aside.chmod(mode)
        os.replace(aside, path)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()


def _bring_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in CANNOT:  # a full disk may be reported here first
                raise


@lru_cache(maxsize=1024)  # once per process, since a folder may contain very many files
def _remove_abandoned(folder: Path) -> None:
    for left in folder.glob(".transformersr-*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
