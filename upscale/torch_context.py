"""Isolate our computations from the caller's PyTorch settings."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch


@contextmanager
def plain_torch(inference: bool | None = None) -> Iterator[None]:
    """Use PyTorch's initial settings: no autocast, and float32 on the CPU by default. `inference` also sets the inference mode.

    Autocast would compute in half precision despite float32 weights, and the caller's default dtype or device would apply to new tensors.
    Can be used as a decorator.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            with suppress(RuntimeError, AttributeError):  # this PyTorch has no autocast for this type of device
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
    """Make forked processes compute in one thread. They do not inherit PyTorch's threads, and would wait for them forever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))
