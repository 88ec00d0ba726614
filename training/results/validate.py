"""Measure a network and plain resizing on validation images."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.degradation import PRESETS, degrade
from ..data.image_cache import map_in_order
from ..data.images import NO_PARTNERS, LoadedImage, TrainingImage, load_validation_image
from .metrics import color_shift, edge_mask, flat_mask, luma, psnr, quantize, sharpness, shift, ssim

logger = logging.getLogger(__name__)

METHODS = ("bicubic", "bilinear", "area")
Upscale = Callable[[Tensor], Tensor]
"""Upscales `(1, 3, h, w)` in [0, 1] to `(1, 3, h * scale, w * scale)`."""


@dataclass(frozen=True)
class Pair:
    """A true image `gt (1, 3, h * scale, w * scale)` and its small version `lq (1, 3, h, w)`, both in [0, 1] with 256 levels."""

    name: str
    lq: Tensor
    gt: Tensor
    path: Path | None = None
    dhash: int = 0
    """The `dhash` of the whole image."""


@dataclass(frozen=True)
class Scores:
    """Metrics of one image or means over many, named as in `metrics`.

    `shift_y` and `shift_x` are the result's shift against the true image in its pixels, positive to the bottom right.
    """

    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    edge_psnr: float
    flat_psnr: float
    shift_y: float
    shift_x: float
    sharpness: float = float("nan")
    color_shift: float = float("nan")

    def __str__(self) -> str:
        return (
            f"PSNR-Y {self.psnr_y:.2f}  SSIM-Y {self.ssim_y:.4f}  edges {self.edge_psnr:.2f}  flats {self.flat_psnr:.2f}  "
            f"sharpness {self.sharpness:.3f}  colour {self.color_shift:.2f}  shift {self.shift_y:+.3f}, {self.shift_x:+.3f}"
        )


def make_pair(
    path: Path,
    scale: int,
    method: str,
    crop: int = 0,
    partners: Mapping[Path, Path | None] = NO_PARTNERS,
    preset: str = "author",
    seed: int = 0,
) -> Pair:
    """Crop an image to a multiple of the scale (with `crop`: to a centre square of that side), and downscale it or take its small version.

    `preset` also damages the small image, always in the same way for a `seed`.

    Raises ValueError for an image that cannot be used.
    """
    loaded = load_validation_image(path, scale, partners)
    if loaded.image is None:
        raise ValueError(str(loaded.findings[0]))
    return _crop_pair(loaded, loaded.image, scale, _shrink_with(method, scale, preset, seed), crop)


def _shrink_with(method: str, scale: int, preset: str, seed: int) -> Callable[[Image.Image], Image.Image]:
    """Make a function that degrades an image with a preset, but with only one downscaling method."""
    degradation = replace(PRESETS[preset], filters=(method,))
    return functools.partial(degrade, scale=scale, preset=degradation, rng=np.random.default_rng(seed))


def _crop_pair(loaded: LoadedImage, image: TrainingImage, scale: int, shrink: Callable[[Image.Image], Image.Image], crop: int) -> Pair:
    gt = Image.fromarray(image.gt)
    width, height = (min(side, crop or side) // scale * scale for side in gt.size)
    step = 1 if image.lq is None else scale
    left, top = ((side - size) // 2 // step * step if crop else 0 for side, size in zip(gt.size, (width, height), strict=True))
    gt = gt.crop((left, top, left + width, top + height))
    if image.lq is None:
        lq = shrink(gt)
    else:
        lq = Image.fromarray(image.lq).crop(tuple(side // scale for side in (left, top, left + width, top + height)))  # type: ignore[arg-type]
    return Pair(loaded.path.name, to_tensor(lq), to_tensor(gt), loaded.path, loaded.dhash)


def validation_pairs(
    paths: list[Path],
    scale: int,
    crop: int,
    partners: Mapping[Path, Path | None] = NO_PARTNERS,
    max_pixels: int = 0,
    workers: int = 0,
    preset: str = "author",
) -> list[Pair]:
    """Make one pair per image, cycling through the downscaling methods; `preset` degrades the small images, always in the same way.

    Findings are logged; images that cannot be used are skipped.

    Raises ValueError if none can be used.
    """
    read = functools.partial(load_validation_image, scale=scale, partners=partners, max_pixels=max_pixels)
    pairs = []
    for index, loaded in enumerate(map_in_order(read, paths, workers)):
        for finding in loaded.findings:
            logger.warning("validation image %s", finding)
        if loaded.image:
            shrink = _shrink_with(METHODS[index % len(METHODS)], scale, preset, index)
            pairs.append(_crop_pair(loaded, loaded.image, scale, shrink, crop))
    if not pairs:
        raise ValueError(
            f"none of {len(paths)} images held out for validation can be used, such as {paths[0]}; remove them, "
            "or choose others with the setting validation"
        )
    return pairs


def score_pair(pair: Pair, sr: Tensor, scale: int) -> Scores:
    """Score one result, rounded to 256 levels and without a border of `scale` pixels."""
    inner = (..., slice(scale, -scale), slice(scale, -scale))
    sr, gt = quantize(sr)[inner], pair.gt[inner]
    sr_y, gt_y = luma(sr), luma(gt)
    return Scores(
        psnr(sr_y, gt_y),
        ssim(sr_y, gt_y),
        psnr(sr, gt),
        psnr(sr_y, gt_y, edge_mask(gt_y)),
        psnr(sr_y, gt_y, flat_mask(gt_y)),
        *shift(sr, gt, scale),
        sharpness(sr_y, gt_y),
        color_shift(sr, gt),
    )


def mean_scores(scores: list[Scores]) -> Scores:
    """Average over images: the median of shifts, the mean of other metrics. NaN values (as for images without flat areas) are ignored."""

    def average(name: str) -> float:
        values = [value for image_scores in scores if (value := getattr(image_scores, name)) == value]
        return float("nan") if not values else median(values) if name.startswith("shift") else fmean(values)

    return Scores(*(average(field.name) for field in fields(Scores)))


def resize_with(method: str, scale: int) -> Upscale:
    """Make an upscaler that resizes with a Pillow filter, for comparison."""
    resample = Image.Resampling[method.upper()]

    def upscale(lq: Tensor) -> Tensor:
        image = to_image(lq)
        return to_tensor(image.resize((image.width * scale, image.height * scale), resample))

    return upscale


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to `(1, 3, h, w)` in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def to_image(tensor: Tensor) -> Image.Image:
    """Convert the first image of `(b, 3, h, w)` in [0, 1] to RGB."""
    return Image.fromarray((tensor[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


# --- validation of a run -------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """The scores of an upscaler on all pairs."""

    each: list[Scores]
    mean: Scores
    examples: list[Tensor]
    """Its results for the example pairs."""


@dataclass(frozen=True)
class Validation:
    """The validation pairs of a run and the scores of bicubic on them."""

    pairs: list[Pair]
    scale: int
    bicubic: Measurement
    example_indices: tuple[int, ...]
    """The pairs to show in strips: those on which bicubic is worst, median and best."""

    @classmethod
    def prepare(cls, pairs: list[Pair], scale: int) -> Validation:
        """Measure bicubic on the pairs and choose the examples."""
        bicubic = measure(pairs, resize_with("bicubic", scale), scale, range(len(pairs)))
        order = sorted(range(len(pairs)), key=lambda index: bicubic.each[index].psnr_y)
        chosen = tuple(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))
        return cls(pairs, scale, replace(bicubic, examples=[bicubic.examples[index] for index in chosen]), chosen)

    @property
    def examples(self) -> list[Pair]:
        """The pairs to show in strips."""
        return [self.pairs[index] for index in self.example_indices]

    def measure(self, upscale: Upscale) -> Measurement:
        """Measure an upscaler on these pairs."""
        return measure(self.pairs, upscale, self.scale, self.example_indices)


def measure(pairs: list[Pair], upscale: Upscale, scale: int, example_indices: Sequence[int]) -> Measurement:
    """Score an upscaler on all pairs, and keep its results at `example_indices`."""
    each, kept = [], {}
    for index, pair in enumerate(pairs):
        result = upscale(pair.lq)
        each.append(score_pair(pair, result, scale))
        if index in example_indices:
            kept[index] = result
    return Measurement(each, mean_scores(each), [kept[index] for index in example_indices])
