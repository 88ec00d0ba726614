"""The settings of a training run, as a dataclass and a TOML table."""

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
from ..arch.state_dict import shown
from .data.degradation import PRESETS

RECIPES = Path(__file__).parent / "configs"
RECIPE_BYTES = 2**23
"""Size limit of a recipe; one that names ten thousand files takes an eighth of it."""


def setting(
    default: Any, help_text: str, *, choices: tuple = (), minimum: float = -math.inf, above: float = -math.inf, maximum: float = math.inf
) -> Any:
    """A field of `TrainConfig`: its default, the help text of its option, and its allowed values.

    `choices` are the allowed values (for a list: of its items). Numbers must be finite, at least `minimum` or above `above`, and at most
    `maximum`; for counts, a number beyond `maximum` is a mistake that would use up all memory or fail elsewhere.
    """
    return field(default=default, metadata={"help": help_text, "choices": choices, "minimum": minimum, "above": above, "maximum": maximum})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; saved in its folder."""

    size: str = setting(
        "auto",
        "Network size: tiny, base or large; original is the original author's network. auto: base on a GPU, tiny on a CPU.",
        choices=("auto", *VARIANTS),
    )
    scale: int = setting(4, "Upscaling factor of the network: 1, 2, 3 or 4.", choices=(1, 2, 3, 4))
    init: str = setting(
        "auto",
        "Weights to start from: a file, or the name of a shipped model; from another scale, all layers but the last are used, and blocks "
        "that they lack start as the identity. none starts from scratch. auto uses the shipped model of this scale and size, if there is "
        "one; for base, otherwise tiny.",
    )

    preset: str = setting(
        "author",
        "How sharp images are degraded to inputs: author (only resizing), clean (light compression and blur), web, scan, video, sd.",
        choices=tuple(PRESETS),
    )
    validation: tuple[str, ...] = setting(
        (),
        'Files held out for validation, as patterns relative to the data folder ("part-1/sky/*"). Empty: 5 % of them, by content hash.',
    )
    exclude: tuple[str, ...] = setting((), "Files to ignore, as patterns relative to the data folder.")
    patch: int = setting(64, "Side of a training crop in small (input) pixels; smaller images are skipped.", minimum=8, maximum=2048)
    max_pixels: int = setting(
        0,
        "Downscale larger training images to about this many pixels, which makes soft scans sharp; 0 keeps their size.",
        minimum=0,
        maximum=2**40,
    )
    synthetic: int = setting(0, "Number of synthetic images to generate at the start and train on too.", minimum=0, maximum=10**6)
    synthetic_size: int = setting(768, "Side of a synthetic image in pixels.", minimum=1, maximum=2**13)
    synthetic_share: float = setting(0.3, "Share of the crops that come from synthetic images, if there are any.", minimum=0, maximum=1)
    memory_gb: float = setting(
        4.0, "GiB of images to keep in memory; if there are more, all go into a file in the run's folder.", minimum=0
    )
    zoom_out_prob: float = setting(
        0.0,
        "Probability that a crop is downscaled from an area up to twice as large: it shows finer lines and more of a figure.",
        minimum=0,
        maximum=1,
    )
    swatches: float = setting(
        0.0,
        "Share of the crops with rare colours and patterns: half are plain random colours, half have a fine tone on a part.",
        minimum=0,
        maximum=1,
    )
    sharpen: float = setting(
        0.0,
        "Strength of an unsharp mask on the target (1 is 100 %): lines crisper than in the originals, at the price of PSNR.",
        minimum=0,
        maximum=5,
    )
    keep_flat: float = setting(
        0.15,
        "Probability of keeping a crop without detail; otherwise another one is tried, up to four times.",
        minimum=0,
        maximum=1,
    )

    batch: int = setting(0, "Crops per step in all processes together. 0: 16 on a GPU, 4 on a CPU.", minimum=0, maximum=2**16)
    micro_batch: int = setting(
        0,
        "Crops per forward pass in each process; gradients are accumulated to `batch`. 0: as many as should fit into memory.",
        minimum=0,
        maximum=2**16,
    )
    steps: int = setting(
        0,
        "Length of the run in steps; ignored if `minutes` is set. 0 without `minutes`: 100,000 steps on a GPU, an hour on a CPU.",
        minimum=0,
        maximum=10**9,
    )
    minutes: float = setting(
        0.0,
        "Length of the run in minutes, including time before a resume; the schedule follows the clock. 0: use `steps`.",
        minimum=0,
    )
    optimizer: str = setting(
        "muon",
        "muon (Muon for linear layers and the filters of the body, AdamW for the rest) or adamw (AdamW for everything).",
        choices=("muon", "adamw"),
    )
    learning_rate: float = setting(
        0.0,
        "Peak learning rate, reached after the warm-up; it then falls along a cosine to 0. 0: 3e-4 from given weights, "
        "5e-4 from scratch, or 2e-4 for large networks from scratch.",
        minimum=0,
    )
    warmup_steps: int = setting(500, "Steps over which the learning rate rises from 0, at most a twentieth of the run.", minimum=1)
    equivariant: str = setting(
        "auto",
        "Keep the weights such that rotating or mirroring an image exactly rotates or mirrors the result; every crop then counts in all "
        "eight orientations. auto: on from scratch and from weights that are equivariant.",
        choices=("auto", "on", "off"),
    )
    phases: tuple[str, ...] = setting(
        (),
        'Constant learning rates, one after another, as "STEPS at RATE" ("450000 at 1e-4"); `steps` is then their sum.',
    )
    weight_decay: float = setting(
        1e-4,
        "Weight decay of matrices and convolutions; norms, biases, temperatures and position tables have none.",
        minimum=0,
    )
    clip_norm: float = setting(1.0, "Maximum gradient norm, over all parameters together.", above=0)
    ema_decay: float = setting(
        0.999,
        "Decay of the moving average of the weights, which is validated and saved.",
        minimum=0,
        maximum=1,
    )
    pixel_loss: str = setting(
        "l1",
        "l1, or log: logarithms of each crop's squared and absolute error, so that clean crops matter as much as difficult ones.",
        choices=("l1", "log"),
    )
    edge_start: float = setting(
        0.5,
        "Fraction of the run after which the pixel loss is weighted by edges.",
        minimum=0,
        maximum=1,
    )
    flat_weight: float = setting(
        0.4,
        "Weight of flat areas in the edge-weighted loss: 1 is no weighting, 0 the original's pure Sobel weighting.",
        minimum=0,
        maximum=1,
    )
    frequency_weight: float = setting(
        0.0,
        "Weight of the frequency loss: L1 between the Fourier transforms of result and target; above 0.01 it leaves a pattern on flats.",
        minimum=0,
    )
    filter_weight: float = setting(
        0.0,
        "Weight of the random-filter loss, which compares local patterns and does not need a weights file.",
        minimum=0,
    )
    color_weight: float = setting(
        0.0,
        "Weight of the colour loss, which preserves the mean colour of 8x8 squares and keeps an adversarial run from drifting.",
        minimum=0,
    )
    feature_weight: float = setting(0.0, "Weight of the feature loss (VGG19), which needs `feature_file`.", minimum=0)
    feature_file: str = setting(
        "",
        "State dict of torchvision's VGG19 (.pth or .safetensors) for the feature loss; nothing is downloaded.",
    )

    gan_weight: float = setting(
        0.0,
        "Weight of the adversarial loss at the end of its ramp; above 0, a discriminator is trained too.",
        minimum=0,
    )
    gan_start: int = setting(500, "Steps to train the discriminator before the adversarial loss is enabled.", minimum=0)
    gan_ramp: int = setting(2000, "Steps over which the adversarial loss then rises to its full weight.", minimum=1)
    gan_relativistic: bool = setting(False, "The discriminator judges which image of a pair is real, not whether one image is.")
    gan_r1: float = setting(
        0.0,
        "Weight of the R1 penalty on the discriminator's gradient at real crops, computed every 16 steps.",
        minimum=0,
    )
    gan_width: int = setting(32, "Channels of the discriminator's first layer.", minimum=1, maximum=512)
    gan_rate: float = setting(1e-4, "Learning rate of the discriminator.", above=0)
    gan_from_scratch: bool = setting(False, "Allow an adversarial run without `init`; from random weights it rarely works.")

    seed: int = setting(0, "Seed of all random choices.", minimum=0, maximum=2**63 - 1)
    workers: int = setting(
        -1,
        "Worker processes that prepare crops; 0 prepares them between steps. -1: 0 on a CPU, up to 8 per GPU.",
        minimum=-1,
        maximum=1024,
    )
    device: str = setting("auto", "auto, or cpu to train on the CPU even if there is a GPU.", choices=("auto", "cpu"))
    precision: str = setting(
        "auto",
        "fp32, or bf16 or fp16 for matrix products with the rest in float32; auto uses bf16 on GPUs that support it.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = setting(False, "Compile the network with torch.compile: takes a minute at the start, then steps are faster.")
    gradient_checkpointing: bool = setting(
        False,
        "Recompute each group of blocks in the backward pass: a third slower, with a fraction of the memory.",
    )
    trackers: tuple[str, ...] = setting(
        ("tensorboard",),
        "Trackers for the metrics, in addition to the run's own files: tensorboard, wandb. Trackers that are not installed are skipped.",
        choices=("tensorboard", "wandb", "none"),
    )
    threads: int = setting(0, "CPU threads for the network. 0: PyTorch's default.", minimum=0, maximum=1024)
    log_every: int = setting(50, "Steps between log lines.", minimum=1)
    save_every: int = setting(0, "Steps between checkpoints, each with a validation. 0: only by time.", minimum=0)
    save_minutes: float = setting(2.0, "Minutes between checkpoints, whatever the steps. 0: only by steps.", minimum=0)
    validation_crop: int = setting(
        512,
        "Side in sharp pixels of the centre crop of each validation image used during training; 0 uses whole images.",
        minimum=0,
        maximum=2**14,
    )

    def __post_init__(self) -> None:
        for setting_field in fields(self):
            check_value(setting_field, getattr(self, setting_field.name))
        if self.trackers == ("none",):
            object.__setattr__(self, "trackers", ())
        if "none" in self.trackers:
            raise ValueError(f"trackers is {', '.join(self.trackers)}; expected none on its own, or a list without it")
        multiple = self.network().multiple
        if self.patch % multiple:
            raise ValueError(f"patch is {self.patch}; expected a multiple of {multiple}, the window of this network")
        if self.gan_weight and self.init == "none" and not self.gan_from_scratch:
            raise ValueError(
                "gan_weight is set and init is none; start from a trained pixel model with init, or allow this with gan_from_scratch"
            )
        if bool(self.feature_weight) != bool(self.feature_file):
            missing = "feature_file" if self.feature_weight else "feature_weight"
            raise ValueError(f"{missing} is not set; expected both feature_weight and feature_file, or neither")
        if self.phases:
            if self.minutes:
                raise ValueError("phases and minutes are both set; expected only one of them, as phases are counted in steps")
            object.__setattr__(self, "steps", sum(count for count, _ in self.parsed_phases()))
        if self.validation_crop and self.validation_crop < 16 * self.scale:
            raise ValueError(f"validation_crop is {self.validation_crop}; expected 0 or at least {16 * self.scale}")

    def parsed_phases(self) -> list[tuple[int, float]]:
        """Parse `phases` as (steps, learning rate). Raises ValueError for an invalid one."""
        parsed = []
        for text in self.phases:
            try:
                count, _, rate = text.partition(" at ")
                parsed.append((int(count), float(rate)))
                if not (parsed[-1][0] > 0 and 0 <= parsed[-1][1] < math.inf):
                    raise ValueError("out of range")
            except ValueError as error:
                raise ValueError(f"phase {_format(text)}; expected STEPS at RATE, such as 450000 at 1e-4") from error
        return parsed

    def network(self) -> TransformerSRConfig:
        """Configuration of the network to train; base if its size is auto."""
        return dataclasses.replace(VARIANTS["base" if self.size == "auto" else self.size], scale=self.scale)


def check_value(field: Field, value: Any) -> None:
    """Raise ValueError if a setting's value is not one of its choices or is outside its limits."""
    choices, minimum, above, maximum = (field.metadata[name] for name in ("choices", "minimum", "above", "maximum"))
    given = value if isinstance(value, tuple) else (value,)
    if choices and not set(given) <= set(choices):
        some = "any" if given is value else "one"
        raise ValueError(f"{field.name} is {_format(value)}; expected {some} of {', '.join(map(str, choices))}")
    if not isinstance(value, (int, float)):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field.name} is {value}; expected a finite number")
    if not value >= minimum:
        raise ValueError(f"{field.name} is {_format(value)}; expected {minimum} or more")
    if not value > above:
        raise ValueError(f"{field.name} is {_format(value)}; expected a number above {above}")
    if not value <= maximum:
        raise ValueError(f"{field.name} is {_format(value)}; expected {maximum} or less")


