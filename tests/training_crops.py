"""Training crops of a few pixels, mostly without flat ones."""

from __future__ import annotations

from transformersr.training.data.dataset import CropDataset


def make_crops(images, preset: str = "author", **options) -> CropDataset:
    return CropDataset(images, preset=preset, **{"patch": 8, "scale": 4, "keep_flat": 0.15, "seed": 3, **options})
