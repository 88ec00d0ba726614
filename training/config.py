"""What a training run is told: one dataclass, one TOML table."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from dataclasses import Field, dataclass, field, fields
from pathlib import Path, PureWindowsPath
from typing import Any

from ..arch.model import VARIANTS, TransformerSRConfig
from .data.degradation import PRESETS

RECIPES = Path(__file__).parent / "configs"
RECIPE_BYTES = 2**23
"""The most of a recipe; one that names ten thousand files has an eighth of it."""


def setting(
    default: Any, help_text: str, *, choices: tuple = (), least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> Any:
    """A field of `TrainConfig`: its default, the help of its option, and the values that it takes.

    `choices` are all values there are (of a list: of its items); numbers are finite and lie between `least` or `above` and `most`, which
    for counts is where a number is a mistake that would cost all memory or break elsewhere.
    """
    return field(default=default, metadata={"help": help_text, "choices": choices, "least": least, "above": above, "most": most})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; saved beside its weights."""

    size: str = setting(
        "auto",
        "Network size: tiny, base or large; original is the first author's network. auto: base on a GPU, tiny on a CPU.",
        choices=("auto", *VARIANTS),
    )
    scale: int = setting(4, "How many times larger the network makes an image: 1, 2, 3 or 4.", choices=(1, 2, 3, 4))
    init: str = setting(
        "auto",
        "Weights to start from: a file, or the name of a model that comes with the package; of another scale all but the last layer "
        "is taken. none starts from scratch. auto takes the model of this scale and size that comes with the package, if there is "
        "one.",
    )

    preset: str = setting(
        "author",
        "How small images are made from sharp ones: author (resizing alone), clean (light compression and blur), web, scan, video, sd.",
        choices=tuple(PRESETS),
    )
    validation: tuple[str, ...] = setting(
        (),
        'Files kept for validation, as patterns relative to the data folder ("part-1/sky/*"). Empty: 5 % of them, by content hash.',
    )
    exclude: tuple[str, ...] = setting((), "Files left out altogether, as patterns relative to the data folder.")
    patch: int = setting(0, "Side of a training crop in small (input) pixels. 0: 48 on a GPU, 32 on a CPU.", least=0, most=2048)
    max_pixels: int = setting(
        0,
        "Reduce larger training images to about this many pixels, which makes soft scans sharp; 0 leaves them as they are.",
        least=0,
        most=2**40,
    )
    synthetic: int = setting(0, "Synthetic drawings to train on beside the images, drawn at the start.", least=0, most=10**6)
    synthetic_size: int = setting(768, "Side of a drawing in pixels.", least=1, most=2**13)
    synthetic_share: float = setting(0.3, "Share of the crops that come from drawings, where there are any.", least=0, most=1)
    memory_gb: float = setting(4.0, "GiB of images kept in memory; more of them are kept in a file in the folder of the run.", least=0)
    zoom_out_prob: float = setting(
        0.0,
        "Chance that a crop is a place up to twice as large, made smaller: finer lines and more of a figure in it than the images have.",
        least=0,
        most=1,
    )
    swatches: float = setting(
        0.0,
        "Share of the crops that are plain random colours, saturated ones among them; keeps colours exact that the images do not have.",
        least=0,
        most=1,
    )
    sharpen: float = setting(
        0.0,
        "Strength of an unsharp mask on what the network is to make (1 is 100 %): lines crisper than the truth's, at the price of PSNR.",
        least=0,
        most=5,
    )
    keep_flat: float = setting(
        0.15,
        "Chance that a crop without detail is used; otherwise another place is tried, up to four times.",
        least=0,
        most=1,
    )

    batch: int = setting(0, "Crops per step, over all processes. 0: 16 on a GPU, 8 on a CPU.", least=0, most=2**16)
    micro_batch: int = setting(
        0,
        "Crops that go through the network at once in each process; gradients add up to `batch`. 0: as many as memory seems to hold.",
        least=0,
        most=2**16,
    )
    steps: int = setting(
        0,
        "Length of the run in steps; unused where `minutes` is set. 0, and no `minutes`: 100,000 steps on a GPU, an hour on a CPU.",
        least=0,
        most=10**9,
    )
    minutes: float = setting(
        0.0,
        "Length of the run in minutes; the schedule follows the clock, resumed time included. 0: use `steps`.",
        least=0,
    )
    optimizer: str = setting(
        "muon",
        "muon for the matrices of linear layers and adamw for the rest, or adamw for everything.",
        choices=("muon", "adamw"),
    )
    learning_rate: float = setting(
        0.0,
        "Highest learning rate, reached after the warm-up; it then falls along a cosine to nothing. 0: 3e-4 from given weights, "
        "else 5e-4, or 2e-4 for large networks.",
        least=0,
    )
    warmup_steps: int = setting(500, "Steps over which the learning rate rises from scratch, a twentieth of the run at most.", least=1)
    phases: tuple[str, ...] = setting(
        (),
        'Constant learning rates in turn instead, as "STEPS at RATE" ("450000 at 1e-4"); `steps` is then their sum.',
    )
    weight_decay: float = setting(
        1e-4,
        "Weight decay of matrices and convolutions; norms, biases, temperatures and position tables have none.",
        least=0,
    )
    clip_norm: float = setting(1.0, "Longest gradient, over all parameters together.", above=0)
    ema_decay: float = setting(
        0.999,
        "Decay of the moving average of the weights, which is what is validated and shipped.",
        least=0,
        most=1,
    )
    edge_start: float = setting(
        0.5,
        "Share of the run after which the loss starts to favour edges; before, it is plain L1.",
        least=0,
        most=1,
    )
    flat_weight: float = setting(
        0.4,
        "Weight of flat regions in the edge-weighted loss: 1 is plain L1, 0 the original's pure Sobel weighting.",
        least=0,
        most=1,
    )
    frequency_weight: float = setting(
        0.0,
        "Weight of the frequency loss, L1 between the Fourier transforms of result and truth; light networks take 0.05.",
        least=0,
    )
    filter_weight: float = setting(
        0.0,
        "Weight of the random-filter loss, which compares local patterns and needs no weights file.",
        least=0,
    )
    color_weight: float = setting(
        0.0,
        "Weight of the colour loss, which holds the mean colour of 8x8 squares; it keeps an adversarial run from drifting.",
        least=0,
    )
    feature_weight: float = setting(0.0, "Weight of the feature loss (VGG19), which needs `feature_file`.", least=0)
    feature_file: str = setting(
        "",
        "State dict of torchvision's VGG19 (.pth or .safetensors), for the feature loss; nothing is downloaded.",
    )

    gan_weight: float = setting(
        0.0,
        "Weight of the adversarial loss at the end of its ramp; above 0 a discriminator is trained beside the network.",
        least=0,
    )
    gan_start: int = setting(500, "Steps that the discriminator trains alone, before the network hears of it.", least=0)
    gan_ramp: int = setting(2000, "Steps over which the adversarial loss then rises to its full weight.", least=1)
    gan_relativistic: bool = setting(False, "The discriminator tells which of a pair is real, rather than whether one image is.")
    gan_r1: float = setting(
        0.0,
        "Weight of the R1 penalty on the discriminator's gradient at real crops, computed every 16 steps.",
        least=0,
    )
    gan_width: int = setting(32, "Channels of the discriminator's first layer.", least=1, most=512)
    gan_rate: float = setting(1e-4, "Learning rate of the discriminator.", above=0)
    gan_from_scratch: bool = setting(False, "Allow an adversarial run without `init`; from random weights it rarely comes to anything.")

    seed: int = setting(0, "Fixes every random choice.", least=0, most=2**63 - 1)
    workers: int = setting(
        -1,
        "Processes that prepare crops beside training; 0 prepares them in between. -1: none on a CPU, up to 8 for each GPU.",
        least=-1,
        most=1024,
    )
    device: str = setting("auto", "auto, or cpu to leave a GPU alone.", choices=("auto", "cpu"))
    precision: str = setting(
        "auto",
        "fp32, or bf16 or fp16 for matrix products with everything else in float32; auto takes bf16 on cards that have it.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = setting(False, "Compile the network with torch.compile: a minute at the start, faster steps after it.")
    channels_last: bool = setting(False, "Keep convolutions' weights in channels-last order.")
    gradient_checkpointing: bool = setting(
        False,
        "Work out each group of blocks again in the backward pass: a third slower, a fraction of the memory.",
    )
    trackers: tuple[str, ...] = setting(
        ("tensorboard",),
        "Where figures go besides the run's own files: tensorboard, wandb. One that is not installed is left out.",
        choices=("tensorboard", "wandb", "none"),
    )
    threads: int = setting(0, "CPU threads for the network; 0 leaves it to PyTorch.", least=0, most=1024)
    log_every: int = setting(50, "Steps between two log lines.", least=1)
    save_every: int = setting(0, "Steps between two checkpoints, each validated; 0: by time alone.", least=0)
    save_minutes: float = setting(2.0, "Minutes after which a checkpoint is due whatever the steps; 0: by steps alone.", least=0)
    validation_crop: int = setting(
        256,
        "Side in sharp pixels of the centre of each validation image used during training; 0 uses whole images.",
        least=0,
        most=2**14,
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            check_value(one, getattr(self, one.name))
        if self.trackers == ("none",):
            object.__setattr__(self, "trackers", ())
        if "none" in self.trackers:
            raise ValueError(f"trackers is {', '.join(self.trackers)}; none stands alone")
        multiple = self.network().multiple
        if self.patch % multiple:
            raise ValueError(f"patch is {self.patch}; expected a multiple of {multiple}, the window of this network")
        if self.gan_weight and self.init == "none" and not self.gan_from_scratch:
            raise ValueError(
                "gan_weight is set and init is none; start from a finished pixel model with init, or allow it by gan_from_scratch"
            )
        if bool(self.feature_weight) != bool(self.feature_file):
            raise ValueError("feature_weight and feature_file go together; one of them is not set")
        if self.phases:
            if self.minutes:
                raise ValueError("phases count steps and minutes do not; give one of them")
            object.__setattr__(self, "steps", sum(count for count, _ in self.parsed_phases()))
        if self.validation_crop and self.validation_crop < 16 * self.scale:
            raise ValueError(f"validation_crop is {self.validation_crop}; expected 0 or at least {16 * self.scale}")

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


def check_value(one: Field, value: Any) -> None:
    """Raise ValueError where a setting's value is none of its choices, or outside its limits."""
    choices, least, above, most = (one.metadata[name] for name in ("choices", "least", "above", "most"))
    given = value if isinstance(value, tuple) else (value,)
    if choices and not set(given) <= set(choices):
        raise ValueError(f"{one.name} is {_shown(value)}; expected {'any' if given is value else 'one'} of {', '.join(map(str, choices))}")
    if not isinstance(value, (int, float)):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{one.name} is {value}; expected a finite number")
    if not value >= least:
        raise ValueError(f"{one.name} is {_shown(value)}; expected {least} or more")
    if not value > above:
        raise ValueError(f"{one.name} is {_shown(value)}; expected a number above {above}")
    if not value <= most:
        raise ValueError(f"{one.name} is {_shown(value)}; expected {most} or less")


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
    checked: dict[str, Any] = {name: _checked(name, value, hints[name]) for name, value in values.items()}
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


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings to show to others: of files of this machine only their names."""
    return {name: PureWindowsPath(value).name if name in ("init", "feature_file") and value else value for name, value in settings.items()}
