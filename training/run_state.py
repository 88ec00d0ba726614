"""The state of a run, so that it can be stopped and continued on the same curve."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arch import TransformerSR
from ..arch.atomic import write_aside
from ..arch.checkpoint import shown
from ..arch.pickled import RefusedError, read_pickled
from .adversarial import UNetDiscriminator
from .config import TrainConfig
from .networks import initial_network
from .optimizers import MuonAdamW, make_optimizer


@dataclass
class Progress:
    """How far a run is: all that resuming needs besides weights and optimisers."""

    step: int = 0
    """Steps done. Every random draw follows from it and the seed, so no random state is kept."""
    seconds: float = 0.0
    """Time spent, validation included, earlier sittings included."""
    best_psnr: float = 0.0
    """Highest validation PSNR so far."""
    best_step: int = 0
    """The step that had it; 0: what the run began with."""
    better_on: int = 0
    """Validation images on which those weights were better than what the run began with."""
    skipped: int = 0
    """Steps without effect, because their gradient was not finite."""
    skipped_in_a_row: int = 0
    """The last of them, if nothing good came between."""
    rolled_back: bool = False
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

    net_g: TransformerSR
    ema: TransformerSR
    """Moving average of the network's weights: what is validated and shipped."""
    optimizer: torch.optim.Optimizer
    net_d: UNetDiscriminator | None
    optimizer_d: torch.optim.Optimizer | None
    progress: Progress
    scaler: Any = None
    """Of gradients in fp16: anything with a state_dict, or None."""

    @classmethod
    def start(cls, config: TrainConfig, device: torch.device, scaler: Any = None) -> RunState:
        """A run at its first step, the same for the same settings."""
        torch.manual_seed(config.seed)
        return cls._around(initial_network(config), config, device, scaler)

    @classmethod
    def resume(cls, path: Path, config: TrainConfig, device: torch.device, scaler: Any = None) -> RunState:
        """A run as `save` left it; what it once started from need not be there any more. Raises ValueError as `load`."""
        run = cls._around(TransformerSR(config.network()), config, device, scaler)
        run.load(path)
        return run

    @classmethod
    def _around(cls, net_g: TransformerSR, config: TrainConfig, device: torch.device, scaler: Any) -> RunState:
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        net_g = net_g.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        ema = copy.deepcopy(net_g).eval().requires_grad_(False)
        net_d = optimizer_d = None
        if config.gan_weight:
            net_d = UNetDiscriminator(config.gan_width).to(device, memory_format=layout).train()  # type: ignore[call-overload]
            optimizer_d = torch.optim.AdamW(net_d.parameters(), lr=config.gan_rate, betas=(0.9, 0.99), weight_decay=0.0)
        return cls(net_g, ema, make_optimizer(net_g, config), net_d, optimizer_d, Progress(), scaler)

    def save(self, path: Path) -> None:
        """Write the state; the file appears whole or not at all. Raises OSError."""
        content = io.BytesIO()  # written by PyTorch itself, a full disk would be an error without a name
        parts = {name: _without_settings(part.state_dict()) for name, part in self._parts().items()}
        torch.save({**parts, "progress": vars(self.progress)}, content)
        with write_aside(path) as aside:
            aside.write_bytes(content.getbuffer())

    def load(self, path: Path) -> None:
        """Put a saved state back. Raises ValueError for a file that is damaged or of a run with other settings, and OSError."""
        with _refusing(path):
            saved = read_pickled(path)
            self._put(saved)
            self.progress = _checked(Progress(**saved["progress"]))

    def roll_back(self, path: Path) -> None:
        """Put weights and optimisers back as they were saved; the run goes on with new crops. Raises as `load`."""
        with _refusing(path):
            self._put(read_pickled(path))

    def _put(self, saved: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(_with_settings(saved[name], part) if isinstance(part, torch.optim.Optimizer) else saved[name])

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | Any]:
        names = ("net_g", "ema", "optimizer", "net_d", "optimizer_d", "scaler")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what a file that is none of ours leads to, here and in PyTorch, into one sentence."""
    try:
        yield
    except RefusedError as error:
        raise ValueError(f"{path}: it holds Python objects or code ({error}), which no run saves, and was not opened") from error
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0], 200)
        raise ValueError(
            f"{path}: damaged, or of a run with other settings ({reason}); give the settings it began with, or start a new run"
        ) from error


def _without_settings(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a network as it is, that of an optimiser without rates and the like: these are settings of the run, and may change."""
    if "parts" in state:
        return {"parts": [_without_settings(part) for part in state["parts"]]}
    return {"state": state["state"]} if "param_groups" in state else state


def _with_settings(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The way back. Raises ValueError for the state of other parameters."""
    if isinstance(optimizer, MuonAdamW):
        return {"parts": [_with_settings(one, part) for one, part in zip(saved["parts"], optimizer.parts, strict=True)]}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        if any(value.shape not in (torch.Size(), parameters[index].shape) for value in values.values()):
            raise ValueError(f"the optimiser's values for parameter {index} are of another shape")
    return {"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]}


def _checked(progress: Progress) -> Progress:
    """Raises ValueError for figures that no run has."""
    for name, start in vars(Progress()).items():
        value = getattr(progress, name)
        if type(value) is not type(start) or not 0 <= value < 2**63:
            raise ValueError(f"{name} is {value!r:.80}")
    return progress
