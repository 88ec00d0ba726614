"""From a sharp crop to the small picture that the network is given.

Steps in order: blur, shrink, codec, each with a chance. Everything is Pillow on 8-bit RGB, as the pictures that users bring have been made.
All filters shrink by the exact factor around the same centre, so a small picture is never shifted against its sharp one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Degradation:
    """A preset: which filters shrink, and how often what else happens."""

    filters: tuple[str, ...]
    """Names from `FILTERS`, drawn uniformly."""
    blur: float = 0.0
    """Chance of a Gaussian blur before shrinking."""
    blur_sigma: tuple[float, float] = (0.2, 0.8)
    """Its standard deviation in sharp pixels."""
    codec: float = 0.0
    """Chance of JPEG or WebP compression of the small picture."""
    quality: tuple[int, int] = (85, 98)
    """Its quality."""


PRESETS = {
    "author": Degradation(("bilinear", "bicubic", "area")),
    "clean": Degradation(("bilinear", "bicubic", "area", "lanczos"), blur=0.1, codec=0.25),
}
"""`author`: shrinking alone, as the original network was trained. `clean`: also slight blur and high-quality compression."""


def degrade(image: Image.Image, scale: int, preset: Degradation, rng: np.random.Generator) -> Image.Image:
    """Shrink an RGB image whose sides are multiples of `scale` to `1 / scale`, damaged as the preset says."""
    if rng.random() < preset.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*preset.blur_sigma)))
    image = shrink(image, scale, preset.filters[rng.integers(len(preset.filters))])
    if rng.random() < preset.codec:
        image = _compress(image, int(rng.integers(preset.quality[0], preset.quality[1] + 1)), rng)
    return image


def shrink(image: Image.Image, scale: int, method: str) -> Image.Image:
    """Shrink to exactly `1 / scale` with a filter of `FILTERS`. Raises ValueError where a side is no multiple of `scale`."""
    width, height = image.size
    if width % scale or height % scale:
        raise ValueError(f"picture of {width}x{height}; expected sides that are multiples of {scale}: crop it first")
    return image if scale == 1 else image.resize((width // scale, height // scale), FILTERS[method])


def _compress(image: Image.Image, quality: int, rng: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    if rng.random() < 0.5:
        image.save(file, "JPEG", quality=quality, subsampling=int(rng.choice([0, 2])))
    else:
        image.save(file, "WEBP", quality=quality, method=2)
    with Image.open(file) as decoded:
        return decoded.convert("RGB")
