"""The state of a run, so that it can be stopped and continued on the same curve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..arch.atomic import write_aside


@dataclass
class Progress:
    """How far a run is: all that resuming needs besides weights and optimiser."""

    step: int = 0
    """Steps done. Every random draw follows from it and the seed, so no random state is kept."""
    seconds: float = 0.0
    """Time spent, validation included, earlier sittings included."""
    best_psnr: float = 0.0
    """Highest validation PSNR so far."""


def save_state(path: Path, net: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the run's state; the file appears whole or not at all."""
    state = {"net": net.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
    with write_aside(path) as aside:
        torch.save(state, aside)


def load_state(path: Path, net: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a saved state back."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict(state["net"])
    ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
