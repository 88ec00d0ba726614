"""How good a run's weights are compared with what it began with, in plain words for the console, the report and the export.

Figures are those of `validate.Scores` by name, as a run writes them down: a mean over the images kept aside, None for what is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from ..data.check import LEAST_MEASURED

Figures = Mapping[str, Any]

LEAST_GAIN = 0.01
"""Gains in dB below this are none: they do not show in two digits."""
VISIBLE_GAIN = 0.05
"""Differences in dB below this are called the same."""
WORTHWHILE_STEPS = 200
"""Steps of fine-tuning after which 20 images of one style brought a gain, in three styles of three (docs/training.md)."""


@dataclass(frozen=True)
class Baseline:
    """What weights are compared with: those that the run began with or, where these were no better than bicubic, bicubic."""

    name: str
    figures: Figures

    def gain(self, figures: Figures, name: str = "psnr_y") -> float | None:
        """How far a figure is above the baseline's; None where one of them is unknown."""
        before, after = known(self.figures, name), known(figures, name)
        return None if before is None or after is None else after - before

    def is_beaten_by(self, figures: Figures) -> bool:
        """Whether weights of these figures are better at all."""
        return (self.gain(figures) or 0) >= LEAST_GAIN


def known(figures: Figures, name: str) -> float | None:
    """A figure, or None where there is no such number: what a run has written may be damaged."""
    value = figures.get(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def find_baseline(init: str, start: Figures, bicubic: Figures) -> Baseline:
    """The baseline of a run from the figures of its first step and of bicubic; either may be empty."""
    if init != "none" and (known(start, "psnr_y") or 0) > (known(bicubic, "psnr_y") or 0):
        return Baseline(weights_name(init), start)
    return Baseline("bicubic", bicubic)


def weights_name(init: str) -> str:
    """What to call weights: a file's name without ending or, for the weights of a run, the name of its folder."""
    path = PureWindowsPath(init) if "\\" in init else Path(init)
    return path.parent.name if path.stem in ("best", "last") and path.parent.name else path.name.removesuffix(".safetensors")


def summary(best: Figures, baseline: Baseline, bicubic: Figures, adversarial: bool = False) -> str:
    """How much better the best weights are, in a sentence."""
    gain = baseline.gain(best)
    if gain is None:
        return f"PSNR-Y {best['psnr_y']:.2f} dB"
    if adversarial:
        return f"{gain:+.2f} dB against {baseline.name}; in an adversarial run this falls, so go by the images"
    if not baseline.is_beaten_by(best):
        return f"not better than {baseline.name} on your images yet"
    if (of := known(best, "measured_on")) and of < LEAST_MEASURED:
        images = "the one image" if of == 1 else f"the {of} images"
        return f"{gain:.2f} dB better than {baseline.name} on {images} kept aside, too few to be sure of others; compare them by eye"
    better = known(best, "better_on")
    if of and better is not None and 2 * better <= of:
        on = f"only on {better:.0f} of {of:.0f} images kept aside"
        return f"{gain:.2f} dB better than {baseline.name} on average, but {on}; compare them by eye"
    text = f"better than {baseline.name} on your images by {gain:.2f} dB"
    text += f", on {better:.0f} of {of:.0f} kept aside" if of and better is not None else ""
    over = Baseline("bicubic", bicubic).gain(best)
    return text if over is None or baseline.name == "bicubic" else f"{text}; {over:.2f} dB over bicubic"


def steps_to_add(step: int) -> int:
    """How many more steps are worth a try where so many brought nothing."""
    return max(WORTHWHILE_STEPS - step, step, 50)


# --- an artist's questions -----------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A question about the images, its answer in a word or two, and the figures behind it."""

    question: str
    answer: str
    detail: str


def answers(best: Figures, baseline: Baseline) -> list[Answer]:
    """What can be said about weights of these figures, in the order in which it shows."""
    asked = [
        _closer("Closer to your originals?", "psnr_y", best, baseline),
        _closer("Lines drawn better?", "edge_psnr", best, baseline),
        _closer("Flat areas cleaner?", "flat_psnr", best, baseline),
        _sharper(best, baseline),
        _colors(best, baseline),
    ]
    return [answer for answer in asked if answer]


def _closer(question: str, name: str, best: Figures, baseline: Baseline) -> Answer | None:
    gain = baseline.gain(best, name)
    if gain is None:
        return None
    word = "Yes" if gain >= VISIBLE_GAIN else "No, worse" if gain <= -VISIBLE_GAIN else "About the same"
    return Answer(question, word, f"{gain:+.2f} dB against {baseline.name}")


def _sharper(best: Figures, baseline: Baseline) -> Answer | None:
    before, after = known(baseline.figures, "sharpness"), known(best, "sharpness")
    if before is None or after is None:
        return None
    word = "Yes" if after > before + 0.005 else "No, softer" if after < before - 0.005 else "About the same"
    return Answer("Sharper?", word, f"{after:.0%} of the sharpness of your originals; {baseline.name}: {before:.0%}")


def _colors(best: Figures, baseline: Baseline) -> Answer | None:
    before, after = known(baseline.figures, "color_shift"), known(best, "color_shift")
    if before is None or after is None:
        return None
    word = "Yes" if after <= max(before + 0.1, 0.5) else "No"
    return Answer("Colours kept?", word, f"{after:.2f} of 255 levels off; {baseline.name}: {before:.2f}")
