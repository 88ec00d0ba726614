"""Animated images: frames of a GIF, APNG, WebP or AVIF one by one, and a GIF, APNG or WebP of them with the same durations and loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .image_io import ImageData, convert_frame, open_image, own_settings, refusing_damage, to_image
from .metadata import save_options

ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "FLI")
"""Pillow's names of the formats whose frames are shown one after the other; those of others are pages, sizes or layers."""
WRITTEN = ("PNG", "WEBP", "GIF")
"""Those that are written."""
GIF_COLORS = 255
"""And one that is transparent."""


@dataclass(frozen=True)
class Animation:
    """How an animated image goes on from frame to frame."""

    durations: list[float]
    """Of each frame, in milliseconds."""
    plays: int
    """How often all frames are shown; 0 stands for ever."""
    first: int
    """The number of its first frame; before it there may be a still for programs that show no animation."""
    transparent: bool
    """Some frame is transparent somewhere."""


def read_animation(file: BinaryIO, name: str | Path) -> Animation | None:
    """What an open image is as an animation, or None where it is a still. Raises as `image_io.read_image`."""
    with refusing_damage(name, file), own_settings():
        image = open_image(file, name)
        if image.format not in ANIMATED or not getattr(image, "is_animated", False):
            return None
        first = int(bool(image.info.get("default_image")))
        durations, transparent = [], False
        loop = image.info.get("loop")
        for _ in _shown(image, first):
            durations.append(float(image.info.get("duration") or 0))
            transparent = transparent or (image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
        if len(durations) < 2:
            return None
        plays = int(loop or 0) if image.format != "GIF" else 1 if loop is None else loop and loop + 1
        return Animation(durations, plays, first, transparent)


def read_frames(file: BinaryIO, name: str | Path, animation: Animation) -> Iterator[ImageData]:
    """The frames of an open animated image as they are shown, one at a time."""
    with refusing_damage(name, file), own_settings():
        image = open_image(file, name)
    for number in range(animation.first, animation.first + len(animation.durations)):
        with refusing_damage(name, file), own_settings():
            image.seek(number)
            frame = convert_frame(image, name)
        yield frame


def _shown(image: Image.Image, first: int) -> Iterator[None]:
    number = first
    while True:
        try:
            image.seek(number)
        except EOFError:
            return
        image.load()
        number += 1
        yield


def write_frames(frames: Iterable[ImageData], animation: Animation, file: BinaryIO, format: str, quality: int) -> None:
    """Write an animated image; `format` is one of `WRITTEN`, `quality` that of `image_io.write_image`."""
    images = iter(frames)
    first = next(images)
    options: dict[str, Any] = {"save_all": True, "duration": [round(duration) for duration in animation.durations]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, at length
        options |= save_options(first.carried, format, quality, first.color.shape[1::-1])
        if format == "GIF":
            options |= {} if animation.plays == 1 else {"loop": max(0, animation.plays - 1)}
            options |= {"disposal": 2} if animation.transparent else {}  # or what was there before would show through
            make = _gif_frame
        else:
            options["loop"] = animation.plays
            make = _frame
        rest = [make(image, animation.transparent) for image in images]  # Pillow goes over them twice
        make(first, animation.transparent).save(file, format=format, append_images=rest, **options)


def _frame(image: ImageData, transparent: bool) -> Image.Image:
    return to_image(image).convert("RGBA" if transparent else "RGB")


def _gif_frame(image: ImageData, transparent: bool) -> Image.Image:
    """With a palette of its own; a pixel is transparent or not."""
    if not transparent:
        return _frame(image, False).quantize(GIF_COLORS + 1)
    rgba = _frame(image, True)
    clear = np.asarray(rgba)[..., 3] < 128
    indices = rgba.convert("RGB").quantize(GIF_COLORS)
    numbers = np.where(clear, GIF_COLORS, np.asarray(indices)).astype(np.uint8)
    frame = Image.frombytes("P", rgba.size, numbers.tobytes())
    palette = (indices.getpalette() or [])[: 3 * GIF_COLORS]
    frame.putpalette(palette + [0] * (3 * (GIF_COLORS + 1) - len(palette)))
    frame.info["transparency"] = GIF_COLORS
    return frame
