"""Synthetic images with flat areas and dark lines."""

from __future__ import annotations

import numpy as np
from PIL import Image


def synthetic_image(seed: int, size: int = 96) -> Image.Image:
    """Draw coloured discs with dark outlines."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size, 3), rng.integers(150, 255, 3), np.float64)
    for _ in range(12):
        distance = np.hypot(y - rng.integers(size), x - rng.integers(size)) - rng.integers(5, 25)
        image[distance < 0] = rng.integers(0, 255, 3)
        image[np.abs(distance) < 1.5] = 20
    return Image.fromarray(image.astype(np.uint8))
