"""Check a folder of images before a run (`transformersr check`), and find near-duplicates."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .folders import find_near, split_images
from .image_cache import map_in_order
from .images import Finding, ImageCollector, TrainingImage, load_image, load_validation_image

logger = logging.getLogger(__name__)

FEW_IMAGES = 10
"""With fewer images to train on there is a warning."""
MIN_VALIDATION_IMAGES = 3
"""With fewer validation images there is a warning."""
Size = tuple[int, int]
"""Width and height."""


@dataclass(frozen=True)
class FolderReport:
    """The result of checking a folder of images."""

    train: list[Size]
    """Sizes of the images to train on."""
    validation: list[Size]
    """Sizes of the images held out for validation."""
    findings: list[Finding]
    pairs: int = 0
    """How many of the images have a small version of their own."""

    def summary(self, smallest: int, scale: int) -> Iterator[str]:
        """Yield lines on what the folder has and what a run would do with it. At least one image must be usable."""
        sizes = [*self.train, *self.validation]
        count = count_of(len(sizes), "image")
        yield f"{count} can be used: {len(self.train)} for training, {len(self.validation)} held out for validation"
        small, large = min(sizes, key=math.prod), max(sizes, key=math.prod)
        range_ = f"{small[0]}x{small[1]} to {large[0]}x{large[1]}" if small != large else f"all {small[0]}x{small[1]}"
        yield f"sizes: {range_}, {sum(map(math.prod, sizes)) / 1e6:.1f} megapixels in total"
        if self.pairs:
            yield f"{count_of(self.pairs, 'pair')} with your own small versions, which are used instead of the preset"
        lq = smallest // scale
        yield f"a run learns to upscale crops of {lq}x{lq} pixels to {smallest}x{smallest}"
        yield from size_warnings(len(self.train), len(self.validation))


def size_warnings(train: int, validation: int) -> Iterator[str]:
    """Yield warnings if there are too few images to learn from or to measure on."""
    if train < FEW_IMAGES:
        yield f"only {count_of(train, 'training image')}: expect a small gain, if any; {FEW_IMAGES} or more of one style are a good start"
    if validation < MIN_VALIDATION_IMAGES:
        yield f"only {count_of(validation, 'validation image')}: too few to tell a small gain from chance"


def count_of(number: int, noun: str) -> str:
    """Format a number and a noun in the singular or plural: 1 image, 2 images."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def check_images(
    folder: Path,
    smallest: int,
    scale: int = 4,
    validation: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    max_pixels: int = 0,
    workers: int = 0,
) -> FolderReport:
    """Read every image below a folder as a run would.

    `smallest` is the side of a training crop in sharp pixels; `validation` and `exclude` are those of `split_images`. Raises ValueError
    if the folder cannot be trained on.
    """
    split = split_images(folder, validation, exclude, scale=scale)
    for line in split.ignored:
        logger.warning("%s", line)
    read_train = functools.partial(load_image, smallest=smallest, scale=scale, partners=split.partners, max_pixels=max_pixels)
    read_validation = functools.partial(load_validation_image, scale=scale, partners=split.partners, max_pixels=max_pixels)
    for_training, for_validation = ImageCollector(), ImageCollector()
    train_sizes = [_size(image) for image in for_training.usable(map_in_order(read_train, split.train, workers))]
    validation_sizes = [_size(image) for image in for_validation.usable(map_in_order(read_validation, split.validation, workers))]
    skipped = [Finding(path, False, reason) for path, reason in split.skipped]
    findings = [*skipped, *for_training.findings, *for_validation.findings, *near_duplicates(for_training.hashes)]
    skipped_paths = {finding.path for finding in findings if not finding.usable}
    pairs = sum(path in split.partners and path not in skipped_paths for path in (*split.train, *split.validation))
    return FolderReport(train_sizes, validation_sizes, findings, pairs)


def _size(image: TrainingImage) -> Size:
    height, width = image.gt.shape[:2]
    return width, height


def near_duplicates(hash_of: Mapping[Path, int]) -> list[Finding]:
    """Find images that look the same as an earlier one by their `dhash`. Flat images, which all look alike, are ignored."""
    paths, hashes = list(hash_of), np.array(list(hash_of.values()), dtype=np.uint64)
    findings = []
    for index, path in enumerate(paths):
        if (others := find_near(int(hashes[index]), hashes[:index])).size:
            findings.append(Finding(path, True, f"looks the same as {paths[others[0]]}; near-duplicates count twice"))
    return findings
