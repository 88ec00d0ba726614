"""Several processes that share the images of a run, each on a device of its own: `accelerate launch` or `torchrun` starts them.

What they say to each other are a few lists, at the beginning and at the end, so they talk through the CPU on every kind of device, and wait
as long as it takes: one of them may have a large image to finish.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from .cores import usable_cores

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=30)
"""PyTorch's own half an hour is less than a video's frames may take one process longer than another."""


class Processes:
    """One process on its own, which shares with nobody."""

    index, count = 0, 1

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all. Where it cannot, its error travels on and the others leave without a word."""
        return make()

    def share(self, items: list[T]) -> list[T]:
        """Those of the items, the same list in every process, that are this process's."""
        return items[self.index :: self.count]

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in every process. Raises ValueError if one of them has ended."""
        return items

    def device(self, name: str) -> str:
        """The device for this process: where there are several of the kind asked for, the one of its number."""
        return name


class SharingProcesses(Processes):
    """One of several, as accelerate's process state knows them."""

    def __init__(self) -> None:
        try:
            from accelerate import PartialState, utils
        except ImportError as error:
            raise ValueError(
                "several processes were started, and accelerate is needed to share images among them; "
                'install it with `pip install accelerate` (or "transformersr[train]"), or start one process'
            ) from error
        check_cpu_processes()
        _share_threads()
        self._state: Any = PartialState(cpu=True, backend="gloo", timeout=LONGEST_WAIT)
        self._utils: Any = utils
        self.index, self.count = self._state.process_index, self._state.num_processes

    def from_first(self, make: Callable[[], T]) -> T:
        made: list[T | None] = [None]
        try:
            if self.index == 0:
                made = [make()]
        finally:
            self._utils.broadcast_object_list(made)
        if made[0] is None:
            raise SystemExit(1)
        return made[0]

    def gather(self, items: list[T]) -> list[T]:
        try:
            return self._utils.gather_object(items)
        except RuntimeError as error:
            raise ValueError("another process ended before its share was done; start again with --resume") from error

    def device(self, name: str) -> str:
        import torch

        kind = "cuda" if name == "auto" and torch.cuda.is_available() else name
        if kind not in ("cuda", "xpu"):
            return kind
        return f"{kind}:{self._state.local_process_index % max(1, getattr(torch, kind).device_count())}"


def find_processes() -> Processes:
    """This process among those that a launcher started with it. Without one nothing is imported or asked."""
    return SharingProcesses() if _several_were_started() else Processes()


def check_cpu_processes() -> None:
    """Raise ValueError where a launcher started several processes and PyTorch cannot have them talk through their CPUs."""
    import torch

    if _several_were_started() and not hasattr(torch.cpu, "set_device"):  # accelerate calls it
        raise ValueError(f"several processes on CPUs need a PyTorch after 2.1, and this is {torch.__version__}; start one process")


def _several_were_started() -> bool:
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def _share_threads() -> None:
    """Divide the processor among the processes of this machine; launchers leave all but one thread of each idle."""
    import psutil  # accelerate's
    import torch

    if os.environ.get("OMP_NUM_THREADS", "1") != "1":  # chosen by hand
        return
    cores = min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores())
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # or accelerate would set and announce a number of its own
    torch.set_num_threads(threads)
