"""From a sharp crop to the small image that the network is given.

Steps in order: blur, downscale, sharpen, decoder noise, noise, codec, video codec, each with a chance. Everything is 8-bit RGB, as the
images that users bring have been made. All filters downscale by the exact factor around the same centre, so a small image is never
shifted against its sharp one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from .video_codec import saved, video_still

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Degradation:
    """A preset: which filters downscale, and how often what else happens. Chances are in [0, 1], levels of grey of 255."""

    filters: tuple[str, ...]
    """Names from `FILTERS`, drawn uniformly."""
    blur: float = 0.0
    """Chance of a Gaussian blur before downscaling."""
    blur_sigma: tuple[float, float] = (0.2, 0.8)
    """Its standard deviation in sharp pixels."""
    sharpen: float = 0.0
    """Chance of an unsharp mask after downscaling, as sites and editors apply it."""
    decoder: float = 0.0
    """Chance of what a latent decoder leaves: slight softness and a faint pattern that repeats every 8 pixels."""
    noise: float = 0.0
    """Chance of Gaussian noise, grey or coloured."""
    noise_level: tuple[float, float] = (1.0, 10.0)
    """Its standard deviation in levels."""
    codec: float = 0.0
    """Chance of compression of the small image."""
    formats: tuple[str, ...] = ("JPEG", "WEBP")
    """With which formats, drawn uniformly; JPEG with and without subsampled colour."""
    quality: tuple[int, int] = (85, 98)
    """Its quality."""
    again: float = 0.0
    """Chance that the image was compressed once before, 1 to 1.4 times larger than the small one."""
    video: float = 0.0
    """Chance that the image is a still of a video: compressed by a video codec at the end."""


CLEAN_FILTERS = ("bilinear", "bicubic", "area", "lanczos")

_WEB = Degradation(CLEAN_FILTERS, blur=0.1, sharpen=0.1, codec=0.8, quality=(40, 95), again=0.2)

PRESETS = {
    "author": Degradation(("bilinear", "bicubic", "area")),
    "clean": Degradation(CLEAN_FILTERS, blur=0.1, codec=0.25),
    "web": _WEB,
    "scan": Degradation(CLEAN_FILTERS, blur=0.8, blur_sigma=(0.5, 1.5), noise=0.8, codec=0.8, formats=("JPEG",), quality=(70, 95)),
    "video": replace(_WEB, video=1.0),
    "sd": Degradation(CLEAN_FILTERS, decoder=1.0, codec=0.1),
}
"""`author`: downscaling alone, as the original network was trained. `clean`: also slight blur and high-quality compression. `web`: images
saved and resized by sites. `scan`: paper. `video`: the same as stills of videos. `sd`: images straight out of a latent decoder."""


def degrade(image: Image.Image, scale: int, preset: Degradation, rng: np.random.Generator) -> Image.Image:
    """Downscale an RGB image whose sides are multiples of `scale` to `1 / scale`, damaged as the preset says."""
    if rng.random() < preset.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*preset.blur_sigma)))
    if rng.random() < preset.again:
        image = _saved_before(image, scale, preset, rng)
    else:
        image = downscale(image, scale, preset.filters[rng.integers(len(preset.filters))])
    if rng.random() < preset.sharpen:
        image = image.filter(ImageFilter.UnsharpMask(rng.uniform(0.5, 1.5), int(rng.integers(30, 100)), 2))
    if rng.random() < preset.decoder:
        image = _decoder_noise(image, rng)
    if rng.random() < preset.noise:
        image = _noise(image, rng.uniform(*preset.noise_level), rng)
    if rng.random() < preset.codec:
        image = _compress(image, preset, rng)
    if rng.random() < preset.video:
        image = video_still(image, rng.random())
    return image


def _saved_before(image: Image.Image, scale: int, preset: Degradation, rng: np.random.Generator) -> Image.Image:
    """Downscale in two steps with a compression in between; each goes from the whole image to the whole image, so nothing shifts.

    Not by area: by a factor that is no whole number, Pillow's box takes whole pixels and moves what is between them by up to a third.
    """
    smooth = [name for name in preset.filters if name != "area"] or ["bilinear"]
    factor = rng.uniform(0.7, 1.0)
    size = image.width // scale, image.height // scale
    between = max(1, round(size[0] / factor)), max(1, round(size[1] / factor))
    first, second = (FILTERS[smooth[rng.integers(len(smooth))]] for _ in range(2))
    return _compress(image.resize(between, first), preset, rng).resize(size, second)


def _decoder_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6)))
    pattern = rng.normal(0, rng.uniform(0.3, 1.5), (8, 8, 3))
    repeats = (-(-image.height // 8), -(-image.width // 8), 1)
    return _added(image, np.tile(pattern, repeats)[: image.height, : image.width])


def _noise(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    channels = 1 if rng.random() < 0.5 else 3
    return _added(image, rng.normal(0, level, (image.height, image.width, channels)))


def _added(image: Image.Image, levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(np.asarray(image) + levels, 0, 255)).astype(np.uint8))


def downscale(image: Image.Image, scale: int, method: str) -> Image.Image:
    """Downscale to exactly `1 / scale` with a filter of `FILTERS`. Raises ValueError where a side is no multiple of `scale`."""
    width, height = image.size
    if width % scale or height % scale:
        raise ValueError(f"image of {width}x{height}; expected sides that are multiples of {scale}: crop it first")
    return image if scale == 1 else image.resize((width // scale, height // scale), FILTERS[method])


def _compress(image: Image.Image, preset: Degradation, rng: np.random.Generator) -> Image.Image:
    quality, format = int(rng.integers(preset.quality[0], preset.quality[1] + 1)), preset.formats[rng.integers(len(preset.formats))]
    options = {"subsampling": int(rng.choice([0, 2]))} if format == "JPEG" else {"method": 2}
    return saved(image, format, quality=quality, **options)
