"""The training crops drawn from pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .degradation import PRESETS, degrade, describe_video
from .pictures import TrainingPicture

logger = logging.getLogger(__name__)

MARGIN = 16
"""Sharp pixels around a crop that are degraded with it and then cut off, so that filters meet the picture and not the crop's border."""


@dataclass(frozen=True)
class Place:
    """Where a crop is cut: its upper left corner in sharp pixels, a multiple of the scale."""

    picture: TrainingPicture
    y: int
    x: int

    def __str__(self) -> str:
        return f"{self.picture.name} at {self.x}, {self.y}"


class CropDataset(Dataset):
    """Crops numbered without end. Crop `i` depends on the seed and on `i` alone, so that runs resume exactly with any number of workers.

    Pictures take turns by their area, except that drawings, where there are others too, make up `drawings_share` of the crops. `preset`
    makes the small crops of pictures that come without a small version.
    """

    def __init__(
        self,
        pictures: Sequence[TrainingPicture],
        patch: int,
        scale: int,
        preset: str,
        keep_flat: float,
        seed: int,
        drawings_share: float = 0.3,
    ):
        self.pictures = pictures
        self.turns = np.cumsum(_chances(pictures, drawings_share))
        self.size = patch * scale
        self.scale = scale
        self.preset = PRESETS[preset]
        self.keep_flat = keep_flat
        self.seed = seed
        if self.preset.video:
            logger.info("preset %s: %s", preset, describe_video())

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """`lq (3, patch, patch)` and `gt (3, patch * scale, patch * scale)`, uint8."""
        rng = np.random.default_rng([self.seed, index])
        place = self._draw_place(rng)
        lq, gt = self._small(place, rng), self._sharp(place)
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        return _oriented(lq, turn, flip), _oriented(gt, turn, flip)

    def place(self, index: int) -> Place:
        """Where a crop comes from; as text, its picture's name and the corner."""
        return self._draw_place(np.random.default_rng([self.seed, index]))

    def _draw_place(self, rng: np.random.Generator) -> Place:
        for _ in range(4):
            turn = np.searchsorted(self.turns, rng.random() * self.turns[-1], side="right")
            picture = self.pictures[int(turn)]
            y, x = (int(rng.integers((side - self.size) // self.scale + 1)) * self.scale for side in picture.gt.shape[:2])
            place = Place(picture, y, x)
            if rng.random() < self.keep_flat or _has_detail(self._sharp(place)):
                break
        return place

    def _sharp(self, place: Place) -> np.ndarray:
        return place.picture.gt[place.y : place.y + self.size, place.x : place.x + self.size]

    def _small(self, place: Place, rng: np.random.Generator) -> np.ndarray:
        """The small crop: cut from the picture's small version, or degraded with what surrounds it."""
        patch = self.size // self.scale
        if place.picture.lq is not None:
            row, column = place.y // self.scale, place.x // self.scale
            return place.picture.lq[row : row + patch, column : column + patch]
        margin = -(-MARGIN // self.scale) * self.scale
        top, left = max(place.y - margin, 0), max(place.x - margin, 0)
        bottom, right = (
            min(start + self.size + margin, side // self.scale * self.scale)
            for start, side in zip((place.y, place.x), place.picture.gt.shape[:2], strict=True)
        )
        small = np.asarray(degrade(Image.fromarray(place.picture.gt[top:bottom, left:right]), self.scale, self.preset, rng))
        row, column = (place.y - top) // self.scale, (place.x - left) // self.scale
        return small[row : row + patch, column : column + patch]


def _chances(pictures: Sequence[TrainingPicture], drawings_share: float) -> np.ndarray:
    areas = np.array([picture.gt.shape[0] * picture.gt.shape[1] for picture in pictures], dtype=np.float64)
    drawn = np.array([picture.drawn for picture in pictures])
    if drawn.any() and not drawn.all():
        areas[drawn] *= drawings_share / areas[drawn].sum()
        areas[~drawn] *= (1 - drawings_share) / areas[~drawn].sum()
    return areas


def _has_detail(crop: np.ndarray) -> bool:
    return crop[::4, ::4].std(axis=(0, 1)).max() > 8


def _oriented(crop: np.ndarray, turn: int, flip: bool) -> Tensor:
    crop = np.rot90(crop, turn)
    crop = crop[:, ::-1] if flip else crop
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
