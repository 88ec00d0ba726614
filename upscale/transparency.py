"""Colour under transparency, where a network would see what nobody was meant to see."""

from __future__ import annotations

import numpy as np


def bleed(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour `(h, w, 3)` in which fully transparent pixels have that of near visible ones; equal to `color` where `alpha > 0`.

    A network looks at the surroundings of each pixel, and would mix in colours that nobody was meant to see.
    """
    return _filled(color, alpha) if (alpha > 0).any() else color


def _filled(color: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Pull-push: what has no weight is taken from the image at half the size, which is filled in the same way."""
    known = weight > 0
    if known.all():
        return color
    height, width = weight.shape
    odd = ((0, height % 2), (0, width % 2))
    weight = np.pad(weight, odd)
    sums, weights = _sum_of_blocks(np.pad(color, (*odd, (0, 0))) * weight[..., None]), _sum_of_blocks(weight)
    half = _filled(sums / np.where(weights > 0, weights, 1)[..., None], weights)
    return np.where(known[..., None], color, _doubled(_doubled(half, 0), 1)[:height, :width])


def _sum_of_blocks(array: np.ndarray) -> np.ndarray:
    return array[::2, ::2] + array[1::2, ::2] + array[::2, 1::2] + array[1::2, 1::2]


def _doubled(array: np.ndarray, axis: int) -> np.ndarray:
    """Twice as long along an axis, linearly interpolated."""
    array = np.moveaxis(array, axis, 0)
    before, after = np.concatenate([array[:1], array[:-1]]), np.concatenate([array[1:], array[-1:]])
    doubled = np.stack([0.75 * array + 0.25 * before, 0.75 * array + 0.25 * after], axis=1).reshape(-1, *array.shape[1:])
    return np.moveaxis(doubled, 0, axis)
