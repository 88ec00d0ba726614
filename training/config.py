"""What a training run is told: one dataclass, one TOML table."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from ..arch.model import VARIANTS, TransformerSRConfig
from .data.degradation import PRESETS

RECIPES = Path(__file__).parent / "configs"
RECIPE_BYTES = 2**23
"""The most of a recipe; one that names ten thousand files has an eighth of it."""
LIMITS = {"patch": 2048, "batch": 2**16, "micro_batch": 2**16, "drawings": 10**6, "drawings_size": 2**13, "gan_width": 512}
LIMITS |= {"threads": 1024, "workers": 1024, "validation_crop": 2**14, "seed": 2**63 - 1, "max_pixels": 2**40, "steps": 10**9}
"""Numbers above which a setting is a mistake that would cost all memory or break elsewhere."""
NOT_NEGATIVE: tuple[str, ...] = ("batch", "micro_batch", "steps", "minutes", "learning_rate", "weight_decay", "threads", "seed")
NOT_NEGATIVE += ("save_every", "save_minutes", "gan_start", "max_pixels", "drawings", "memory_gb")
CHOICES = {"precision": ("auto", "fp32", "bf16", "fp16"), "device": ("auto", "cpu"), "optimizer": ("muon", "adamw")}
WEIGHTS = ("filter_weight", "color_weight", "feature_weight", "gan_weight", "gan_r1")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; saved beside its weights."""

    size: str = "auto"
    """Network size: tiny, base or large; original is the first author's network. auto: base on a GPU, tiny on a CPU."""
    scale: int = 4
    """How many times larger the network makes a picture: 1, 2, 3 or 4."""
    init: str = "auto"
    """Weights to start from: a file, or the name of a model that comes with the package; of another scale all but the last layer is taken.
    none starts from nothing. auto takes the model of this scale and size that comes with the package, if there is one."""

    preset: str = "clean"
    """How small pictures are made from sharp ones; see `transformersr.training.data.degradation`."""
    validation: tuple[str, ...] = ()
    """Files kept for validation, as patterns relative to the data folder ("part-1/sky/*"). Empty: 5 % of them, by content hash."""
    exclude: tuple[str, ...] = ()
    """Files left out altogether, as patterns relative to the data folder."""
    patch: int = 0
    """Side of a training crop in small (input) pixels. 0: 48 on a GPU, 32 on a CPU."""
    max_pixels: int = 0
    """Reduce larger training pictures to about this many pixels, which makes soft scans sharp; 0 leaves them as they are."""
    drawings: int = 0
    """Synthetic drawings to train on beside the pictures, drawn at the start."""
    drawings_size: int = 768
    """Side of a drawing in pixels."""
    drawings_share: float = 0.3
    """Share of the crops that come from drawings, where there are any."""
    memory_gb: float = 4.0
    """GiB of pictures kept in memory; more of them are kept in a file in the folder of the run."""
    reduced: float = 0.0
    """Chance that a crop is a place up to twice as large, made smaller: finer lines and more of a figure in it than the pictures have."""
    keep_flat: float = 0.15
    """Chance that a crop without detail is used; otherwise another place is tried, up to four times."""

    batch: int = 0
    """Crops per step, over all processes. 0: 16 on a GPU, 8 on a CPU."""
    micro_batch: int = 0
    """Crops that go through the network at once in each process; gradients add up to `batch`. 0: as many as memory seems to hold."""
    steps: int = 0
    """Length of the run in steps; unused where `minutes` is set. 0, and no `minutes`: 100,000 steps on a GPU, an hour on a CPU."""
    minutes: float = 0.0
    """Length of the run in minutes; the schedule follows the clock, resumed time included. 0: use `steps`."""
    optimizer: str = "muon"
    """muon for the matrices of linear layers and adamw for the rest, or adamw for everything."""
    learning_rate: float = 0.0
    """Highest learning rate, reached after the warm-up; it then falls along a cosine to nothing. 0: 1e-4 from given weights, else 5e-4, or
    2e-4 for large networks."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises from nothing, a twentieth of the run at most."""
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
    flat_weight: float = 0.4
    """Weight of flat regions in the edge-weighted loss: 1 is plain L1, 0 the original's pure Sobel weighting."""
    filter_weight: float = 0.0
    """Weight of the random-filter loss, which compares local patterns and needs no weights file."""
    color_weight: float = 0.0
    """Weight of the colour loss, which holds the mean colour of 8x8 squares; it keeps an adversarial run from drifting."""
    feature_weight: float = 0.0
    """Weight of the feature loss (VGG19), which needs `feature_file`."""
    feature_file: str = ""
    """State dict of torchvision's VGG19 (.pth or .safetensors), for the feature loss; nothing is downloaded."""

    gan_weight: float = 0.0
    """Weight of the adversarial loss at the end of its ramp; above 0 a discriminator is trained beside the network."""
    gan_start: int = 500
    """Steps that the discriminator trains alone, before the network hears of it."""
    gan_ramp: int = 2000
    """Steps over which the adversarial loss then rises to its full weight."""
    gan_relativistic: bool = False
    """The discriminator tells which of a pair is real, rather than whether one picture is."""
    gan_r1: float = 0.0
    """Weight of the R1 penalty on the discriminator's gradient at real crops, worked out every 16 steps."""
    gan_width: int = 32
    """Channels of the discriminator's first layer."""
    gan_rate: float = 1e-4
    """Learning rate of the discriminator."""
    gan_from_nothing: bool = False
    """Allow an adversarial run without `init`; from random weights it rarely comes to anything."""

    seed: int = 0
    """Fixes every random choice."""
    workers: int = -1
    """Processes that prepare crops beside training; 0 prepares them in between. -1: none on a CPU, up to 8 for each GPU."""
    device: str = "auto"
    """auto, or cpu to leave a GPU alone."""
    precision: str = "auto"
    """fp32, or bf16 or fp16 for matrix products with everything else in float32; auto takes bf16 on cards that have it."""
    compile: bool = False
    """Compile the network with torch.compile: a minute at the start, faster steps after it."""
    channels_last: bool = False
    """Keep convolutions' weights in channels-last order."""
    checkpointing: bool = False
    """Work out each group of blocks again in the backward pass: a third slower, a fraction of the memory."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where figures go besides the run's own files: tensorboard, wandb. One that is not installed is left out."""
    threads: int = 0
    """CPU threads for the network; 0 leaves it to PyTorch."""
    log_every: int = 50
    """Steps between two log lines."""
    save_every: int = 0
    """Steps between two checkpoints, each validated; 0: by time alone."""
    save_minutes: float = 2.0
    """Minutes after which a checkpoint is due whatever the steps; 0: by steps alone."""
    validation_crop: int = 256
    """Side in sharp pixels of the centre of each validation picture used during training; 0 uses whole pictures."""

    def __post_init__(self) -> None:
        if self.size not in ("auto", *VARIANTS):
            raise ValueError(f"size is {_shown(self.size)}; expected auto or one of {', '.join(VARIANTS)}")
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {_shown(self.preset)}; expected one of {', '.join(PRESETS)}")
        multiple = self.network().multiple
        if self.patch < 0 or self.patch % multiple:
            raise ValueError(f"patch is {self.patch}; expected a multiple of {multiple}, the window of this network")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {_shown(getattr(self, name))}; expected one of {', '.join(known)}")
        if not set(self.trackers) <= {"tensorboard", "wandb"}:
            raise ValueError(f"trackers is {_shown(', '.join(self.trackers))}; expected tensorboard, wandb or neither")
        if self.gan_weight and self.init == "none" and not self.gan_from_nothing:
            raise ValueError(
                "gan_weight is set and init is none; start from a finished pixel model with init, or allow it by gan_from_nothing"
            )
        if bool(self.feature_weight) != bool(self.feature_file):
            raise ValueError("feature_weight and feature_file go together; one of them is not set")
        if self.phases:
            if self.minutes:
                raise ValueError("phases count steps and minutes do not; give one of them")
            object.__setattr__(self, "steps", sum(count for count, _ in self.parsed_phases()))
        if self.scale not in (1, 2, 3, 4):
            raise ValueError(f"scale is {self.scale}; expected 1, 2, 3 or 4")
        for name in ("log_every", "warmup_steps", "gan_ramp", "gan_width", "drawings_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in (*NOT_NEGATIVE, *WEIGHTS):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name, most in LIMITS.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {_shown(getattr(self, name))}; expected {most} or less")
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isinf(value):
                raise ValueError(f"{name} is {value}; expected a finite number")
        if self.workers < -1:
            raise ValueError(f"workers is {self.workers}; expected -1 or more")
        for name in ("clip_norm", "gan_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        if self.validation_crop and self.validation_crop < 16 * self.scale:
            raise ValueError(f"validation_crop is {self.validation_crop}; expected 0 or at least {16 * self.scale}")
        for name in ("keep_flat", "reduced", "drawings_share", "ema_decay", "edge_start", "flat_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")

    def parsed_phases(self) -> list[tuple[int, float]]:
        """`phases` as (steps, learning rate). Raises ValueError for one of another form."""
        parsed = []
        for text in self.phases:
            try:
                count, _, rate = text.partition(" at ")
                parsed.append((int(count), float(rate)))
                if not (parsed[-1][0] > 0 and 0 <= parsed[-1][1] < math.inf):
                    raise ValueError("of no use")
            except ValueError as error:
                raise ValueError(f"phase {_shown(text)}; expected STEPS at RATE, such as 450000 at 1e-4") from error
        return parsed

    def network(self) -> TransformerSRConfig:
        """Configuration of the network that this run trains, base where its size is left open."""
        return dataclasses.replace(VARIANTS["base" if self.size == "auto" else self.size], scale=self.scale)


def field_help() -> dict[str, str]:
    """What each setting does: the text under its field."""
    source = inspect.getsource(TrainConfig)
    return dict(re.findall(r'^    (\w+): [^\n]+\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL))


def find_recipe(name_or_path: str | Path) -> Path:
    """A recipe by the name of one that comes with the package, or the path itself. Raises FileNotFoundError listing the names."""
    own = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    path = Path(name_or_path)
    path = path if path.is_file() else own.get(str(name_or_path), path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe; expected a file, or one of {', '.join(own)}")
    return path


def load_recipe(path: str | Path, **overrides: object) -> TrainConfig:
    """Read a TOML recipe (`find_recipe`), or the `config.json` of a run; keyword arguments win over it.

    Unknown or ill-typed settings raise ValueError naming the file.
    """
    path = find_recipe(path)
    if path.stat().st_size > RECIPE_BYTES:
        raise ValueError(f"{path}: too large for a recipe, which is a small TOML file")
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # here, so that only recipes need it
        import tomli as tomllib
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(values, dict):
            raise ValueError("expected settings by name")
        return from_values({**values, **overrides})
    except RecursionError as error:
        raise ValueError(f"{path}: brackets in brackets without end; expected settings by name") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8; expected a TOML recipe") from error
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def from_values(values: dict[str, object]) -> TrainConfig:
    """Build the configuration from plain values, as TOML or JSON give them."""
    hints = typing.get_type_hints(TrainConfig)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"unknown setting {', '.join(_shown(name)[1:-1] for name in unknown[:5])}; known are {', '.join(hints)}")
    checked: dict[str, typing.Any] = {name: _checked(name, value, hints[name]) for name, value in values.items()}
    return TrainConfig(**checked)


def _checked(name: str, value: object, hint: object) -> object:
    if isinstance(hint, types.GenericAlias) and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name} is {_shown(value)}; expected {getattr(hint, '__name__', hint)}")
    return value


def _shown(value: object) -> str:
    """A value or name from a file, in a message: one line, and not long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # brackets in brackets, and numbers of more than 4300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."


def without_paths(settings: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Settings to show to others: of files of this machine only their names."""
    return {name: PureWindowsPath(value).name if name in ("init", "feature_file") and value else value for name, value in settings.items()}
