"""What a run will use where its settings leave it open, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..upscale.cores import usable_cores
from ..upscale.memory import free_memory
from ..upscale.upscaler import available_models, find_device
from .config import TrainConfig
from .networks import saved_bytes

MAX_WORKERS = 8


def device_kind(config: TrainConfig) -> str:
    """cpu, cuda or mps: where a run with these settings trains."""
    return "cpu" if config.device == "cpu" else find_device().type


def fill_in(config: TrainConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """Settle what the settings leave open, and say why in a line each.

    Raises ValueError for an adversarial run that would start from scratch without being told to.
    """
    kind = device_kind(config)
    size = config.size if config.size != "auto" else "tiny" if kind == "cpu" else "base"
    shipped = f"x{config.scale}-{size}"
    init = config.init if config.init != "auto" else shipped if shipped in available_models() else "none"
    if config.gan_weight and init == "none" and not config.gan_from_scratch:
        raise ValueError("gan_weight is set and there are no weights to start from; give a finished pixel model with init")
    fresh_rate = 2e-4 if size == "large" else 5e-4
    chosen: dict[str, tuple[object, str]] = {}
    if config.size == "auto":
        chosen["size"] = size, f"training on {kind}"
    if config.init == "auto":
        chosen["init"] = (
            init,
            "comes with the package; --init none starts from scratch" if init != "none" else f"no {shipped} comes with it",
        )
    for name, on_cpu, on_card in (("patch", 32, 48), ("batch", 8, 16)):
        if not getattr(config, name):
            chosen[name] = on_cpu if kind == "cpu" else on_card, f"training on {kind}"
    if not config.learning_rate:
        chosen["learning_rate"] = (fresh_rate, "from scratch") if init == "none" else (3e-4, "from given weights")
    if not config.steps and not config.minutes:
        chosen["minutes" if kind == "cpu" else "steps"] = 60.0 if kind == "cpu" else 100_000, "no length was set; Ctrl-C ends it saved"
    filled = dataclasses.replace(config, **{name: value for name, (value, _) in chosen.items()})  # type: ignore[arg-type]
    return filled, tuple(f"{name}: {value} ({why})" for name, (value, why) in chosen.items())


def choose_precision(config: TrainConfig) -> str:
    """fp32, bf16 or fp16: what is set, or bf16 on a card that computes in it. Raises ValueError for fp16 without a card."""
    on_card = device_kind(config) == "cuda"
    if config.precision == "fp16" and not on_card:
        raise ValueError("precision is fp16, which trains on a GPU alone; expected fp32 or bf16 here")
    if config.precision == "auto":
        return "bf16" if on_card and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return config.precision


def choose_workers(config: TrainConfig, device: torch.device, processes: int) -> int:
    """Processes that prepare crops beside each process that trains."""
    if config.workers >= 0:
        return config.workers
    return 0 if device.type == "cpu" else min(MAX_WORKERS, max(1, usable_cores() // processes - 1))


def choose_micro_batch(config: TrainConfig, forward: Callable[[Tensor], Tensor], device: torch.device, processes: int) -> tuple[int, str]:
    """How many crops each process takes at once, from what one crop keeps in memory and what is free, and why.

    Raises ValueError where the batch cannot be shared out among the processes.
    """
    if config.batch % processes:
        raise ValueError(f"batch is {config.batch}; expected a multiple of the {processes} processes")
    batch = config.batch // processes
    if config.micro_batch:
        return min(config.micro_batch, batch), f"micro-batch: {min(config.micro_batch, batch)} (as set)"
    free = free_memory(device)
    if free is None:
        return batch, f"micro-batch: {batch} (the whole batch, as free memory cannot be told on {device.type})"
    crop = torch.zeros(1, 3, config.patch, config.patch, device=device)
    each = int(1.5 * saved_bytes(forward, crop))  # half as much again for gradients and what each operation needs
    if config.gan_weight:
        each *= 2  # about what the discriminator keeps at x4
    rounds = -(-batch // max(1, min(batch, free // each)))
    micro_batch = -(-batch // rounds)
    return micro_batch, f"micro-batch: {micro_batch} of {batch} (about {each / 2**20:.0f} MiB a crop, {free / 2**30:.1f} GiB free)"
