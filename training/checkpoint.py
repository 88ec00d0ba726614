"""The state of a run, so that it can be stopped and continued on the same curve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..arch import TransformerSR
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


@dataclass
class RunState:
    """All that a run changes as it goes."""

    net: TransformerSR
    ema: TransformerSR
    """Moving average of the network's weights: what is validated and shipped."""
    optimizer: torch.optim.Optimizer
    progress: Progress

    def save(self, path: Path) -> None:
        """Write the state; the file appears whole or not at all."""
        parts = {name: getattr(self, name).state_dict() for name in ("net", "ema", "optimizer")}
        with write_aside(path) as aside:
            torch.save({**parts, "progress": vars(self.progress)}, aside)

    def load(self, path: Path) -> None:
        """Put a saved state back."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("net", "ema", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.progress = Progress(**saved["progress"])
