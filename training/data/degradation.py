"""Degrade a sharp crop to the small image that is the network's input.

Steps in order, each with a probability: blur, downscale, sharpen, decoder noise, noise, codec, video codec. Everything is 8-bit RGB, as in
the pipelines that produce users' images. All filters downscale by the exact factor around the same centre, so a small image is never
shifted against its sharp one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from .video_codec import compress_roundtrip, video_still

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Degradation:
    """A preset: the downscaling filters and the probabilities of the other steps, in [0, 1]. Grey levels go from 0 to 255."""

    filters: tuple[str, ...]
    """Names from `FILTERS`, sampled uniformly."""
    blur: float = 0.0
    """Probability of a Gaussian blur before downscaling."""
    blur_sigma: tuple[float, float] = (0.2, 0.8)
    """Its standard deviation in sharp pixels."""
    sharpen: float = 0.0
    """Probability of an unsharp mask after downscaling, as websites and editors apply it."""
    decoder: float = 0.0
    """Probability of latent decoder artifacts: slight softness and a faint pattern that repeats every 8 pixels."""
    noise: float = 0.0
    """Probability of Gaussian noise, grey or coloured."""
    noise_level: tuple[float, float] = (1.0, 10.0)
    """Its standard deviation in levels."""
    codec: float = 0.0
    """Probability that the small image is compressed."""
    formats: tuple[str, ...] = ("JPEG", "WEBP")
    """Compression formats, sampled uniformly; JPEG with and without chroma subsampling."""
    quality: tuple[int, int] = (85, 98)
    """Range of the compression quality."""
    recompress: float = 0.0
    """Probability of an earlier compression at 1 to 1.4 times the small size."""
    video: float = 0.0
    """Probability that the image is a video still: compressed by a video codec at the end."""


CLEAN_FILTERS = ("bilinear", "bicubic", "area", "lanczos")

_WEB = Degradation(CLEAN_FILTERS, blur=0.1, sharpen=0.1, codec=0.8, quality=(40, 95), recompress=0.2)

PRESETS = {
    "author": Degradation(("bilinear", "bicubic", "area")),
    "clean": Degradation(CLEAN_FILTERS, blur=0.1, codec=0.25),
    "web": _WEB,
    "scan": Degradation(CLEAN_FILTERS, blur=0.8, blur_sigma=(0.5, 1.5), noise=0.8, codec=0.8, formats=("JPEG",), quality=(70, 95)),
    "video": replace(_WEB, video=1.0),
    "sd": Degradation(CLEAN_FILTERS, decoder=1.0, codec=0.1),
}
"""`author`: only downscaling, as the original network was trained. `clean`: also slight blur and high-quality compression. `web`: images
resized and compressed by websites. `scan`: scanned paper. `video`: `web` as video stills. `sd`: direct output of a latent decoder."""


def degrade(image: Image.Image, scale: int, preset: Degradation, rng: np.random.Generator) -> Image.Image:
    """Downscale an RGB image, whose sides are multiples of `scale`, to `1 / scale` and degrade it with a preset."""
    if rng.random() < preset.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*preset.blur_sigma)))
    if rng.random() < preset.recompress:
        image = _downscale_recompressed(image, scale, preset, rng)
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


def _downscale_recompressed(image: Image.Image, scale: int, preset: Degradation, rng: np.random.Generator) -> Image.Image:
    """Downscale in two steps with compression in between. Each step maps the whole image to the whole image, so nothing shifts.

    The area filter is not used: at fractional factors, Pillow's box filter takes whole pixels and shifts details by up to a third of one.
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
    return _add_levels(image, np.tile(pattern, repeats)[: image.height, : image.width])


def _noise(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    channels = 1 if rng.random() < 0.5 else 3
    return _add_levels(image, rng.normal(0, level, (image.height, image.width, channels)))


def _add_levels(image: Image.Image, levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(np.asarray(image) + levels, 0, 255)).astype(np.uint8))


def downscale(image: Image.Image, scale: int, method: str) -> Image.Image:
    """Downscale to exactly `1 / scale` with a filter of `FILTERS`. Raises ValueError if a side is not a multiple of `scale`."""
    width, height = image.size
    if width % scale or height % scale:
        raise ValueError(f"the image is {width}x{height}; expected sides that are multiples of {scale}: crop it first")
    return image if scale == 1 else image.resize((width // scale, height // scale), FILTERS[method])


def _compress(image: Image.Image, preset: Degradation, rng: np.random.Generator) -> Image.Image:
    quality, format = int(rng.integers(preset.quality[0], preset.quality[1] + 1)), preset.formats[rng.integers(len(preset.formats))]
    options = {"subsampling": int(rng.choice([0, 2]))} if format == "JPEG" else {"method": 2}
    return compress_roundtrip(image, format, quality=quality, **options)
