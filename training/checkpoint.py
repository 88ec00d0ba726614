"""The state of a run, so that it can be stopped and continued on the same curve."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arch import TransformerSR
from ..arch.atomic import write_aside
from .adversarial import UNetDiscriminator
from .config import TrainConfig
from .networks import initial_network
from .optimizers import make_optimizer


@dataclass
class Progress:
    """How far a run is: all that resuming needs besides weights and optimisers."""

    step: int = 0
    """Steps done. Every random draw follows from it and the seed, so no random state is kept."""
    seconds: float = 0.0
    """Time spent, validation included, earlier sittings included."""
    best_psnr: float = 0.0
    """Highest validation PSNR so far."""
    skipped: int = 0
    """Steps without effect, because their gradient was not finite."""
    skipped_in_a_row: int = 0
    """The last of them, if nothing good came between."""
    went_back: bool = False
    """Whether the run has returned to an earlier state; it goes on at half the learning rate, and does so once."""
    micro_batch: int = 0
    """Crops taken at once in each process, fewer after memory ran out; kept, so that a resumed run adds up as before. 0: not settled."""
    gan_steps: int = 0
    """Steps up the ramp of the adversarial loss."""
    strong_steps: int = 0
    """Steps for which the discriminator has been right nearly always."""


@dataclass
class RunState:
    """All that a run changes as it goes."""

    net: TransformerSR
    ema: TransformerSR
    """Moving average of the network's weights: what is validated and shipped."""
    optimizer: torch.optim.Optimizer
    net_d: UNetDiscriminator | None
    optimizer_d: torch.optim.Optimizer | None
    progress: Progress
    scaler: Any = None
    """Of gradients in fp16: anything with a state_dict, or None."""

    @classmethod
    def start(cls, config: TrainConfig, device: torch.device) -> RunState:
        """A run at its first step, the same for the same settings."""
        torch.manual_seed(config.seed)
        return cls._around(initial_network(config), config, device)

    @classmethod
    def resume(cls, config: TrainConfig, device: torch.device, path: Path) -> RunState:
        """A run as `save` left it; what it once started from need not be there any more. Raises ValueError as `load`."""
        run = cls._around(TransformerSR(config.network()), config, device)
        run.load(path)
        return run

    @classmethod
    def _around(cls, net: TransformerSR, config: TrainConfig, device: torch.device) -> RunState:
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        net = net.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        ema = copy.deepcopy(net).eval().requires_grad_(False)
        net_d = optimizer_d = None
        if config.gan_weight:
            net_d = UNetDiscriminator(config.gan_width).to(device, memory_format=layout).train()  # type: ignore[call-overload]
            optimizer_d = torch.optim.AdamW(net_d.parameters(), lr=config.gan_rate, betas=(0.9, 0.99), weight_decay=0.0)
        return cls(net, ema, make_optimizer(net, config), net_d, optimizer_d, Progress())

    def save(self, path: Path) -> None:
        """Write the state; the file appears whole or not at all. Raises OSError."""
        content = io.BytesIO()  # written by PyTorch itself, a full disk would be an error without a name
        torch.save({**{name: part.state_dict() for name, part in self._parts().items()}, "progress": vars(self.progress)}, content)
        with write_aside(path) as aside:
            aside.write_bytes(content.getbuffer())

    def load(self, path: Path) -> None:
        """Put a saved state back. Raises ValueError for a file that is damaged or of a run with other settings."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self._put(saved)
            self.progress = Progress(**saved["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path}: damaged, or of a run with other settings ({str(error).splitlines()[0]})") from error

    def go_back(self, path: Path) -> None:
        """Put weights and optimisers back as they were saved; the run goes on with new crops."""
        self._put(torch.load(path, map_location="cpu", weights_only=True))

    def _put(self, saved: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | Any]:
        names = ("net", "ema", "optimizer", "net_d", "optimizer_d", "scaler")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
