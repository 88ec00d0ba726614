"""The memory that a container leaves its processes. `/proc/meminfo` inside one speaks of the whole machine.

Linux's documentation: admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

VERSION_1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
"""Where control groups are, and the names of limit, use, and within the use of what is dropped when somebody needs the room."""


def room_in_container(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take within the limits of its control group and of those above it; None without a limit."""
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
