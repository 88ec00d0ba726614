"""Pictures on disk, and the training crops drawn from them."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..upscale.image_io import READABLE, PictureError, read_picture
from .degradation import PRESETS, degrade

logger = logging.getLogger(__name__)

MARGIN = 16
"""Sharp pixels around a crop that are degraded with it and then cut off, so that filters meet the picture and not the crop's border."""


@dataclass(frozen=True)
class Split:
    """Paths for training and for validation, sorted."""

    train: list[Path]
    validation: list[Path]


def find_pictures(folder: str | Path, without: Path | None = None) -> list[Path]:
    """All picture files below a folder, sorted, those below `without` and hidden ones left out. Raises ValueError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of pictures, and there is no such folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READABLE and path.is_file() and path.name[0] != ".")
    if without is not None:
        paths = [path for path in paths if without.resolve() not in path.resolve().parents]
    if not paths:
        raise ValueError(f"{folder}: no pictures found; expected files ending in {', '.join(READABLE)}")
    return paths


def split_pictures(
    folder: str | Path, validation: tuple[str, ...] = (), exclude: tuple[str, ...] = (), without: Path | None = None
) -> Split:
    """Divide a folder's pictures, those below `without` left out; patterns are relative to it.

    Without patterns every twentieth content hash is for validation.
    """
    folder = Path(folder)

    def matches(path: Path, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)

    paths = [path for path in find_pictures(folder, without) if not matches(path, exclude)]
    if validation:
        held = [path for path in paths if matches(path, validation)]
    else:
        hashes = {path: hashlib.sha256(path.read_bytes()).digest() for path in paths}
        held = [path for path in paths if hashes[path][0] < 256 // 20] or [min(paths, key=hashes.__getitem__)]
    train = [path for path in paths if path not in set(held)]
    if not train or not held:
        raise ValueError(f"{folder}: {len(train)} pictures for training and {len(held)} for validation; expected at least one of each")
    return Split(train, held)


def read_rgb(path: Path) -> np.ndarray:
    """A picture file as `(h, w, 3)` uint8; transparent parts lie on grey. Raises PictureError, OSError."""
    picture = read_picture(path)
    color = picture.color
    if picture.alpha is not None:
        alpha = picture.alpha[..., None]
        color = color * alpha + 0.5 * (1 - alpha)
    return np.rint(color * 255).astype(np.uint8)


def read_pictures(paths: list[Path], smallest: int) -> list[np.ndarray]:
    """Read the pictures whose sides have at least `smallest` pixels; the others, and broken ones, are named in the log and left out."""
    pictures = []
    for path in paths:
        try:
            picture = read_rgb(path)
        except (OSError, PictureError) as error:
            logger.warning("left out: %s", error)
            continue
        if min(picture.shape[:2]) < smallest:
            logger.warning("%s is left out: %dx%d, smaller than a crop (%d)", path, picture.shape[1], picture.shape[0], smallest)
            continue
        pictures.append(picture)
    if not pictures:
        raise ValueError(f"none of {len(paths)} pictures can be used; expected at least one of {smallest} pixels or more along both sides")
    return pictures


class CropDataset(Dataset):
    """Crops numbered without end. Crop `i` depends on the seed and on `i` alone, so that runs resume exactly with any number of workers."""

    def __init__(self, pictures: list[np.ndarray], patch: int, scale: int, preset: str, keep_flat: float, seed: int):
        self.pictures = pictures
        areas = np.array([picture.shape[0] * picture.shape[1] for picture in pictures], dtype=np.float64)
        self.chances = areas / areas.sum()
        self.size = patch * scale
        self.scale = scale
        self.preset = PRESETS[preset]
        self.keep_flat = keep_flat
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """`lq (3, patch, patch)` and `gt (3, patch * scale, patch * scale)`, uint8."""
        rng = np.random.default_rng([self.seed, index])
        for _ in range(4):
            picture = self.pictures[rng.choice(len(self.pictures), p=self.chances)]
            y, x = (int(rng.integers((side - self.size) // self.scale + 1)) * self.scale for side in picture.shape[:2])
            gt = picture[y : y + self.size, x : x + self.size]
            if rng.random() < self.keep_flat or _has_detail(gt):
                break
        lq = self._small(picture, y, x, rng)
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        return _oriented(lq, turn, flip), _oriented(gt, turn, flip)

    def _small(self, picture: np.ndarray, y: int, x: int, rng: np.random.Generator) -> np.ndarray:
        """Degrade the crop at `y, x` with what surrounds it."""
        margin = -(-MARGIN // self.scale) * self.scale
        top, left = max(y - margin, 0), max(x - margin, 0)
        bottom, right = (
            min(start + self.size + margin, side // self.scale * self.scale) for start, side in zip((y, x), picture.shape[:2], strict=True)
        )
        small = np.asarray(degrade(Image.fromarray(picture[top:bottom, left:right]), self.scale, self.preset, rng))
        row, column, patch = (y - top) // self.scale, (x - left) // self.scale, self.size // self.scale
        return small[row : row + patch, column : column + patch]


def _has_detail(crop: np.ndarray) -> bool:
    return crop[::4, ::4].std(axis=(0, 1)).max() > 8


def _oriented(crop: np.ndarray, turn: int, flip: bool) -> Tensor:
    crop = np.rot90(crop, turn)
    crop = crop[:, ::-1] if flip else crop
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
