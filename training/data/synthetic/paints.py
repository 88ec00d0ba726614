"""Paints and patterns to fill shapes with.

A paint maps pixel centres `x (1, w)`, `y (h, 1)` to colours `(h, w, 3)` or `(3,)`; a pattern maps them to coverage `(h, w)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .colors import Tone
from .shapes import rotate

Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]
Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Gradient:
    """A gradient from the first tone at `start` to the last at `end`, linear or radial."""

    tones: tuple[Tone, ...]
    start: tuple[float, float]
    end: tuple[float, float]
    radial: bool = False

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        (x0, y0), (dx, dy) = self.start, np.subtract(self.end, self.start)
        along = np.hypot(x - x0, y - y0) / np.hypot(dx, dy) if self.radial else ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)
        stops, colors = np.linspace(0, 1, len(self.tones)), np.stack([tone.rgb for tone in self.tones])
        return np.stack([np.interp(along, stops, channel) for channel in colors.T], axis=-1)


def _cell(value: np.ndarray, pitch: float) -> np.ndarray:
    """Signed distance to the nearest multiple of `pitch`."""
    return value - pitch * np.rint(value / pitch)


def dots(pitch: float, angle: float, radius: float | np.ndarray) -> Pattern:
    def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = (_cell(value, pitch) for value in rotate(x, y, angle))
        return np.clip(radius + 0.5 - np.sqrt(u * u + v * v), 0, 1)

    return pattern


def lines(pitch: float, angle: float, width: float | np.ndarray) -> Pattern:
    def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.clip(width / 2 + 0.5 - np.abs(_cell(rotate(x, y, angle)[0], pitch)), 0, np.minimum(1, width))

    return pattern


def crosshatch(pitch: float, angle: float, width: float) -> Pattern:
    first, second = lines(pitch, angle, width), lines(pitch, angle + np.pi / 2, width)
    return lambda x, y: np.maximum(first(x, y), second(x, y))


def checks(pitch: float, angle: float, _: float = 0) -> Pattern:
    """A checkerboard."""
    first, second = lines(2 * pitch, angle, pitch), lines(2 * pitch, angle + np.pi / 2, pitch)
    return lambda x, y: np.abs(first(x, y) - second(x, y))


def glow(x: float, y: float, radius: float, squash: float = 1.0) -> Pattern:
    """Coverage that fades out from a centre."""
    return lambda u, v: np.clip(1 - np.hypot(u - x, squash * (v - y)) / radius, 0, 1) ** 1.5


def translucent(share: float) -> Pattern:
    """Constant coverage, for a translucent paint."""
    return lambda x, y: np.asarray(share)


PATTERNS = (dots, lines, crosshatch, checks)
