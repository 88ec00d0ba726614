"""Training crops sampled from images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

from ..config import TrainConfig
from .degradation import PRESETS, degrade
from .images import TrainingImage
from .video_codec import require_codec

MARGIN = 16
"""Sharp pixels around a crop that are degraded with it and then cut off, so that filters see the image and not the crop's border."""
ZOOM_OUT_SCALES = (0.5, 0.8)
"""Range of factors by which a zoomed-out crop is downscaled. Closer to 1, the filter would soften more than it sharpens."""
SHARPEN_RADIUS = 1.0
"""Radius of the unsharp mask on sharp crops, in their pixels."""


@dataclass(frozen=True)
class CropLocation:
    """The square of an image that a crop is cut from, in sharp pixels; its corner is at multiples of the scale."""

    image: TrainingImage
    y: int
    x: int
    side: int
    """The side of a crop, or more if the square is downscaled to one."""

    def __str__(self) -> str:
        return f"{self.image.name} at {self.x}, {self.y}"


class CropDataset(Dataset):
    """An endless sequence of crops. Crop `i` depends only on the seed and `i`, so runs resume exactly with any number of workers.

    Images are sampled in proportion to their area, but synthetic images, if there are others too, make up `synthetic_share` of the crops.
    `preset` degrades the crops of images without a small version; `zoom_out_prob` of those are downscaled from a larger square.

    Raises ValueError for the preset `video` without a video codec.
    """

    def __init__(
        self,
        images: Sequence[TrainingImage],
        patch: int,
        scale: int,
        preset: str,
        keep_flat: float,
        seed: int,
        synthetic_share: float = 0.3,
        zoom_out_prob: float = 0.0,
        swatches: float = 0.0,
        sharpen: float = 0.0,
    ):
        self.images = images
        self.cumulative_weights = np.cumsum(_sampling_weights(images, synthetic_share))
        self.size = patch * scale
        self.scale = scale
        self.preset = PRESETS[preset]
        self.keep_flat = keep_flat
        self.seed = seed
        self.zoom_out_prob = zoom_out_prob
        self.swatches = swatches
        self.sharpen = sharpen
        if self.preset.video:
            require_codec()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """`lq (3, patch, patch)` and `gt (3, patch * scale, patch * scale)`, uint8."""
        rng, swatch_rng = np.random.default_rng([self.seed, index]), np.random.default_rng([self.seed, index, 1])
        swatch = swatch_rng.random() < self.swatches
        if swatch and swatch_rng.random() < 0.5:
            lq, gt = self._plain_pair(swatch_rng)
        else:
            lq, gt = self._crop_pair(self._sample_location(rng), rng, swatch_rng if swatch else None)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        return _orient(lq, turns, flip), _orient(gt, turns, flip)

    def _plain_pair(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Make a crop of two plain colours on both sides of a straight edge: few images have such colours."""
        margin = -(-MARGIN // self.scale) * self.scale
        side = self.size + 2 * margin
        whole = _mix(_edge(side, self.size, rng), _two_colors(rng))
        small = np.asarray(degrade(whole, self.scale, self.preset, rng))
        inner = slice(margin // self.scale, (margin + self.size) // self.scale)
        return small[inner, inner], np.asarray(whole)[margin : margin + self.size, margin : margin + self.size]

    def location(self, index: int) -> CropLocation:
        """Where a crop comes from; as a string, the image's name and the corner."""
        return self._sample_location(np.random.default_rng([self.seed, index]))

    def _sample_location(self, rng: np.random.Generator) -> CropLocation:
        for _ in range(4):
            index = np.searchsorted(self.cumulative_weights, rng.random() * self.cumulative_weights[-1], side="right")
            image = self.images[int(index)]
            side = self._sample_side(image, rng)
            y, x = (int(rng.integers((length - side) // self.scale + 1)) * self.scale for length in image.gt.shape[:2])
            if rng.random() < self.keep_flat or _has_detail(image.gt[y : y + side, x : x + side]):
                break
        return CropLocation(image, y, x, side)

    def _sample_side(self, image: TrainingImage, rng: np.random.Generator) -> int:
        """Side of the square that becomes a crop: the crop's own, or a larger one if the image has no small version."""
        if not self.zoom_out_prob or image.lq is not None or rng.random() >= self.zoom_out_prob:
            return self.size
        side = min(round(self.size / rng.uniform(*ZOOM_OUT_SCALES)), *image.gt.shape[:2])
        return side if side * ZOOM_OUT_SCALES[1] >= self.size else self.size

    def _crop_pair(
        self, location: CropLocation, rng: np.random.Generator, tone_rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut the small and the sharp crop; the small one comes from the image's small version, or is degraded with its surroundings.

        If `tone_rng` is given, a fine tone is drawn on a part of the crop, unless the image has a small version.
        """
        image, patch = location.image, self.size // self.scale
        if image.lq is not None:
            row, column = location.y // self.scale, location.x // self.scale
            gt = image.gt[location.y : location.y + self.size, location.x : location.x + self.size]
            return image.lq[row : row + patch, column : column + patch], gt
        factor = location.side / self.size  # image pixels per crop pixel
        height, width = image.gt.shape[:2]
        top, left, bottom, right = (
            min(-(-MARGIN // self.scale), int(room / factor) // self.scale) * self.scale
            for room in (location.y, location.x, height - location.y - location.side, width - location.x - location.side)
        )
        across = location.x - left * factor, location.x + location.side + right * factor
        down = location.y - top * factor, location.y + location.side + bottom * factor
        whole = _resize_region(image.gt, across, down, (left + self.size + right, top + self.size + bottom))
        sharp, preset = whole, self.preset
        if self.sharpen:
            sharp = whole.filter(ImageFilter.UnsharpMask(SHARPEN_RADIUS, round(100 * self.sharpen), 2))
        if tone_rng is not None:
            tone, aligned = _make_tone(patch, self.scale, tone_rng)
            x, y = (edge + int(tone_rng.integers((self.size - tone.width) // self.scale + 1)) * self.scale for edge in (left, top))
            whole.paste(tone, (x, y))
            sharp.paste(tone, (x, y))
            if aligned:  # the small pixels have the two colours and nothing in between
                preset = replace(preset, filters=("area",))
        small = np.asarray(degrade(whole, self.scale, preset, rng))
        row, column = top // self.scale, left // self.scale
        return small[row : row + patch, column : column + patch], np.asarray(sharp)[top : top + self.size, left : left + self.size]


def _two_colors(rng: np.random.Generator) -> np.ndarray:
    """Two random colours, of which many values are 0 or 1: `(2, 3)` in [0, 1]."""
    colors = rng.random((2, 3))
    return np.where(rng.random((2, 3)) < 0.5, colors.round(), colors)


def _mix(share: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Mix two colours `(2, 3)`; `share` of the first one, `(height, width)`."""
    share = share[..., None]
    return Image.fromarray(np.rint(255 * (colors[0] * share + colors[1] * (1 - share))).astype(np.uint8))


def _edge(side: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """The share of one colour next to a straight edge: `(side, side)` in [0, 1]."""
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.7, 0.7) * size
    axis = np.arange(side) - (side - 1) / 2
    return np.clip(axis[:, None] * np.sin(angle) + axis[None] * np.cos(angle) - offset + 0.5, 0, 1)


def _make_tone(patch: int, scale: int, rng: np.random.Generator) -> tuple[Image.Image, bool]:
    """Make a square of two colours in a fine tone, for a part of a crop: a whole crop of it would outweigh all others in the loss.

    Also returns whether the tone consists of whole small pixels.
    """
    side = scale * int(rng.integers(patch // 4, patch // 2 + 1))
    aligned = rng.random() < 0.5
    colors = _two_colors(rng) if rng.random() < 0.5 else np.array([[0.0] * 3, [1.0] * 3])  # black and white, as in manga
    return _mix(_tone(side, scale, aligned, rng), colors), aligned


def _tone(side: int, scale: int, aligned: bool, rng: np.random.Generator) -> np.ndarray:
    """The share of one colour in stripes, checks or dots whose period is 2 to 4 small pixels: `(side, side)` in [0, 1].

    They are screentones at any angle or, if `aligned`, dithering patterns of whole small pixels.
    """
    kind, threshold, cell = rng.integers(3), rng.uniform(-0.6, 0.6), scale if aligned else 1
    period = cell * (rng.choice([2, 2, 3, 4]) if aligned else rng.uniform(2, 4) * scale)
    angle = 0.0 if aligned else rng.uniform(0, np.pi)
    shifts = cell * (rng.integers(4, size=2) + 0.5) if aligned else rng.uniform(0, period, 2)
    axis = (np.arange(side // cell) + 0.5) * cell
    across = axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle)
    down = axis[:, None] * np.cos(angle) - axis[None] * np.sin(angle)
    waves = [np.cos(2 * np.pi * (distance - shift) / period) for distance, shift in zip((across, down), shifts, strict=True)]
    height = (waves[0], waves[0] * waves[1], (waves[0] + waves[1]) / 2)[kind] - threshold
    if aligned:
        return np.kron(height > 0, np.ones((cell, cell)))
    return np.clip(height * period / (2 * np.pi) + 0.5, 0, 1)


def training_crops(config: TrainConfig, images: Sequence[TrainingImage]) -> CropDataset:
    """Make the crop dataset of a run."""
    return CropDataset(
        images,
        config.patch,
        config.scale,
        config.preset,
        config.keep_flat,
        config.seed,
        config.synthetic_share,
        config.zoom_out_prob,
        config.swatches,
        config.sharpen,
    )


def _resize_region(pixels: np.ndarray, across: tuple[float, float], down: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """Resize part of an image to `(width, height)`, with a Hamming window for the reason given in `images.downscale_to`."""
    left, top = int(across[0]), int(down[0])
    part = Image.fromarray(pixels[top : math.ceil(down[1]), left : math.ceil(across[1])])
    if part.size == size:
        return part
    right, bottom = min(across[1] - left, part.width), min(down[1] - top, part.height)  # rounding may end just outside
    return part.resize(size, Image.Resampling.HAMMING, (across[0] - left, down[0] - top, right, bottom))


def _sampling_weights(images: Sequence[TrainingImage], synthetic_share: float) -> np.ndarray:
    areas = np.array([image.gt.shape[0] * image.gt.shape[1] for image in images], dtype=np.float64)
    generated = np.array([image.synthetic for image in images])
    if generated.any() and not generated.all():
        areas[generated] *= synthetic_share / areas[generated].sum()
        areas[~generated] *= (1 - synthetic_share) / areas[~generated].sum()
    return areas


def _has_detail(crop: np.ndarray) -> bool:
    return crop[::4, ::4].std(axis=(0, 1)).max() > 8


def _orient(crop: np.ndarray, turns: int, flip: bool) -> Tensor:
    crop = np.rot90(crop, turns)
    crop = crop[:, ::-1] if flip else crop
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
