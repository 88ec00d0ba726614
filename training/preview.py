"""Preview training crops: the network's inputs and targets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .config import TrainConfig
from .data.dataset import training_crops
from .data.folders import split_images
from .data.image_cache import find_training_images
from .plan import fill_in
from .results.strips import contact_sheet, save_image
from .results.validate import to_image


def draw_crops(config: TrainConfig, data: str | Path, path: Path, count: int = 16) -> None:
    """Write a sheet of a run's training crops, inputs next to targets, from a sample of its images."""
    config, _ = fill_in(config)
    files = split_images(data, config.validation, config.exclude)
    sample = dataclasses.replace(files, train=files.train[:: -(-len(files.train) // (2 * count))])
    reduced = dataclasses.replace(config, synthetic=min(config.synthetic, count))
    crops = training_crops(config, find_training_images(reduced, sample))
    pairs = [[to_image(images[None] / 255) for images in crops[index]] for index in range(count)]
    rows = [[*left, *right] for left, right in zip(pairs[::2], pairs[1::2], strict=True)]
    save_image(contact_sheet(rows, ["input", "target"] * 2, cell=256), path)
