"""Free memory on a device and in a container, and recognising out-of-memory errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .planning import MemoryBudgetError

# --- free memory ---------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int | None:
    """Return the bytes to use on a device by default: four fifths of the free memory, or None if unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) * 4 // 5
    if device.type == "cpu":
        rooms = [room for room in (_available_memory(), room_in_container()) if room is not None]
        return min(rooms) * 4 // 5 if rooms else None
    return None


def _available_memory() -> int | None:
    with suppress(OSError):  # only Linux has this file
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        return int(available[1]) * 1024 if available else None
    return None


@functools.cache
def keep_freed_memory() -> None:
    """Make the C library reuse the memory that a layer frees for the next layer. Takes effect once per process that computes on the CPU.

    By default, glibc requests each large block from the system and returns it at once, and the system clears it page by page. When the
    first block of up to 32 MiB is freed, glibc raises the threshold to that size and keeps up to 64 MiB (mallopt(3), M_MMAP_THRESHOLD).
    Other C libraries are not affected.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)  # freed immediately


# --- containers ----------------------------------------------------------------------------------
# In a container, `/proc/meminfo` describes the whole machine. Linux documentation: admin-guide/cgroup-v2, admin-guide/cgroup-v1/memory.

VERSION_1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
"""Folder of the control groups, names of the files with limit and usage, and the field of usage that the kernel can reclaim."""


def room_in_container(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still allocate within the limits of its control groups; None without a limit."""
    return min(_rooms(root), default=None)


def _rooms(root: Path) -> Iterator[int]:
    for names, path in _memberships(root):
        folder, *files = names
        top = root / folder
        group = top / path.lstrip("/")
        for place in (group, *group.parents):  # inside a container only the upper ones may be there
            if place == top or top in place.parents:
                room = _room(place, *files)
                if room is not None:
                    yield room


def _memberships(root: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            yield VERSION_1 if controllers else VERSION_2, path


def _room(folder: Path, limit: str, use: str, droppable: str) -> int | None:
    try:
        texts = [(folder / name).read_text(encoding="ascii") for name in (limit, use, "memory.stat")]
    except OSError:
        return None
    if texts[0].strip() == "max":
        return None
    dropped = re.search(rf"^{droppable} (\d+)$", texts[2], re.MULTILINE)
    return max(0, int(texts[0]) - int(texts[1]) + (int(dropped[1]) if dropped else 0))


# --- out of memory -------------------------------------------------------------------------------

OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "not enough gpu video memory",
    "can't allocate memory",
    "alloc_failed",
    "could not create a primitive",  # oneDNN, which computes PyTorch's convolutions on CPUs
    "could not create a memory object",
    "storage size calculation overflowed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory. Some backends have no class for it and are recognised by their message."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)


@contextmanager
def explain_out_of_memory(count: int, height: int, width: int) -> Iterator[None]:
    """Turn an out-of-memory error for results of this size, which smaller bands would not prevent, into MemoryBudgetError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        results = f"a result of {width}x{height}" if count == 1 else f"{count} results of {width}x{height}"
        raise MemoryBudgetError(f"out of memory for {results}; free memory, or make it smaller or fewer at a time") from error
