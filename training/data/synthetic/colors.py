"""Colours in OKLCH, and the palettes of the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Tone:
    """A colour in OKLCH: lightness 0 to 1, chroma 0 to about 0.3, hue in degrees. Can be used as a flat paint."""

    lightness: float
    chroma: float = 0.0
    hue: float = 0.0

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self.rgb

    @property
    def rgb(self) -> np.ndarray:
        """`(3,)` float32 with integer values from 0 to 255, so that flat areas are exactly flat."""
        return _rgb(self.lightness, self.chroma, self.hue)

    def shade(self, amount: float = 0.14) -> Tone:
        """A darker tone with its hue shifted towards violet, as in cel shading."""
        turn = (290 - self.hue + 180) % 360 - 180
        return replace(self, lightness=self.lightness * (1 - amount), chroma=self.chroma * 1.1, hue=self.hue + 0.12 * turn)

    def light(self, amount: float = 0.4) -> Tone:
        """A tone part of the way to white."""
        return replace(self, lightness=self.lightness + (1 - self.lightness) * amount, chroma=self.chroma * (1 - amount / 2))


WHITE, BLACK = Tone(1.0), Tone(0.0)


@lru_cache(maxsize=4096)
def _rgb(lightness: float, chroma: float, hue: float) -> np.ndarray:
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    to_cones = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]])
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_linear @ (to_cones @ np.array([lightness, a, b])) ** 3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    color = np.rint(encoded * 255).astype(np.float32)
    color.flags.writeable = False
    return color


@dataclass(frozen=True)
class Palette:
    """The colours of one image."""

    skin: Tone
    hair: Tone
    iris: Tone
    cloth: Tone
    accent: Tone
    sky: Tone
    ink: Tone
    colored_ink: bool
    """Whether outlines are a dark tone of the shape's colour."""


def _natural_palette(rng: np.random.Generator, chroma: tuple[float, float], lightness: tuple[float, float]) -> Palette:
    def tone() -> Tone:
        return Tone(rng.uniform(*lightness), rng.uniform(*chroma), rng.uniform(0, 360))

    tan = Tone(rng.uniform(0.6, 0.8), rng.uniform(0.06, 0.09), rng.uniform(45, 65))
    black, brown = Tone(rng.uniform(0.22, 0.4), 0.03, rng.uniform(20, 290)), Tone(rng.uniform(0.4, 0.85), 0.09, rng.uniform(50, 95))
    hair = (black, brown, tone(), tone())
    return Palette(
        skin=Tone(rng.uniform(0.87, 0.96), rng.uniform(0.02, 0.06), rng.uniform(40, 70)) if rng.random() < 0.85 else tan,
        hair=hair[rng.integers(4)],
        iris=Tone(rng.uniform(0.5, 0.7), rng.uniform(0.08, 0.2), rng.uniform(0, 360)),
        cloth=Tone(rng.uniform(0.25, 0.97), rng.uniform(0.0, chroma[1]), rng.uniform(0, 360)),
        accent=tone(),
        sky=Tone(rng.uniform(0.6, 0.9), rng.uniform(0.04, 0.13), rng.uniform(205, 265) if rng.random() < 0.7 else rng.uniform(0, 360)),
        ink=Tone(rng.uniform(0.08, 0.28), rng.uniform(0, 0.05), rng.uniform(0, 360)),
        colored_ink=bool(rng.random() < 0.3),
    )


def _recolor(palette: Palette, change: Callable[[Tone], Tone]) -> Palette:
    tones = {name: change(value) for name, value in vars(palette).items() if isinstance(value, Tone)}
    return replace(palette, **tones)  # type: ignore[arg-type]


def _night_palette(rng: np.random.Generator) -> Palette:
    depth, hue = rng.uniform(0.45, 0.7), rng.uniform(230, 310)
    night = _recolor(_natural_palette(rng, (0.05, 0.15), (0.4, 0.8)), lambda t: Tone(t.lightness * depth, t.chroma * 0.7 + 0.02, hue))
    return replace(night, ink=Tone(0.08, 0.02, hue), iris=Tone(0.7, 0.15, rng.uniform(0, 360)), accent=Tone(0.8, 0.15, rng.uniform(0, 360)))


def grey_palette(rng: np.random.Generator) -> Palette:
    grey = _recolor(_natural_palette(rng, (0, 0), (0.2, 1.0)), lambda t: Tone(t.lightness))
    hair, cloth = (Tone(float(rng.choice([0.1, 0.55, 0.75, 0.98]))) for _ in range(2))
    return replace(grey, skin=WHITE, hair=hair, cloth=cloth, ink=BLACK, sky=Tone(rng.uniform(0.5, 1)), colored_ink=False)


PALETTES: tuple[tuple[float, Callable[[np.random.Generator], Palette]], ...] = (
    (0.40, lambda rng: _natural_palette(rng, (0.05, 0.14), (0.45, 0.85))),
    (0.22, lambda rng: _natural_palette(rng, (0.03, 0.08), (0.78, 0.95))),
    (0.20, lambda rng: _natural_palette(rng, (0.14, 0.26), (0.5, 0.85))),
    (0.12, _night_palette),
    (0.06, grey_palette),
)
"""Natural, pastel, saturated, night and grey, with their weights."""
