"""Shapes as arrays of points, and their pixel coverage.

A polygon is `(k, 2)`, polygons with the same number of points are stacked as `(m, k, 2)`, and others are in lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Shapes = np.ndarray | Sequence[np.ndarray]


@lru_cache(maxsize=256)
def _spline(count: int, steps: int, closed: bool) -> np.ndarray:
    """Weights `(samples, count)` of the Catmull-Rom curve through `count` points."""
    spans = count if closed else count - 1
    at = np.arange(spans * steps + (not closed)) / steps
    span = np.minimum(at.astype(int), spans - 1)
    t = (at - span)[:, None] ** np.arange(4)
    blend = t @ (np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2)
    weights = np.zeros((len(at), count))
    for tap in range(4):
        point = span + tap - 1
        point = point % count if closed else np.clip(point, 0, count - 1)
        np.add.at(weights, (np.arange(len(at)), point), blend[:, tap])
    return weights


def curve(points: Sequence | np.ndarray, steps: int = 10, closed: bool = False) -> np.ndarray:
    """Sample a smooth curve through the points `(..., count, 2)`."""
    points = np.asarray(points, dtype=np.float64)
    return _spline(points.shape[-2], steps, closed) @ points


def ribbon(spine: np.ndarray, width: np.ndarray | float, low: float = -0.5, high: float = 0.5, closed: bool = False) -> np.ndarray:
    """Polygons along curves `(..., n, 2)` that span `low` to `high` of the width `(..., n)` across the curve; by default all of it."""
    if closed:
        step = np.roll(spine, -1, axis=-2) - np.roll(spine, 1, axis=-2)
        spine, step = (np.concatenate([a, a[..., :1, :]], axis=-2) for a in (spine, step))
        width = np.append(width, width[0]) if isinstance(width, np.ndarray) else width
    else:
        step = np.gradient(spine, axis=-2)
    across = np.stack([-step[..., 1], step[..., 0]], axis=-1) / np.maximum(np.hypot(step[..., 0], step[..., 1]), 1e-9)[..., None]
    across = across * np.broadcast_to(width, spine.shape[:-1])[..., None]
    return np.concatenate([spine + low * across, (spine + high * across)[..., ::-1, :]], axis=-2)


def taper(count: int, lean: float = 1.0, power: float = 0.7) -> np.ndarray:
    """Widths of a pen stroke, thin at both ends; `lean` above 1 moves the thick part towards the end."""
    return np.sin(np.pi * np.linspace(0, 1, count) ** lean).clip(0) ** power


def pointed_widths(count: int, root: float = 0.6, belly: float = 0.35) -> np.ndarray:
    """Widths of a lock of hair or a blade of grass: `root` at the start, 1 at `belly`, 0 at the end."""
    t = np.linspace(0, 1, count)
    return np.where(t < belly, root + (1 - root) * np.sin(np.pi / 2 * t / belly), np.cos(np.pi / 2 * ((t - belly) / (1 - belly)).clip(0)))


def path(points: str) -> np.ndarray:
    """Parse points written as `x,y x,y ...`."""
    return np.array([point.split(",") for point in points.split()], dtype=np.float64)


def both_sides(half: np.ndarray) -> np.ndarray:
    """Make a symmetric outline from its right half."""
    return np.concatenate([half, half[::-1] * (-1, 1)])


def points(x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    return np.stack(np.broadcast_arrays(x, y), axis=-1)


def unit(angle: np.ndarray) -> np.ndarray:
    """Points on the unit circle."""
    return points(np.cos(angle), np.sin(angle))


def ellipse(x: float, y: float, rx: float, ry: float, count: int = 64) -> np.ndarray:
    return unit(np.linspace(0, 2 * np.pi, count, endpoint=False)) * (rx, ry) + (x, y)


def box(x0: float | np.ndarray, y0: float | np.ndarray, x1: float | np.ndarray, y1: float | np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = np.broadcast_arrays(x0, y0, x1, y1)
    return np.stack([points(x0, y0), points(x1, y0), points(x1, y1), points(x0, y1)], axis=-2).astype(np.float64)


def rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


@dataclass(frozen=True)
class Frame:
    """Maps an object's local coordinates to the scene."""

    x: float
    y: float
    scale: float
    angle: float = 0.0

    def __call__(self, points: Sequence | np.ndarray) -> np.ndarray:
        points = np.asarray(points, dtype=np.float64) * self.scale
        u, v = rotate(points[..., 0], points[..., 1], -self.angle)
        return np.stack([u + self.x, v + self.y], axis=-1)

    def inside(self, x: float, y: float, scale: float = 1.0) -> Frame:
        px, py = self((x, y))
        return Frame(float(px), float(py), self.scale * scale, self.angle)


