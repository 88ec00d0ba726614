"""Fill in colour under fully transparent pixels, so that hidden colours do not leak into the result."""

from __future__ import annotations

import numpy as np


def bleed(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour `(h, w, 3)` in which fully transparent pixels take the colour of nearby visible ones; unchanged where `alpha > 0`.

    A network looks at the surroundings of each pixel, and would otherwise mix in colours that were never meant to be seen.
    """
    return _fill_gaps(color, alpha) if (alpha > 0).any() else color


def _fill_gaps(color: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Pull-push: pixels without weight are taken from the image at half the size, which is filled in the same way."""
    known = weight > 0
    if known.all():
        return color
    height, width = weight.shape
    odd = ((0, height % 2), (0, width % 2))
    weight = np.pad(weight, odd)
    sums, weights = _sum_2x2(np.pad(color, (*odd, (0, 0))) * weight[..., None]), _sum_2x2(weight)
    half = _fill_gaps(sums / np.where(weights > 0, weights, 1)[..., None], weights)
    return np.where(known[..., None], color, _upsample_2x(_upsample_2x(half, 0), 1)[:height, :width])


def _sum_2x2(array: np.ndarray) -> np.ndarray:
    return array[::2, ::2] + array[1::2, ::2] + array[::2, 1::2] + array[1::2, 1::2]


def _upsample_2x(array: np.ndarray, axis: int) -> np.ndarray:
    """Double the length along an axis by linear interpolation."""
    array = np.moveaxis(array, axis, 0)
    before, after = np.concatenate([array[:1], array[:-1]]), np.concatenate([array[1:], array[-1:]])
    doubled = np.stack([0.75 * array + 0.25 * before, 0.75 * array + 0.25 * after], axis=1).reshape(-1, *array.shape[1:])
    return np.moveaxis(doubled, 0, axis)
