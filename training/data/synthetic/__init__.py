"""Procedurally generated anime-style images: an unlimited source of clean, sharp ground truth.

Shapes are polygons whose pixel coverage is computed exactly: the limit of supersampling followed by an area filter. That filter is one
pixel wide and never negative, so edges are one pixel wide without ringing, like the brushes of painting programs; Lanczos would ring at
every line. It does not need a large canvas either, and thin tapered lines keep their exact width.

Reading order: `colors`, `shapes`, `paints`, `sheet` (the canvas), `motifs` (hair, eyes, heads, clothes, ...), `scenes`.
Points are `(x, y)` in pixels of the scene, with y down. A scene is at least as large as the image, which shows a part of it.
"""

from .scenes import SCENES, draw, draw_scene
from .shapes import coverage

__all__ = ["SCENES", "coverage", "draw", "draw_scene"]
