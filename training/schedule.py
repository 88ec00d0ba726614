"""The schedule of a run: its progress, the learning rate of a step, and when to save."""

from __future__ import annotations

import math

import torch

from .config import TrainConfig
from .run_state import Progress

MAX_WARMUP = 0.05
"""Fraction of a run after which its warm-up ends, however few steps that is."""


def is_checkpoint_due(config: TrainConfig, progress: Progress, saved: float) -> bool:
    """Whether to validate and save now, by steps or by the seconds since the last time at `saved`."""
    by_steps = config.save_every and progress.step % config.save_every == 0
    return bool(by_steps or (config.save_minutes and progress.seconds - saved >= 60 * config.save_minutes))


def fraction_done(config: TrainConfig, progress: Progress) -> float:
    """Fraction of the run that is done."""
    return progress.seconds / (60 * config.minutes) if config.minutes else progress.step / config.steps


def learning_rate(config: TrainConfig, step: int, done: float) -> float:
    """The rate of the phase that `step` is in; without phases, a linear warm-up and then a half cosine down to 0."""
    end = 0
    for count, rate in config.parsed_phases():
        end += count
        if step < end:
            return rate
    warmup = min(1.0, max((step + 1) / config.warmup_steps, done / MAX_WARMUP))
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
