"""How our processes share CPU cores with others."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores() -> None:
    """Make waiting OpenMP threads give up their core early on Linux. Only has an effect before PyTorch is loaded.

    By default, GNU OpenMP threads spin for milliseconds at each of a network's many small operations. The cost depends on the other
    processes: next to one of higher priority on two cores, a training step took ten times as long as with this setting; next to one of
    equal priority it took hardly longer (measured with `benchmarks/bench_threads.py`). If the user sets OMP_WAIT_POLICY or
    GOMP_SPINCOUNT, nothing is changed.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
