"""Anime-like images drawn from random numbers: an unlimited source of clean, sharp ground truth.

Shapes are polygons, and a pixel's coverage by a polygon is computed exactly: the limit of supersampling followed by an area filter. That
filter is one pixel wide and never negative, so an edge is done within one pixel and nothing rings, as the brushes of painting programs
draw; Lanczos would ring beside every line. It needs no large canvas either, and thin tapered lines keep their width to the last bit.

Reading order: `colors`, `shapes`, `paints`, the `sheet` that is drawn on, `motifs` (hair, eyes, heads, clothes, ...), `scenes`, `draw`.
Points are `(x, y)` in pixels of the scene, y down. A scene is at least as large as the image, which shows a part of it.
"""

from .scenes import SCENES, draw, draw_scene
from .shapes import coverage

__all__ = ["SCENES", "coverage", "draw", "draw_scene"]
