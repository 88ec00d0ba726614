"""PyTorch's settings of the caller, kept away from what is computed here."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch


@contextmanager
def plain_torch(inference: bool | None = None) -> Iterator[None]:
    """PyTorch as it starts: no autocast, float32 and the CPU where nothing else is named; `inference` sets the inference mode too.

    Autocast would compute in half precision what was asked for in float32, and a default type or device of the caller's would be that of
    tables and weights. May be used as a decorator.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            with suppress(RuntimeError, AttributeError):  # a kind of device that this PyTorch has no autocast for
                if torch.is_autocast_enabled() if kind == "cuda" else _is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if inference is not None:
            stack.enter_context(torch.inference_mode(inference))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


def _is_autocast_enabled(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # before PyTorch 2.4
        return kind == "cpu" and torch.is_autocast_cpu_enabled()


@functools.cache
def survive_fork() -> None:
    """Let a process forked from this one compute in one thread: it has none of this one's, and PyTorch would wait for them for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))
