"""Settings for training runs of a few steps, and their saved state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transformersr.training import train as training

SETTINGS = {
    "size": "tiny",
    "init": "none",
    "learning_rate": 5e-4,
    "patch": 8,
    "batch": 2,
    "steps": 6,
    "save_every": 3,
    "log_every": 3,
    "warmup_steps": 2,
    "validation_crop": 64,
    "trackers": [],
    "workers": 0,
}
X2_SETTINGS = {**SETTINGS, "scale": 2, "steps": 4, "save_every": 1, "log_every": 1, "validation_crop": 32}


def read_state(run: Path) -> dict[str, Any]:
    return torch.load(run / "state.pt", weights_only=True)


def at_step(monkeypatch, actions: dict[int, Callable[[], object]]) -> None:
    """Call a function when a run reaches a step."""
    rate = training.learning_rate

    def act(config, step, done):
        actions.get(step, lambda: None)()
        return rate(config, step, done)

    monkeypatch.setattr(training, "learning_rate", act)
