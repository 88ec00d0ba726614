"""What `transformersr check` says about a folder of pictures before a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..upscale.image_io import Picture, PictureError, read_picture
from .dataset import find_pictures

NEAR = 3
"""Bits of 64 in which the hashes of two pictures that look the same may differ."""


@dataclass(frozen=True)
class Finding:
    """Something to know about a picture; one that is not `usable` is left out of training."""

    path: Path
    usable: bool
    text: str


def check_pictures(folder: Path, smallest: int) -> tuple[int, list[Finding]]:
    """Look at every picture below a folder: how many can be used, and what there is to know about the others and about these.

    `smallest` is the side of a training crop in sharp pixels. Raises ValueError for a folder without pictures.
    """
    paths, findings = find_pictures(folder), []
    hashes: dict[Path, int] = {}
    for path in paths:
        try:
            picture = read_picture(path)
        except (OSError, PictureError) as error:
            findings.append(Finding(path, False, str(error)))
            continue
        findings += [Finding(path, usable, text) for usable, text in _remarks(picture, smallest)]
        hashes[path] = difference_hash(picture.color)
    findings += [Finding(path, True, f"looks the same as {other}; near-duplicates weigh double") for path, other in _alike(hashes)]
    unusable = {finding.path for finding in findings if not finding.usable}
    return len(paths) - len(unusable), findings


def _remarks(picture: Picture, smallest: int) -> Iterator[tuple[bool, str]]:
    height, width = picture.color.shape[:2]
    if min(height, width) < smallest:
        yield False, f"{width}x{height} is smaller than a crop of {smallest}x{smallest}"
    if picture.alpha is not None:
        yield True, "has transparent parts, which are put on grey"
    if picture.carried.bits == 16:
        yield True, "has 16 bits a channel, which are rounded to 8"
    if picture.carried.animated:
        yield True, "has several frames or pages, of which the first is used"


def difference_hash(color: np.ndarray) -> int:
    """64 bits that say where a picture `(h, w, 3)` in [0, 1] gets brighter from left to right at 9x8 pixels (Krawetz's dHash)."""
    grey = Image.fromarray(np.rint(color.mean(axis=2) * 255).astype(np.uint8)).resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey).astype(int)
    bits = (values[:, 1:] > values[:, :-1]).flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def _alike(hashes: dict[Path, int]) -> Iterator[tuple[Path, Path]]:
    """Each picture that looks like an earlier one, with that one. Flat pictures, which all look alike, are passed over."""
    seen: list[tuple[Path, int]] = []
    for path, value in hashes.items():
        if value:
            other = next((earlier for earlier, known in seen if (known ^ value).bit_count() <= NEAR), None)
            if other:
                yield path, other
            seen.append((path, value))