def find_recipe(name_or_path: str | Path) -> Path:
    """Find a shipped recipe by name, or return a recipe's path. Raises FileNotFoundError that lists the shipped ones."""
    shipped = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    path = Path(name_or_path)
    path = path if path.is_file() else shipped.get(str(name_or_path), path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe; expected a file, or one of {', '.join(shipped)}")
    return path


def load_recipe(path: str | Path, **overrides: object) -> TrainConfig:
    """Read a TOML recipe (`find_recipe`) or the `config.json` of a run; keyword arguments override it.

    Raises ValueError that names the file for unknown settings and values of the wrong type.
    """
    path = find_recipe(path)
    if path.stat().st_size > RECIPE_BYTES:
        raise ValueError(f"{path}: too large for a recipe; expected a small TOML file")
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # imported here because only recipes need it
        import tomli as tomllib
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(values, dict):
            raise ValueError("expected settings by name")
        return from_values({**values, **overrides})
    except RecursionError as error:
        raise ValueError(f"{path}: brackets nested too deeply; expected settings by name") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text; expected a TOML recipe") from error
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def from_values(values: dict[str, object]) -> TrainConfig:
    """Build the configuration from plain values, as read from TOML or JSON."""
    hints = typing.get_type_hints(TrainConfig)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"unknown setting {', '.join(_format(name)[1:-1] for name in unknown[:5])}; known are {', '.join(hints)}")
    converted: dict[str, Any] = {name: _convert(name, value, hints[name]) for name, value in values.items()}
    return TrainConfig(**converted)


def _convert(name: str, value: object, hint: object) -> object:
    """Convert a value to the type of its setting. Raises ValueError if it has another type."""
    if isinstance(hint, types.GenericAlias) and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name} is {_format(value)}; expected {getattr(hint, '__name__', hint)}")
    return value


def _format(value: object) -> str:
    """Format a value or name from a file for a message: one short line."""
    try:
        return shown(repr(value))
    except (RecursionError, ValueError):  # deeply nested brackets, and numbers of more than 4300 digits
        return f"a {type(value).__name__}"


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings to share with others: paths are reduced to file names."""
    return {name: PureWindowsPath(value).name if name in ("init", "feature_file") and value else value for name, value in settings.items()}
