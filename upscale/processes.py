"""Share the images of a run among several processes, each on its own device; `accelerate launch` or `torchrun` starts them.

The processes only exchange a few lists at the beginning and at the end, so they communicate through the CPU whatever the device. They wait
without a practical limit, because one of them may still have a large image to finish.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from .cores import usable_cores

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=30)
"""PyTorch's default of half an hour is too short: with a video, one process may finish hours after the others."""


class Processes:
    """The interface, and its implementation for a single process."""

    index, count = 0, 1

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process and return its result in all of them.

        If it fails, the error is raised in the first process and the others exit silently.
        """
        return make()

    def share(self, items: list[T]) -> list[T]:
        """Return this process's part of the items, which must be the same list in every process."""
        return items[self.index :: self.count]

    def gather(self, items: list[T]) -> list[T]:
        """Return the items of all processes, in every process. Raises ValueError if one of them has ended."""
        return items

    def device(self, name: str) -> str:
        """Return this process's device: if there are several of the requested kind, the one with the process's local number."""
        return name


class SharingProcesses(Processes):
    """One of several processes, as described by accelerate's process state."""

    def __init__(self) -> None:
        try:
            from accelerate import PartialState, utils
        except ImportError as error:
            raise ValueError(
                "several processes were started, and sharing images among them needs accelerate; "
                'install it with `pip install accelerate` (or "transformersr[train]"), or start one process'
            ) from error
        check_cpu_processes()
        _share_threads()
        self._state: Any = PartialState(cpu=True, backend="gloo", timeout=LONGEST_WAIT)
        self._utils: Any = utils
        self.index, self.count = self._state.process_index, self._state.num_processes

    def from_first(self, make: Callable[[], T]) -> T:
        result: list[T | None] = [None]
        try:
            if self.index == 0:
                result = [make()]
        finally:
            self._utils.broadcast_object_list(result)
        if result[0] is None:
            raise SystemExit(1)
        return result[0]

    def gather(self, items: list[T]) -> list[T]:
        try:
            return self._utils.gather_object(items)
        except RuntimeError as error:
            raise ValueError("another process ended before its share was done; run again with --resume") from error

    def device(self, name: str) -> str:
        import torch

        kind = "cuda" if name == "auto" and torch.cuda.is_available() else name
        if kind not in ("cuda", "xpu"):
            return kind
        return f"{kind}:{self._state.local_process_index % max(1, getattr(torch, kind).device_count())}"


def find_processes() -> Processes:
    """Describe the processes that a launcher started. Without a launcher, accelerate is not imported."""
    return SharingProcesses() if _launched_several() else Processes()


def check_cpu_processes() -> None:
    """Raise ValueError if a launcher started several processes and this PyTorch cannot connect them through the CPU."""
    import torch

    if _launched_several() and not hasattr(torch.cpu, "set_device"):  # accelerate calls it
        raise ValueError(f"several CPU processes need a PyTorch newer than 2.1, but this is {torch.__version__}; start one process")


def _launched_several() -> bool:
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def _share_threads() -> None:
    """Divide the CPU cores among the processes of this machine; launchers give each process a single thread."""
    import psutil  # a dependency of accelerate
    import torch

    if os.environ.get("OMP_NUM_THREADS", "1") != "1":  # set by the user
        return
    cores = min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores())
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # otherwise accelerate would set its own number and log it
    torch.set_num_threads(threads)
