"""Choose what the settings of a run leave open, with reasons."""

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
    """The kind of device that a run with these settings trains on: cpu, cuda or mps."""
    return "cpu" if config.device == "cpu" else find_device().type


def fill_in(config: TrainConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """Choose the settings that are left open; also return one line per choice with its reason.

    Raises ValueError for an adversarial run that would start from scratch without `gan_from_scratch`.
    """
    kind = device_kind(config)
    size = config.size if config.size != "auto" else "tiny" if kind == "cpu" else "base"
    usable = [f"x{config.scale}-{part}" for part in (size, *(("tiny",) if size == "base" else ()))]  # tiny is the first half of base
    init = config.init if config.init != "auto" else next((name for name in usable if name in available_models()), "none")
    if config.gan_weight and init == "none" and not config.gan_from_scratch:
        raise ValueError("gan_weight is set and there are no weights to start from; give a trained pixel model with init")
    rate_from_scratch = 2e-4 if size == "large" else 5e-4
    chosen: dict[str, tuple[object, str]] = {}
    if config.size == "auto":
        chosen["size"] = size, f"training on {kind}"
    if config.init == "auto":
        chosen["init"] = (
            init,
            "a shipped model; --init none starts from scratch" if init != "none" else f"there is no shipped {usable[0]}",
        )
    if not config.batch:
        chosen["batch"] = 4 if kind == "cpu" else 16, f"training on {kind}"
    if not config.learning_rate:
        chosen["learning_rate"] = (rate_from_scratch, "from scratch") if init == "none" else (3e-4, "from given weights")
    if not config.steps and not config.minutes:
        chosen["minutes" if kind == "cpu" else "steps"] = 60.0 if kind == "cpu" else 100_000, "no length was set; Ctrl-C saves and stops"
    filled = dataclasses.replace(config, **{name: value for name, (value, _) in chosen.items()})  # type: ignore[arg-type]
    return filled, tuple(f"{name}: {value} ({why})" for name, (value, why) in chosen.items())


def choose_precision(config: TrainConfig) -> str:
    """The precision that is set; for auto, bf16 on GPUs that support it and else fp32. Raises ValueError for fp16 without a GPU."""
    on_gpu = device_kind(config) == "cuda"
    if config.precision == "fp16" and not on_gpu:
        raise ValueError("precision is fp16, which only trains on a GPU; expected fp32 or bf16 here")
    if config.precision == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return config.precision


def choose_workers(config: TrainConfig, device: torch.device, processes: int) -> int:
    """Number of worker processes that prepare crops for each training process."""
    if config.workers >= 0:
        return config.workers
    return 0 if device.type == "cpu" else min(MAX_WORKERS, max(1, usable_cores() // processes - 1))


def choose_micro_batch(config: TrainConfig, forward: Callable[[Tensor], Tensor], device: torch.device, processes: int) -> tuple[int, str]:
    """Choose the micro-batch of each process from the memory per crop and the free memory; also return a line with the reason.

    Raises ValueError if the batch cannot be divided among the processes.
    """
    if config.batch % processes:
        raise ValueError(f"batch is {config.batch}; expected a multiple of the {processes} processes")
    batch = config.batch // processes
    if config.micro_batch:
        return min(config.micro_batch, batch), f"micro-batch: {min(config.micro_batch, batch)} (as set)"
    free = free_memory(device)
    if free is None:
        return batch, f"micro-batch: {batch} (the whole batch, as the free memory of {device.type} is unknown)"
    crop = torch.zeros(1, 3, config.patch, config.patch, device=device)
    per_crop = int(1.5 * saved_bytes(forward, crop))  # 1.5 to include gradients and temporary memory
    if config.gan_weight:
        per_crop *= 2  # the discriminator takes about as much at x4
    rounds = -(-batch // max(1, min(batch, free // per_crop)))
    micro_batch = -(-batch // rounds)
    return micro_batch, f"micro-batch: {micro_batch} of {batch} (about {per_crop / 2**20:.0f} MiB per crop, {free / 2**30:.1f} GiB free)"
