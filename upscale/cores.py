"""How a process of ours behaves on cores that it shares."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores() -> None:
    """Let threads that wait for each other on Linux give their core away soon; has an effect only before PyTorch is loaded.

    GNU OpenMP's threads otherwise spin for milliseconds at each of a network's many small operations. How much that costs depends on who
    else is there: beside a process of higher priority on two cores a training step took ten times as long as with this, beside an equal one
    hardly longer (`benchmarks/bench_threads.py` measures that). Who sets OpenMP's own variables is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
