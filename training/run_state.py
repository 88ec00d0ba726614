"""The state of a run, saved so that it can be resumed on the same curve."""

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
from ..arch.state_dict import shown
from ..upscale.atomic import write_aside
from ..upscale.pickled import RefusedError, read_pickled
from .adversarial import UNetDiscriminator
from .config import TrainConfig
from .equivariance import Symmetry, is_equivariant
from .networks import initial_network
from .optimizers import MuonAdamW, make_optimizer


@dataclass
class Progress:
    """The progress of a run: everything that resuming needs besides weights and optimisers."""

    step: int = 0
    """Steps done. All random choices depend only on the step and the seed, so no random state is saved."""
    seconds: float = 0.0
    """Time spent, including validation and earlier sessions."""
    best_psnr: float = 0.0
    """Highest validation PSNR so far."""
    best_step: int = 0
    """The step with that PSNR; 0: the initial weights."""
    better_on: int = 0
    """Validation images on which those weights beat the baseline."""
    skipped: int = 0
    """Steps skipped because their gradient was not finite."""
    skipped_in_a_row: int = 0
    """Consecutive skipped steps up to now."""
    rolled_back: bool = False
    """Whether the run has returned to an earlier state, which happens once; it continues at half the learning rate."""
    micro_batch: int = 0
    """Crops per forward pass in each process, halved when memory runs out. Saved so that a resumed run adds up as before. 0: not set."""
    gan_steps: int = 0
    """Steps taken on the ramp of the adversarial loss."""
    strong_steps: int = 0
    """Steps for which the discriminator has been nearly always right."""


@dataclass
class RunState:
    """Everything that changes during a run."""

    net_g: TransformerSR
    ema: TransformerSR
    """Moving average of the network's weights, which is validated and shipped."""
    optimizer: torch.optim.Optimizer
    net_d: UNetDiscriminator | None
    optimizer_d: torch.optim.Optimizer | None
    progress: Progress
    scaler: Any = None
    """Gradient scaler for fp16: anything with a state_dict, or None."""
    symmetry: Symmetry | None = None
    """Keeps the gradients equivariant, if the run does."""

    @classmethod
    def start(cls, config: TrainConfig, device: torch.device, scaler: Any = None) -> RunState:
        """Create a run at step 0; the same settings give the same state."""
        torch.manual_seed(config.seed)
        return cls._build(initial_network(config), config, device, scaler).keep_equivariant(config)

    @classmethod
    def resume(cls, path: Path, config: TrainConfig, device: torch.device, scaler: Any = None) -> RunState:
        """Restore a run that `save` wrote; the weights it started from may be gone. Raises as `load`."""
        run = cls._build(TransformerSR(config.network()), config, device, scaler)
        run.load(path)
        return run.keep_equivariant(config)

    @classmethod
    def _build(cls, net_g: TransformerSR, config: TrainConfig, device: torch.device, scaler: Any) -> RunState:
        net_g = net_g.to(device).train()
        ema = copy.deepcopy(net_g).eval().requires_grad_(False)
        net_d = optimizer_d = None
        if config.gan_weight:
            net_d = UNetDiscriminator(config.gan_width).to(device).train()
            optimizer_d = torch.optim.AdamW(net_d.parameters(), lr=config.gan_rate, betas=(0.9, 0.99), weight_decay=0.0)
        return cls(net_g, ema, make_optimizer(net_g, config), net_d, optimizer_d, Progress(), scaler)

    def keep_equivariant(self, config: TrainConfig) -> RunState:
        """Keep equivariant weights so, unless the run does not want to. Raises ValueError if it has to, and the weights are not."""
        holds = config.equivariant != "off" and is_equivariant(self.net_g)
        if config.equivariant == "on" and not holds:
            raise ValueError("equivariant is on, but the weights of the run are not; set it to off")
        self.symmetry = Symmetry(self.net_g) if holds else None
        return self

    def save(self, path: Path) -> None:
        """Write the state atomically. Raises OSError."""
        content = io.BytesIO()  # if PyTorch wrote the file, a full disk would raise an error without a clear cause
        parts = {name: _drop_param_groups(part.state_dict()) for name, part in self._parts().items()}
        torch.save({**parts, "progress": vars(self.progress)}, content)
        with write_aside(path) as aside:
            aside.write_bytes(content.getbuffer())

    def load(self, path: Path) -> None:
        """Load a saved state. Raises OSError, and ValueError for a damaged file or one of a run with other settings."""
        with _as_value_error(path):
            saved = read_pickled(path)
            self._restore(saved)
            self.progress = _validate(Progress(**saved["progress"]))

    def roll_back(self, path: Path) -> None:
        """Load the saved weights and optimisers but keep the progress, so the run continues with new crops. Raises as `load`."""
        with _as_value_error(path):
            self._restore(read_pickled(path))

    def _restore(self, saved: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(_add_param_groups(saved[name], part) if isinstance(part, torch.optim.Optimizer) else saved[name])

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | Any]:
        names = ("net_g", "ema", "optimizer", "net_d", "optimizer_d", "scaler")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@contextmanager
def _as_value_error(path: Path) -> Iterator[None]:
    """Turn the errors that foreign or damaged files cause, here and in PyTorch, into one clear ValueError."""
    try:
        yield
    except RefusedError as error:
        raise ValueError(f"{path}: not opened, because it holds Python objects or code ({error}), which no run saves") from error
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0], 200)
        raise ValueError(
            f"{path}: damaged, or of a run with other settings ({reason}); use the settings it was started with, or start a new run"
        ) from error


def _drop_param_groups(state: dict[str, Any]) -> dict[str, Any]:
    """Remove hyperparameters from an optimiser's state, as they are settings of the run and may change; other states are kept."""
    if "parts" in state:
        return {"parts": [_drop_param_groups(part) for part in state["parts"]]}
    return {"state": state["state"]} if "param_groups" in state else state


def _add_param_groups(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Undo `_drop_param_groups` with an optimiser's current hyperparameters. Raises ValueError for the state of other parameters."""
    if isinstance(optimizer, MuonAdamW):
        return {"parts": [_add_param_groups(state, part) for state, part in zip(saved["parts"], optimizer.parts, strict=True)]}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        if any(value.shape not in (torch.Size(), parameters[index].shape) for value in values.values()):
            raise ValueError(f"the optimiser's values for parameter {index} have another shape")
    return {"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]}


def _validate(progress: Progress) -> Progress:
    """Return the progress of a file if its values are possible. Raises ValueError otherwise."""
    for name, default in vars(Progress()).items():
        value = getattr(progress, name)
        if type(value) is not type(default) or not 0 <= value < 2**63:
            raise ValueError(f"{name} is {value!r:.80}")
    return progress
