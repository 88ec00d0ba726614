"""What a training run is told: one dataclass, one TOML table."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from ..arch.model import VARIANTS, TransformerSRConfig
from .degradation import PRESETS


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; saved beside its weights."""

    size: str = "base"
    """Network size: tiny, base or large; original is the first author's network."""
    scale: int = 4
    """How many times larger the network makes a picture: 1, 2, 3 or 4."""
    init: str = ""
    """Weights to start from (a file); empty starts from nothing."""

    preset: str = "clean"
    """How small pictures are made from sharp ones; see `transformersr.training.degradation`."""
    validation: tuple[str, ...] = ()
    """Files kept for validation, as patterns relative to the data folder ("part-1/sky/*"). Empty: 5 % of them, by content hash."""
    exclude: tuple[str, ...] = ()
    """Files left out altogether, as patterns relative to the data folder."""
    patch: int = 48
    """Side of a training crop in small (input) pixels."""
    keep_flat: float = 0.15
    """Chance that a crop without detail is used; otherwise another place is tried, up to four times."""

    batch: int = 16
    """Crops per step."""
    steps: int = 100_000
    """Length of the run in steps; unused where `minutes` is set."""
    minutes: float = 0.0
    """Length of the run in minutes; the schedule follows the clock, resumed time included. 0: use `steps`."""
    learning_rate: float = 5e-4
    """Highest learning rate, reached after the warm-up; it then falls along a cosine to nothing."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises from nothing."""
    phases: tuple[str, ...] = ()
    """Constant learning rates in turn instead, as "STEPS at RATE" ("450000 at 1e-4"); `steps` is then their sum."""
    weight_decay: float = 1e-4
    """Weight decay of matrices and convolutions; norms, biases, temperatures and position tables have none."""
    clip_norm: float = 1.0
    """Longest gradient, over all parameters together."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and shipped."""
    edge_start: float = 0.5
    """Share of the run after which the loss starts to favour edges; before, it is plain L1."""
    flat_weight: float = 0.25
    """Weight of flat regions in the edge-weighted loss: 1 is plain L1, 0 the original's pure Sobel weighting."""

    seed: int = 0
    """Fixes every random choice."""
    workers: int = 0
    """Processes that prepare crops beside training; 0 prepares them in between."""
    precision: str = "auto"
    """fp32, or bf16 for matrix products with everything else in float32; auto takes bf16 on cards that have it."""
    compile: bool = False
    """Compile the network with torch.compile: a minute at the start, faster steps after it."""
    threads: int = 0
    """CPU threads for the network; 0 leaves it to PyTorch."""
    log_every: int = 50
    """Steps between two log lines."""
    save_every: int = 500
    """Steps between two checkpoints, each validated."""
    validation_crop: int = 256
    """Side in sharp pixels of the centre of each validation picture used during training; 0 uses whole pictures."""

    def __post_init__(self) -> None:
        if self.size not in VARIANTS:
            raise ValueError(f"size is {self.size!r}; expected one of {', '.join(VARIANTS)}")
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; expected one of {', '.join(PRESETS)}")
        multiple = self.network().multiple
        if self.patch < multiple or self.patch % multiple:
            raise ValueError(f"patch is {self.patch}; expected a multiple of {multiple}, the window of this network")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; expected auto, fp32 or bf16")
        if self.phases:
            if self.minutes:
                raise ValueError("phases count steps and minutes do not; give one of them")
            object.__setattr__(self, "steps", sum(count for count, _ in self.parsed_phases()))
        if self.scale not in (1, 2, 3, 4):
            raise ValueError(f"scale is {self.scale}; expected 1, 2, 3 or 4")
        for name in ("batch", "steps", "log_every", "save_every", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("minutes", "weight_decay", "workers", "threads", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        if self.validation_crop and self.validation_crop < 16 * self.scale:
            raise ValueError(f"validation_crop is {self.validation_crop}; expected 0 or at least {16 * self.scale}")
        for name in ("keep_flat", "ema_decay", "edge_start", "flat_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")

    def parsed_phases(self) -> list[tuple[int, float]]:
        """`phases` as (steps, learning rate). Raises ValueError for one of another form."""
        parsed = []
        for text in self.phases:
            try:
                count, _, rate = text.partition(" at ")
                parsed.append((int(count), float(rate)))
            except ValueError as error:
                raise ValueError(f"phase {text!r}; expected STEPS at RATE, such as 450000 at 1e-4") from error
        return parsed

    def network(self) -> TransformerSRConfig:
        """Configuration of the network that this run trains."""
        return dataclasses.replace(VARIANTS[self.size], scale=self.scale)


def field_help() -> dict[str, str]:
    """What each setting does: the text under its field."""
    source = inspect.getsource(TrainConfig)
    return dict(re.findall(r'^    (\w+): [^\n]+\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL))


def load_recipe(path: str | Path, **overrides: object) -> TrainConfig:
    """Read a TOML recipe, or the `config.json` of a run; keyword arguments win over it.

    Unknown or ill-typed settings raise ValueError naming the file.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # here, so that only recipes need it
        import tomli as tomllib
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
        return from_values({**values, **overrides})
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def from_values(values: dict[str, object]) -> TrainConfig:
    """Build the configuration from plain values, as TOML or JSON give them."""
    hints = typing.get_type_hints(TrainConfig)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"unknown setting {', '.join(unknown)}; known are {', '.join(hints)}")
    checked: dict[str, typing.Any] = {name: _checked(name, value, hints[name]) for name, value in values.items()}
    return TrainConfig(**checked)


def _checked(name: str, value: object, hint: object) -> object:
    if isinstance(hint, types.GenericAlias) and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name} is {value!r}; expected {getattr(hint, '__name__', hint)}")
    return value
