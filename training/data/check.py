"""What `transformersr check` says about a folder of images before a run, and images that look the same."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .folders import near, split_images
from .image_cache import in_order
from .images import Finding, Notes, TrainingImage, load_image, load_validation_image

logger = logging.getLogger(__name__)

FEW = 10
"""Images to train on below which a run is warned about."""
LEAST_MEASURED = 3
Size = tuple[int, int]
"""Width and height."""


@dataclass(frozen=True)
class FolderReport:
    """What there is to say about a folder of images before a run."""

    train: list[Size]
    """Of the images that can be trained on."""
    validation: list[Size]
    """Of those kept aside to measure on."""
    findings: list[Finding]

    def summary(self, smallest: int, scale: int) -> Iterator[str]:
        """What there is, and what a run would do with it, in lines."""
        sizes = [*self.train, *self.validation]
        yield f"{len(sizes)} images can be used: {len(self.train)} to train on, {len(self.validation)} kept aside to measure on"
        if sizes:
            small, large = min(sizes, key=math.prod), max(sizes, key=math.prod)
            yield f"sizes: {small[0]}x{small[1]} to {large[0]}x{large[1]}, {sum(map(math.prod, sizes)) / 1e6:.1f} megapixels in all"
            lq = smallest // scale
            yield f"a run cuts crops of {smallest}x{smallest} pixels and learns to make them from {lq}x{lq}"
        yield from too_few(len(self.train), len(self.validation))


def too_few(train: int, validation: int) -> Iterator[str]:
    """Warnings about how little can be learnt from, or measured on, so many images."""
    if train < FEW:
        verb = "is" if train == 1 else "are"
        yield f"{train} to train on {verb} few: expect a small gain, if any; {FEW} or more of one style are a good start"
    if validation < LEAST_MEASURED:
        yield f"{validation} kept aside {'is' if validation == 1 else 'are'} too few to tell a small gain from chance"


def check_images(
    folder: Path,
    smallest: int,
    scale: int = 4,
    validation: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    max_pixels: int = 0,
    workers: int = 0,
) -> FolderReport:
    """Look at every image below a folder as a run would.

    `smallest` is the side of a training crop in sharp pixels; `validation` and `exclude` are those of `split_images`. Raises ValueError
    for a folder that cannot be trained on.
    """
    split = split_images(folder, validation, exclude, scale=scale)
    for line in split.passed_over:
        logger.warning("%s", line)
    to_train = functools.partial(load_image, smallest=smallest, scale=scale, partners=split.partners, max_pixels=max_pixels)
    to_measure = functools.partial(load_validation_image, scale=scale, partners=split.partners, max_pixels=max_pixels)
    train, held = Notes(), Notes()
    train_sizes = [_size(image) for image in train.usable(in_order(to_train, split.train, workers))]
    held_sizes = [_size(image) for image in held.usable(in_order(to_measure, split.validation, workers))]
    left_out = [Finding(path, False, reason) for path, reason in split.left_out]
    findings = [*left_out, *train.findings, *held.findings, *near_duplicates(train.hashes)]
    return FolderReport(train_sizes, held_sizes, findings)


def _size(image: TrainingImage) -> Size:
    height, width = image.gt.shape[:2]
    return width, height


def near_duplicates(hash_of: Mapping[Path, int]) -> list[Finding]:
    """Images that look like another one, from their `dhash`. Flat images, which all look alike, are passed over."""
    paths, hashes = list(hash_of), np.array(list(hash_of.values()), dtype=np.uint64)
    findings = []
    for place, path in enumerate(paths):
        if (others := near(int(hashes[place]), hashes[:place])).size:
            findings.append(Finding(path, True, f"looks the same as {paths[others[0]]}; near-duplicates weigh double"))
    return findings