def edges(shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends `(e, 2)` of all edges. All polygons get the same orientation, so that overlaps add up instead of cancelling out."""
    if isinstance(shapes, np.ndarray) and shapes.ndim == 2:
        shapes = shapes[None]
    groups = [shapes] if isinstance(shapes, np.ndarray) else [shape.reshape(-1, *shape.shape[-2:]) for shape in shapes]
    starts, ends = [], []
    for group in groups:
        after = np.roll(group, -1, axis=1)
        area = (group[..., 0] * after[..., 1] - after[..., 0] * group[..., 1]).sum(axis=1)[:, None, None]
        starts.append(np.where(area < 0, after, group).reshape(-1, 2))
        ends.append(np.where(area < 0, group, after).reshape(-1, 2))
    return np.concatenate(starts), np.concatenate(ends)


def _expand_ranges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every member of the ranges `low..high`, the index of its range, and the member."""
    counts = high - low
    index = np.repeat(np.arange(len(low)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts - low, counts)


def coverage(start: np.ndarray, end: np.ndarray, height: int, width: int) -> np.ndarray:
    """Coverage `(height, width)` of each pixel by closed polygons, 0 to 1, given their edges `(e, 2)`.

    Every edge is cut at rows and columns. A piece adds its height to all pixels on its right, and to its own pixel the part that is right
    of the piece; a cumulative sum along the rows does the former.
    """
    falls = end[:, 1] > start[:, 1]
    top, bottom = np.where(falls[:, None], start, end), np.where(falls[:, None], end, start)
    kept = (bottom[:, 1] > np.maximum(top[:, 1], 0)) & (top[:, 1] < height)
    top, bottom, sign = top[kept], bottom[kept], np.where(falls[kept], 1.0, -1.0)
    slope = (bottom[:, 0] - top[:, 0]) / (bottom[:, 1] - top[:, 1])

    first, last = np.clip(top[:, 1], 0, height), np.clip(bottom[:, 1], 0, height)
    edge, row = _expand_ranges(np.floor(first).astype(int), np.ceil(last).astype(int))
    above, below = np.maximum(first[edge], row), np.minimum(last[edge], row + 1)
    x0, x1 = (top[edge, 0] + (y - top[edge, 1]) * slope[edge] for y in (above, below))
    left, rise = np.minimum(x0, x1), (below - above) * sign[edge]
    right = np.where(np.abs(x1 - x0) > 1e-6, np.maximum(x0, x1), left)

    # column -1 is everything left of the image
    begin = np.maximum(np.floor(left), -1).astype(int)
    stop = np.clip(np.maximum(np.ceil(right), begin + 1), None, width).astype(int)
    piece, column = _expand_ranges(np.minimum(begin, stop), stop)
    left, right = left[piece], right[piece]
    near, far = np.where(column < 0, left, np.maximum(left, column)), np.minimum(right, column + 1)
    part = rise[piece] * np.where(right > left, (far - near) / np.maximum(right - left, 1e-6), 1)
    passed = np.where(column < 0, 1, (near + far) / 2 - column)
    index = row[piece] * (width + 2) + column + 1
    weights = np.concatenate([part * (1 - passed), part * passed])
    total = np.bincount(np.concatenate([index, index + 1]), weights, height * (width + 2)).reshape(height, width + 2)
    np.cumsum(total, axis=1, out=total)
    return np.minimum(np.abs(total, out=total), 1, out=total)[:, 1:-1]
