"""The canvas: renders polygons and masks to pixels, with clipping and an optional screentone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from .colors import BLACK, PALETTES, WHITE, Tone
from .paints import PATTERNS, Paint, Pattern, dots, lines
from .shapes import Shapes, box, coverage, edges, ribbon, taper

SMALLEST_SCENE = 320
"""Minimum side of a scene in pixels; in a smaller scene, lines would merge. Smaller images show a part of a scene."""


@dataclass
class Region:
    """A mask, 0 to 255, and its position."""

    left: int
    top: int
    mask: np.ndarray
    whole: bool = False
    """Whether the mask is 255 everywhere."""

    @property
    def right(self) -> int:
        return self.left + self.mask.shape[1]

    @property
    def bottom(self) -> int:
        return self.top + self.mask.shape[0]


class Sheet:
    """An image being drawn, with the random generator, palette and pen that all motifs share."""

    def __init__(self, rng: np.random.Generator, size: int, fonts: Sequence[str | Path] = ()):
        self.rng = rng
        self.size = size
        self.fonts = tuple(str(font) for font in fonts)
        self.extent = max(size * rng.uniform(1.0, 1.5), SMALLEST_SCENE)
        self.origin = rng.uniform(0, self.extent - size, 2)
        self.palette = PALETTES[self.choose([weight for weight, _ in PALETTES])][1](rng)
        self.pen = float(np.exp(rng.uniform(np.log(0.9), np.log(3.2))))
        self.screen: tuple[float, float, bool] | None = None
        """Pitch and angle of a screentone, and whether it is dots; None for colours."""
        self.image = Image.new("RGB", (size, size), (255, 255, 255))
        self._clip = Region(0, 0, np.full((size, size), 255, dtype=np.uint8), whole=True)

    # random numbers

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def integer(self, low: int, high: int) -> int:
        """A random integer from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choose(self, weights: Sequence[float]) -> int:
        return int(self.rng.choice(len(weights), p=np.divide(weights, sum(weights))))

    def tone(self) -> Tone:
        """A random tone of the palette for objects."""
        palette = self.palette
        return (palette.cloth, palette.accent, palette.hair, palette.sky, palette.iris, palette.cloth.light(0.7))[self.integer(0, 5)]

    def ink(self, around: Tone | None = None) -> Tone:
        """The ink for the outline of a shape with the tone `around`."""
        if around is None or not self.palette.colored_ink:
            return self.palette.ink
        return replace(around.shade(0.2), lightness=min(around.lightness * 0.5, 0.42), chroma=around.chroma * 1.1)

    def motif(self) -> Pattern:
        """A random fine pattern."""
        pitch = self.uniform(3.5, 14)
        return PATTERNS[self.integer(0, 3)](pitch, self.uniform(0, np.pi), pitch * self.uniform(0.15, 0.4))

    # drawing

    def fill(self, shapes: Shapes, paint: Paint, pattern: Pattern | None = None) -> None:
        """Paint polygons; where polygons of one call overlap, they are painted once."""
        start, end = edges(shapes)
        region = self._cover(start - self.origin, end - self.origin)
        if region is not None:
            self.blend(region, paint, pattern)

    def line(self, points: np.ndarray, width: float, tone: Tone, lean: float = 1.0, power: float = 0.6) -> None:
        """Draw tapered pen strokes along curves `(..., n, 2)`; `width` is a multiple of the pen's."""
        self.fill(ribbon(points, self.width(width) * taper(points.shape[-2], lean, power)), tone)

    def wire(self, points: np.ndarray, width: float, tone: Tone) -> None:
        """Draw strokes of constant width."""
        self.fill(ribbon(points, self.width(width)), tone)

    def outline(self, points: np.ndarray, width: float, tone: Tone) -> None:
        """Draw a closed pen stroke whose width varies once around."""
        swell = 1 + 0.35 * np.sin(np.linspace(0, 2 * np.pi, len(points), endpoint=False) + self.uniform(0, 6.3))
        self.fill(ribbon(points, self.width(width) * swell, closed=True), tone)

    def width(self, multiple: float) -> float:
        return float(np.clip(self.pen * multiple, 0.7, 6.0))

    def cel(self, points: np.ndarray, tone: Tone, width: float = 1.0) -> None:
        """Draw a flat shape with its outline."""
        self.fill(points, tone)
        self.outline(points, width, self.ink(tone))

    @contextmanager
    def clip(self, shapes: Shapes) -> Iterator[None]:
        """Restrict painting to the inside of polygons within the context."""
        start, end = edges(shapes)
        outer = self._clip
        region = self._cover(start - self.origin, end - self.origin)
        self._clip = self._apply_clip(region) if region is not None else Region(0, 0, np.zeros((0, 0), dtype=np.uint8))
        try:
            yield
        finally:
            self._clip = outer

    def background(self, paint: Paint, pattern: Pattern | None = None) -> None:
        self.fill(box(0, 0, self.extent, self.extent), paint, pattern)

    def blend(self, region: Region, paint: Paint, pattern: Pattern | None = None) -> None:
        region = self._apply_clip(region)
        if not region.mask.size:
            return
        height, width = region.mask.shape
        x = np.arange(region.left, region.left + width, dtype=np.float32)[None] + float(0.5 + self.origin[0])
        y = np.arange(region.top, region.top + height, dtype=np.float32)[:, None] + float(0.5 + self.origin[1])
        color = paint(x, y)
        if self.screen:
            color = _apply_screentone(color, x, y, *self.screen)
        mask = region.mask if pattern is None else _to_bytes(region.mask * pattern(x, y))
        color = np.rint(color).astype(np.uint8)
        source = tuple(color.tolist()) if color.ndim == 1 else Image.fromarray(np.broadcast_to(color, (height, width, 3)).copy())
        self.image.paste(source, (region.left, region.top, region.left + width, region.top + height), Image.fromarray(mask))

    def stamp(self, mask: Image.Image, x: float, y: float, paint: Paint) -> None:
        """Paint through a mask whose top left pixel is at `x, y`."""
        left, top = round(x - self.origin[0]), round(y - self.origin[1])
        self.blend(Region(left, top, np.asarray(mask)), paint)

    def _cover(self, start: np.ndarray, end: np.ndarray) -> Region | None:
        """The coverage of polygons within the clip's bounds; None if they are outside."""
        clip = self._clip
        left, top = np.maximum(np.floor(start.min(axis=0)), (clip.left, clip.top)).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(start.max(axis=0)), (clip.right, clip.bottom)).astype(int).tolist()
        if left >= right or top >= bottom:
            return None
        mask = coverage(start - (left, top), end - (left, top), bottom - top, right - left)
        return Region(left, top, _to_bytes(mask * 255))

    def _apply_clip(self, region: Region) -> Region:
        clip = self._clip
        left, top = max(region.left, clip.left), max(region.top, clip.top)
        right, bottom = max(left, min(region.right, clip.right)), max(top, min(region.bottom, clip.bottom))
        ours = region.mask[top - region.top : bottom - region.top, left - region.left : right - region.left]
        if clip.whole or not ours.size:
            return Region(left, top, ours)
        theirs = clip.mask[top - clip.top : bottom - clip.top, left - clip.left : right - clip.left]
        return Region(left, top, np.asarray(ImageChops.multiply(Image.fromarray(ours.copy()), Image.fromarray(theirs.copy()))))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return (values + 0.5).astype(np.uint8)


def _apply_screentone(color: np.ndarray, x: np.ndarray, y: np.ndarray, pitch: float, angle: float, dotted: bool) -> np.ndarray:
    """Convert to black ink on white paper: light and dark tones become flat, tones in between dots or lines of matching size."""
    grey = color[..., 0] / 255
    share = np.where(grey > 0.8, np.float32(0), 0.65 * (1 - grey)).astype(np.float32)
    if grey.ndim == 0 and not 0.35 < grey <= 0.8:
        return BLACK.rgb if share else WHITE.rgb
    tone = dots(pitch, angle, pitch * np.sqrt(share / math.pi)) if dotted else lines(pitch, angle, pitch * share)
    ink = np.where(grey < 0.35, np.float32(1), tone(x, y) * (share > 0))
    return np.broadcast_to((255 * (1 - ink))[..., None], (*ink.shape, 3))
