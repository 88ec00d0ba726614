"""The training crops drawn from images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
"""Sharp pixels around a crop that are degraded with it and then cut off, so that filters meet the image and not the crop's border."""
REDUCTION = (0.5, 0.8)
"""By which factors a place is reduced to a crop, where it is; between the upper one and 1 a filter would soften more than it sharpens."""


SHARPEN_RADIUS = 1.0
"""Of the unsharp mask on sharp crops, in their pixels."""


@dataclass(frozen=True)
class Place:
    """Where a crop is cut: a square of an image, in its sharp pixels; the corner is a multiple of the scale."""

    image: TrainingImage
    y: int
    x: int
    side: int
    """That of a crop, or more where the square is reduced to one."""

    def __str__(self) -> str:
        return f"{self.image.name} at {self.x}, {self.y}"


class CropDataset(Dataset):
    """Crops numbered without end. Crop `i` depends on the seed and on `i` alone, so that runs resume exactly with any number of workers.

    Images take turns by their area, except that drawings, where there are others too, make up `synthetic_share` of the crops. `preset`
    makes the small crops of images that come without a small version; `zoom_out_prob` of those are cut from a larger place, made smaller.

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
        self.turns = np.cumsum(_chances(images, synthetic_share))
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
        rng = np.random.default_rng([self.seed, index])
        if self.swatches and np.random.default_rng([self.seed, index, 1]).random() < self.swatches:
            lq, gt = self._swatch(rng)
        else:
            lq, gt = self._cut(self._draw_place(rng), rng)
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        return _oriented(lq, turn, flip), _oriented(gt, turn, flip)

    def _swatch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Two plain colours with a straight edge between them, half of the channels at an end of their range: images have few such."""
        margin = -(-MARGIN // self.scale) * self.scale
        side, colors = self.size + 2 * margin, rng.random((2, 3))
        colors = np.where(rng.random((2, 3)) < 0.5, colors.round(), colors)
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.7, 0.7) * self.size
        axis = np.arange(side) - (side - 1) / 2
        share = np.clip(axis[:, None] * np.sin(angle) + axis[None] * np.cos(angle) - offset + 0.5, 0, 1)[..., None]
        whole = Image.fromarray(np.rint(255 * (colors[0] * share + colors[1] * (1 - share))).astype(np.uint8))
        small = np.asarray(degrade(whole, self.scale, self.preset, rng))
        inner = slice(margin // self.scale, (margin + self.size) // self.scale)
        return small[inner, inner], np.asarray(whole)[margin : margin + self.size, margin : margin + self.size]

    def place(self, index: int) -> Place:
        """Where a crop comes from; as text, its image's name and the corner."""
        return self._draw_place(np.random.default_rng([self.seed, index]))

    def _draw_place(self, rng: np.random.Generator) -> Place:
        for _ in range(4):
            turn = np.searchsorted(self.turns, rng.random() * self.turns[-1], side="right")
            image = self.images[int(turn)]
            side = self._draw_side(image, rng)
            y, x = (int(rng.integers((length - side) // self.scale + 1)) * self.scale for length in image.gt.shape[:2])
            if rng.random() < self.keep_flat or _has_detail(image.gt[y : y + side, x : x + side]):
                break
        return Place(image, y, x, side)

    def _draw_side(self, image: TrainingImage, rng: np.random.Generator) -> int:
        """Side of the square that becomes a crop: the crop's own, or a larger one of an image that has no small version."""
        if not self.zoom_out_prob or image.lq is not None or rng.random() >= self.zoom_out_prob:
            return self.size
        side = min(round(self.size / rng.uniform(*REDUCTION)), *image.gt.shape[:2])
        return side if side * REDUCTION[1] >= self.size else self.size

    def _cut(self, place: Place, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The small crop and the sharp one: the first from the image's small version, or degraded with what surrounds it."""
        image, patch = place.image, self.size // self.scale
        if image.lq is not None:
            row, column = place.y // self.scale, place.x // self.scale
            gt = image.gt[place.y : place.y + self.size, place.x : place.x + self.size]
            return image.lq[row : row + patch, column : column + patch], gt
        factor = place.side / self.size  # of the image's pixels over the crop's
        height, width = image.gt.shape[:2]
        top, left, bottom, right = (
            min(-(-MARGIN // self.scale), int(room / factor) // self.scale) * self.scale
            for room in (place.y, place.x, height - place.y - place.side, width - place.x - place.side)
        )
        across = place.x - left * factor, place.x + place.side + right * factor
        down = place.y - top * factor, place.y + place.side + bottom * factor
        whole = _resized(image.gt, across, down, (left + self.size + right, top + self.size + bottom))
        small = np.asarray(degrade(whole, self.scale, self.preset, rng))
        if self.sharpen:
            whole = whole.filter(ImageFilter.UnsharpMask(SHARPEN_RADIUS, round(100 * self.sharpen), 2))
        row, column = top // self.scale, left // self.scale
        return small[row : row + patch, column : column + patch], np.asarray(whole)[top : top + self.size, left : left + self.size]


def training_crops(config: TrainConfig, images: Sequence[TrainingImage]) -> CropDataset:
    """The crops of a run."""
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


def _resized(pixels: np.ndarray, across: tuple[float, float], down: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """Part of an image at a size of `(width, height)`; reduced by a Hamming window for the reason that `images.downscale_to` gives."""
    left, top = int(across[0]), int(down[0])
    part = Image.fromarray(pixels[top : math.ceil(down[1]), left : math.ceil(across[1])])
    if part.size == size:
        return part
    right, bottom = min(across[1] - left, part.width), min(down[1] - top, part.height)  # rounding may lie a hair outside
    return part.resize(size, Image.Resampling.HAMMING, (across[0] - left, down[0] - top, right, bottom))


def _chances(images: Sequence[TrainingImage], synthetic_share: float) -> np.ndarray:
    areas = np.array([image.gt.shape[0] * image.gt.shape[1] for image in images], dtype=np.float64)
    generated = np.array([image.synthetic for image in images])
    if generated.any() and not generated.all():
        areas[generated] *= synthetic_share / areas[generated].sum()
        areas[~generated] *= (1 - synthetic_share) / areas[~generated].sum()
    return areas


def _has_detail(crop: np.ndarray) -> bool:
    return crop[::4, ::4].std(axis=(0, 1)).max() > 8


def _oriented(crop: np.ndarray, turn: int, flip: bool) -> Tensor:
    crop = np.rot90(crop, turn)
    crop = crop[:, ::-1] if flip else crop
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
