"""Compare a run's weights with a baseline, in plain words for the console, the report and the export.

Metrics are those of `validate.Scores` by name, as a run logs them: means over the validation images, None for unknown values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from ..data.check import MIN_VALIDATION_IMAGES

Metrics = Mapping[str, Any]

MIN_GAIN = 0.01
"""Smallest gain in dB that counts as better; less does not show in two decimals."""
VISIBLE_GAIN = 0.05
"""Smaller differences in dB are reported as about the same."""
WORTHWHILE_STEPS = 200
"""Steps of fine-tuning after which 20 images of one style gave a gain, in three out of three styles (docs/training.md)."""


@dataclass(frozen=True)
class Baseline:
    """Reference for a comparison: the weights the run started from or, if these were no better than bicubic, bicubic."""

    name: str
    metrics: Metrics

    def gain(self, metrics: Metrics, name: str = "psnr_y") -> float | None:
        """Difference of a metric from the baseline's; None if either is unknown."""
        before, after = get_metric(self.metrics, name), get_metric(metrics, name)
        return None if before is None or after is None else after - before

    def is_beaten_by(self, metrics: Metrics) -> bool:
        """Whether weights with these metrics are better at all."""
        return (self.gain(metrics) or 0) >= MIN_GAIN


def is_number(value: Any) -> bool:
    """Whether a value from a run's files, which may be damaged, is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def get_metric(metrics: Metrics, name: str) -> float | None:
    """A metric by name; None if it is missing or not a number."""
    value = metrics.get(name)
    return value if is_number(value) else None


def find_baseline(init: str, start: Metrics, bicubic: Metrics) -> Baseline:
    """Choose the baseline of a run from the metrics of its first step and of bicubic; either may be empty."""
    if init != "none" and (get_metric(start, "psnr_y") or 0) > (get_metric(bicubic, "psnr_y") or 0):
        return Baseline(weights_name(init), start)
    return Baseline("bicubic", bicubic)


def weights_name(init: str) -> str:
    """Display name of weights: the file's name without its suffix or, for a run's weights, the name of its folder."""
    path = PureWindowsPath(init) if "\\" in init else Path(init)
    return path.parent.name if path.stem in ("best", "last") and path.parent.name else path.name.removesuffix(".safetensors")


def summary(best: Metrics, baseline: Baseline, bicubic: Metrics, adversarial: bool = False) -> str:
    """Summarize in a sentence how much better the best weights are."""
    gain = baseline.gain(best)
    if gain is None:
        return f"PSNR-Y {best['psnr_y']:.2f} dB"
    if adversarial:
        return f"{gain:+.2f} dB compared with {baseline.name}; PSNR falls in an adversarial run, so judge by the images"
    if not baseline.is_beaten_by(best):
        return f"not better than {baseline.name} on your images yet"
    count = get_metric(best, "measured_on")
    if count and count < MIN_VALIDATION_IMAGES:
        images = "the only validation image" if count == 1 else f"the {count} validation images"
        return f"{gain:.2f} dB better than {baseline.name} on {images}, too few to be sure; compare the images by eye"
    better_on = get_metric(best, "better_on")
    if count and better_on is not None and 2 * better_on <= count:
        images = f"{better_on:.0f} of {count:.0f} validation images"
        return f"{gain:.2f} dB better than {baseline.name} on average, but only on {images}; compare the images by eye"
    text = f"{gain:.2f} dB better than {baseline.name} on your images"
    text += f" (better on {better_on:.0f} of {count:.0f} validation images)" if count and better_on is not None else ""
    over_bicubic = Baseline("bicubic", bicubic).gain(best)
    return text if over_bicubic is None or baseline.name == "bicubic" else f"{text}; {over_bicubic:.2f} dB over bicubic"


def steps_to_add(step: int) -> int:
    """How many more steps are worth trying after this many without a gain."""
    return max(WORTHWHILE_STEPS - step, step, 50)


# --- questions about the images ------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A question about the images, a short answer, and the numbers behind it."""

    question: str
    answer: str
    detail: str


def answers(best: Metrics, baseline: Baseline) -> list[Answer]:
    """Answers for weights with these metrics, as far as they are known, most visible first."""
    candidates = [
        _answer_gain("Closer to your originals?", "psnr_y", best, baseline),
        _answer_gain("Better lines?", "edge_psnr", best, baseline),
        _answer_gain("Cleaner flat areas?", "flat_psnr", best, baseline),
        _answer_sharpness(best, baseline),
        _answer_colors(best, baseline),
    ]
    return [answer for answer in candidates if answer]


def _answer_gain(question: str, name: str, best: Metrics, baseline: Baseline) -> Answer | None:
    gain = baseline.gain(best, name)
    if gain is None:
        return None
    word = "Yes" if gain >= VISIBLE_GAIN else "No, worse" if gain <= -VISIBLE_GAIN else "About the same"
    return Answer(question, word, f"{gain:+.2f} dB compared with {baseline.name}")


def _answer_sharpness(best: Metrics, baseline: Baseline) -> Answer | None:
    before, after = get_metric(baseline.metrics, "sharpness"), get_metric(best, "sharpness")
    if before is None or after is None:
        return None
    word = "Yes" if after > before + 0.005 else "No, softer" if after < before - 0.005 else "About the same"
    return Answer("Sharper?", word, f"{after:.0%} of the sharpness of your originals; {baseline.name}: {before:.0%}")


def _answer_colors(best: Metrics, baseline: Baseline) -> Answer | None:
    before, after = get_metric(baseline.metrics, "color_shift"), get_metric(best, "color_shift")
    if before is None or after is None:
        return None
    word = "Yes" if after <= max(before + 0.1, 0.5) else "No"
    return Answer("Colours preserved?", word, f"off by {after:.2f} of 255 levels; {baseline.name}: {before:.2f}")
