"""Animated images: read the frames of a GIF, APNG, WebP or AVIF one by one, write GIF, APNG or WebP with the same durations and loop."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .image_io import ImageData, convert_frame, to_image
from .image_safety import image_errors, open_image, pillow_settings
from .metadata import save_options

ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "FLI")
"""Pillow's names of the animated formats. In other formats, frames are pages, sizes or layers."""
WRITTEN = ("PNG", "WEBP", "GIF")
"""Animated formats that can be written."""
GIF_COLORS = 255
"""Opaque colours in a GIF's palette; the remaining entry is the transparent one."""


@dataclass(frozen=True)
class Animation:
    """Timing and frame range of an animated image."""

    durations: list[float]
    """Duration of each frame in milliseconds."""
    plays: int
    """How often the animation is played; 0 means forever."""
    first: int
    """Index of the first frame. Before it there may be a still image for programs that do not show animations."""
    transparent: bool
    """Whether any frame has a transparent pixel."""


def read_animation(file: BinaryIO, name: str | Path) -> Animation | None:
    """Read the timing of an open animated image. Returns None for a still image. Raises the errors of `image_io.read_image`."""
    with image_errors(name, file), pillow_settings():
        image = open_image(file, name)
        if image.format not in ANIMATED or not getattr(image, "is_animated", False):
            return None
        first = int(bool(image.info.get("default_image")))
        durations, transparent = [], False
        loop = image.info.get("loop")
        for _ in _load_frames(image, first):
            durations.append(float(image.info.get("duration") or 0))
            transparent = transparent or (image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
        if len(durations) < 2:
            return None
        plays = int(loop or 0) if image.format != "GIF" else 1 if loop is None else loop and loop + 1
        return Animation(durations, plays, first, transparent)


def read_frames(file: BinaryIO, name: str | Path, animation: Animation) -> Iterator[ImageData]:
    """Yield the frames of an open animated image as they are displayed, one at a time."""
    with image_errors(name, file), pillow_settings():
        image = open_image(file, name)
    for index in range(animation.first, animation.first + len(animation.durations)):
        with image_errors(name, file), pillow_settings():
            image.seek(index)
            frame = convert_frame(image, name)
        yield frame


def _load_frames(image: Image.Image, first: int) -> Iterator[None]:
    """Load the frames of an image in place, from `first` to the last one."""
    for index in itertools.count(first):
        try:
            image.seek(index)
        except EOFError:
            return
        image.load()
        yield


def write_frames(frames: Iterable[ImageData], animation: Animation, file: BinaryIO, format: str, quality: int) -> None:
    """Write an animated image; `format` is one of `WRITTEN`, `quality` is as for `image_io.write_image`."""
    images = iter(frames)
    first = next(images)
    options: dict[str, Any] = {"save_all": True, "duration": [round(duration) for duration in animation.durations]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's long warnings about damaged metadata
        options |= save_options(first.carried, format, quality, first.color.shape[1::-1])
        if format == "GIF":
            options |= {} if animation.plays == 1 else {"loop": max(0, animation.plays - 1)}
            options |= {"disposal": 2} if animation.transparent else {}  # otherwise the frame before would show through
            to_frame = _to_gif_frame
        else:
            options["loop"] = animation.plays
            to_frame = _to_rgb_frame
        rest = [to_frame(image, animation.transparent) for image in images]  # a list: Pillow iterates over it twice
        to_frame(first, animation.transparent).save(file, format=format, append_images=rest, **options)


def _to_rgb_frame(image: ImageData, transparent: bool) -> Image.Image:
    return to_image(image).convert("RGBA" if transparent else "RGB")


def _to_gif_frame(image: ImageData, transparent: bool) -> Image.Image:
    """Quantise a frame to its own palette. Each pixel becomes fully transparent or fully opaque."""
    if not transparent:
        return _to_rgb_frame(image, False).quantize(GIF_COLORS + 1)
    rgba = _to_rgb_frame(image, True)
    clear = np.asarray(rgba)[..., 3] < 128
    quantized = rgba.convert("RGB").quantize(GIF_COLORS)
    indices = np.where(clear, GIF_COLORS, np.asarray(quantized)).astype(np.uint8)
    frame = Image.frombytes("P", rgba.size, indices.tobytes())
    palette = (quantized.getpalette() or [])[: 3 * GIF_COLORS]
    frame.putpalette(palette + [0] * (3 * (GIF_COLORS + 1) - len(palette)))
    frame.info["transparency"] = GIF_COLORS
    return frame
