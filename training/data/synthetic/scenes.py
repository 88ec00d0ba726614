"""Scenes, which are whole images composed of motifs, and the random choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .colors import BLACK, WHITE, Tone, grey_palette
from .motifs import bow, clouds, draw_shaded, features, glyphs, head, lace, leaves, load_font, lock, text
from .paints import Gradient, crosshatch, glow, translucent
from .shapes import Frame, box, curve, ellipse, path, pointed_widths, points, ribbon, taper, unit
from .sheet import Sheet


def portrait(sheet: Sheet) -> None:
    """One to three figures in front of a background."""
    extent = sheet.extent
    backdrop(sheet)
    for i in range(count := sheet.choose((0, 6, 1, 1))):
        at = extent * (i + sheet.uniform(0.4, 0.6)) / count
        size = extent * sheet.uniform(0.2, 0.36) / (1, 1, 1.4, 1.8)[count]
        head(sheet, Frame(at, extent * sheet.uniform(0.38, 0.5), size, sheet.uniform(-0.22, 0.22)))
        sheet.palette = replace(sheet.palette, hair=sheet.tone(), cloth=sheet.tone())
    if sheet.chance(0.2):
        text(sheet, extent / 2, extent * 0.88, extent * sheet.uniform(0.05, 0.12), WHITE, sheet.palette.ink, sheet.uniform(-12, 12))


def close_eyes(sheet: Sheet) -> None:
    """Eyes that fill the image, with a fringe."""
    extent, skin = sheet.extent, sheet.palette.skin
    sheet.background(skin)
    frame = Frame(extent / 2, extent * sheet.uniform(0.4, 0.6), extent * sheet.uniform(0.7, 1.1), sheet.uniform(-0.3, 0.3))
    sheet.pen = max(sheet.pen, 1.4)
    features(sheet, frame.inside(0, -0.3), sheet.uniform(-0.4, 0.4))
    for x in np.linspace(-0.8, 0.8, sheet.integer(4, 9)) + sheet.uniform(-0.1, 0.1):
        spine = curve(frame([(x * 0.4, -1.3), (x * 0.8, -0.8), (x, -0.4), (x + sheet.uniform(-0.15, 0.15), sheet.uniform(-0.3, 0.1))]))
        lock(sheet, spine, frame.scale * sheet.uniform(0.12, 0.3), sheet.palette.hair, 0.8)


def flowing_hair(sheet: Sheet) -> None:
    """Long strands flowing in one direction."""
    extent, tone = sheet.extent, sheet.palette.hair
    sheet.background(tone.shade(0.3) if sheet.chance(0.6) else sheet.palette.sky)
    frame = Frame(extent / 2, extent / 2, extent, sheet.uniform(0, 2 * np.pi))
    current = points(np.linspace(-0.9, 0.9, 6), np.cumsum(sheet.rng.normal(0, 0.12, 6)))
    count = sheet.integer(14, 28)
    for offset in sheet.rng.permutation(np.linspace(-0.75, 0.75, count)):
        drift = offset * np.linspace(0.5, 1.0, 6) + sheet.rng.normal(0, 0.02, 6)
        spine = current + points(np.full(6, sheet.uniform(-0.25, 0.1)), drift)
        lock(sheet, curve(frame(spine), 14), extent * sheet.uniform(0.05, 0.16), tone.shade(float(sheet.rng.choice([0.0, 0.07, 0.14]))))
    for _ in range(sheet.integer(0, 2)):
        across = sheet.uniform(-0.5, 0.5)
        strands = current + points(np.zeros((12, 6)), across + sheet.rng.normal(0, 0.06, (12, 1)))
        sheet.line(curve(frame(strands), 14)[:, 14:], 0.6, tone.light(0.5))


def garment(sheet: Sheet) -> None:
    """Pleats with patterns, folds, seams and lace."""
    extent, cloth = sheet.extent, sheet.palette.cloth
    sheet.background(sheet.palette.sky)
    frame = Frame(extent / 2, extent * 0.1, extent, sheet.uniform(-0.4, 0.4))
    count, flare, hem = sheet.integer(4, 12), sheet.uniform(1.1, 2.0), sheet.uniform(0.5, 0.85)
    edges = np.sort(np.linspace(-0.4, 0.4, count + 1) + sheet.rng.uniform(-0.15, 0.15, count + 1) / count)
    motif, detail = sheet.motif() if sheet.chance(0.6) else None, sheet.tone()
    top, bottom = points(edges, 0.0), points(edges * flare, hem + 0.03 * np.cos(np.arange(count + 1) * np.pi))
    for i in range(count):
        pleat = frame([top[i], top[i + 1], bottom[i + 1], bottom[i]])
        sheet.fill(pleat, cloth)
        if motif:
            sheet.fill(pleat, detail, motif)
        fold = frame([top[i], (top[i] + top[i + 1]) / 2, bottom[i] * 0.55 + bottom[i + 1] * 0.45, bottom[i]])
        sheet.fill(fold, (detail if motif else cloth).shade(0.2), translucent(0.45) if motif else None)
        sheet.line(frame(np.stack([top[i], (top[i] + bottom[i]) / 2, bottom[i]])), 1.2, sheet.ink(cloth), 0.6)
    if sheet.chance(0.7):
        lace(sheet, frame(bottom), extent * sheet.uniform(0.015, 0.04), WHITE if cloth.lightness < 0.9 else sheet.palette.accent)
    sheet.cel(frame(box(-0.42, -0.06, 0.42, 0.02)), detail.shade())
    buttons = frame(points(np.linspace(-0.35, 0.35, 7), -0.02))[:, None] + ellipse(0, 0, 1, 1, 20) * extent * 0.012
    sheet.fill(buttons, sheet.palette.accent)
    if sheet.chance(0.6):
        bow(sheet, frame.inside(sheet.uniform(-0.2, 0.2), 0.02, sheet.uniform(0.1, 0.25)))


def sky(sheet: Sheet) -> None:
    """A flat or graduated sky with clouds, a sun, or stars."""
    extent, tone = sheet.extent, sheet.palette.sky
    smooth = Gradient((tone.shade(), tone, tone.light(0.6)), (0, 0), (sheet.uniform(-0.2, 0.2) * extent, extent))
    sheet.background(tone if sheet.chance(0.2) else smooth)
    if tone.lightness < 0.5 or sheet.chance(0.15):
        centre = sheet.rng.uniform(0, extent, (sheet.integer(40, 200), 1, 2))
        radius = np.exp(sheet.rng.uniform(-0.8, 1.2, (len(centre), 1, 1)))
        sheet.fill(ellipse(0, 0, 1, 1, 16) * radius + centre, WHITE)
        spark = unit(np.arange(8) * np.pi / 4) * np.where(np.arange(8) % 2, 0.18, 1.0)[:, None]
        sheet.fill(spark * (3 + 5 * radius[:12]) + centre[:12], WHITE)
    if sheet.chance(0.5):
        x, y, r = *sheet.rng.uniform(0.1, 0.9, 2) * extent, extent * sheet.uniform(0.04, 0.15)
        if sheet.chance(0.5):
            sheet.fill(ellipse(x, y, 2.5 * r, 2.5 * r), tone.light(0.85), glow(x, y, 2.5 * r))
        sheet.fill(ellipse(x, y, r, r, 96), tone.light(0.9))
    if sheet.chance(0.7):
        clouds(sheet, extent)


def landscape(sheet: Sheet) -> None:
    """Hills, trees and grass, sometimes with rain or petals."""
    sky(sheet)
    extent = sheet.extent
    ground = Tone(sheet.palette.sky.lightness * 0.8, 0.11 if sheet.palette.sky.chroma else 0, sheet.uniform(110, 170))
    for layer in range(3):
        level = extent * (0.5 + 0.13 * layer)
        ridge = curve(points(np.linspace(-0.1, 1.1, 9) * extent, level + sheet.rng.normal(0, extent * 0.035, 9)))
        tone = replace(ground, lightness=ground.lightness * (1.1 - 0.17 * layer), hue=220 - (220 - ground.hue) * (layer + 1) / 3)
        sheet.fill(np.concatenate([ridge, [(extent * 1.2, extent * 1.2), (-extent * 0.2, extent * 1.2)]]), tone)
        if sheet.chance(0.5):
            sheet.line(ridge, 1.0, sheet.ink(tone))
    for _ in range(sheet.integer(1, 4)):
        x, y, size = sheet.uniform(0, extent), extent * sheet.uniform(0.75, 0.95), extent * sheet.uniform(0.12, 0.3)
        trunk = curve([(x, y), (x + 0.02 * size, y - size), (x - 0.1 * size, y - 1.8 * size)])
        sheet.fill(ribbon(trunk, size * 0.18 * np.linspace(1, 0.4, len(trunk))), Tone(0.35, 0.05 if ground.chroma else 0, 50))
        leaves(sheet, x, y - 1.9 * size, size, ground)
    n = sheet.integer(100, 400)
    root = points(sheet.rng.uniform(0, extent, n), extent * sheet.rng.uniform(0.85, 1.1, n))
    rise = points(sheet.rng.normal(0, 0.03, n), -sheet.rng.uniform(0.05, 0.14, n)) * extent
    blades = curve(np.stack([root, root + rise * (0.3, 0.6), root + rise], axis=1), 4)
    for part, tone in enumerate((ground.shade(0.3), ground.shade(0.1), ground.light(0.2))):
        sheet.fill(ribbon(blades[part::3], extent * 0.011 * pointed_widths(blades.shape[1], 0.7)), tone)
    if sheet.chance(0.35):
        rain(sheet)


def rain(sheet: Sheet) -> None:
    """Parallel thin strokes, or petals."""
    n, extent = sheet.integer(60, 250), sheet.extent
    at = sheet.rng.uniform(-0.1, 1.1, (n, 1, 2)) * extent
    lean = np.array([sheet.uniform(-0.3, 0.3), 1.0])
    if sheet.chance(0.6):
        strokes = at + lean * sheet.rng.uniform(0.03, 0.15, (n, 1, 1)) * extent * np.linspace(0, 1, 5)[:, None]
        sheet.fill(ribbon(strokes, sheet.uniform(0.8, 2.0) * taper(5)), sheet.palette.sky.light(0.75))
    else:
        turn = sheet.rng.uniform(0, 6.3, n)
        petals = at + unit(turn)[:, None] * extent * 0.014 * np.linspace(-1, 1, 9)[:, None]
        sheet.fill(ribbon(petals, extent * 0.014 * taper(9, 0.7, 0.6)), Tone(0.88, 0.07 if sheet.palette.sky.chroma else 0, 5))


def quad(corners: np.ndarray, x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> np.ndarray:
    """Map boxes in [0, 1]² into a quadrilateral `(4, 2)`: top left, top right, bottom right, bottom left."""
    unit = box(x0, y0, x1, y1)
    x, y = unit[..., :1], unit[..., 1:]
    return (corners[0] * (1 - x) + corners[1] * x) * (1 - y) + (corners[3] * (1 - x) + corners[2] * x) * y


def wall(sheet: Sheet, corners: np.ndarray, tone: Tone, floors: int, bays: int) -> None:
    """A facade with rows of windows, some of which are lit."""
    sheet.fill(corners, tone)
    row, column = (grid.ravel() for grid in np.meshgrid(np.arange(floors), np.arange(bays), indexing="ij"))
    gap, dark = sheet.uniform(0.12, 0.3), sheet.palette.sky.lightness < 0.5
    panes = quad(corners, (column + gap) / bays, (row + gap) / floors, (column + 1 - gap) / bays, (row + 1 - gap) / floors)
    lit = sheet.rng.random(len(panes)) < (0.45 if dark else 0.15)
    glass, lamp = (tone.shade(0.45), Tone(0.88, 0.1 if tone.chroma else 0, 85)) if dark else (sheet.palette.sky.shade(0.3), WHITE)
    for chosen, pane in ((~lit, glass), (lit, lamp)):
        if chosen.any():
            sheet.fill(panes[chosen], pane)
    if sheet.chance(0.5):
        bars = quad(corners, (column + 0.47) / bays, (row + gap) / floors, (column + 0.53) / bays, (row + 1 - gap) / floors)
        sheet.fill(bars, tone.shade(0.2))
    if sheet.chance(0.5):
        ledge = np.arange(1, floors) / floors
        sheet.fill(quad(corners, 0 * ledge, ledge - 0.1 / floors, 0 * ledge + 1, ledge), tone.light(0.4))
    sheet.wire(corners[[0, 1, 2, 3, 0]], 0.8, sheet.ink(tone))


def city(sheet: Sheet) -> None:
    """Buildings in two-point perspective, with wires and sometimes a fence."""
    sky(sheet)
    extent = sheet.extent
    horizon = extent * sheet.uniform(0.6, 0.85)
    vanish = np.array([sheet.uniform(0.2, 0.8) * extent, horizon])
    sheet.fill(box(0, horizon, extent, extent), sheet.palette.sky.shade(0.45))
    for depth in np.sort(sheet.rng.uniform(0.05, 0.75, sheet.integer(4, 9))):
        side = 1 if sheet.chance(0.5) else -1
        x, height = side * extent * sheet.uniform(0.15, 0.55), extent * sheet.uniform(0.35, 1.3)
        near = vanish + np.array([[x, -height], [x, extent * 0.35]]) * (depth + 0.1)
        inner = vanish + (near - vanish) * sheet.uniform(0.45, 0.75)
        outer = near + (side * extent * depth * sheet.uniform(0.4, 0.8), 0)
        tone = sheet.tone()
        tone = replace(tone, chroma=tone.chroma * 0.5, lightness=tone.lightness * 0.5 + sheet.palette.sky.lightness * 0.4)
        floors = sheet.integer(4, 16)
        wall(sheet, np.array([near[0], outer[0], outer[1], near[1]]), tone, floors, sheet.integer(2, 9))
        wall(sheet, np.array([inner[0], near[0], near[1], inner[1]]), tone.shade(0.25), floors, sheet.integer(2, 8))
    street = Tone(sheet.palette.sky.lightness * 0.6, 0.01 if sheet.palette.sky.chroma else 0, 260)
    sheet.fill(vanish + path("-0.02,0 0.02,0 1,0.7 -1,0.7") * extent, street)
    sheet.fill(vanish + path("-0.003,0.1 0.003,0.1 0.02,0.7 -0.02,0.7") * extent, WHITE)
    for _ in range(sheet.integer(0, 5)):
        y = sheet.rng.uniform(0, 0.5, 3) * extent
        sheet.wire(curve([(0, y[0]), (extent / 2, y.mean() + 0.06 * extent), (extent, y[1])], 20), 0.8, sheet.palette.ink)
    if sheet.chance(0.4):
        fence(sheet)


def fence(sheet: Sheet) -> None:
    """Wire mesh or bars along the lower part."""
    extent, tone = sheet.extent, sheet.palette.ink if sheet.chance(0.5) else sheet.palette.cloth.light(0.5)
    top, pitch = extent * sheet.uniform(0.5, 0.75), sheet.uniform(6, 22)
    if sheet.chance(0.5):
        sheet.fill(box(0, top, extent, extent), tone, crosshatch(pitch, np.pi / 4, sheet.uniform(0.8, 2)))
    else:
        x = np.arange(0, extent, pitch)
        sheet.fill(box(x, top, x + pitch * sheet.uniform(0.15, 0.4), extent), tone)
    y = np.array([top, (top + extent) / 2])
    sheet.fill(box(0, y, extent, y + sheet.uniform(2, 6)), tone)


def room(sheet: Sheet) -> None:
    """A bookshelf, a window with curtains, and floorboards in perspective."""
    extent, wall_tone = sheet.extent, sheet.palette.sky.light(0.4)
    sheet.background(wall_tone)
    if sheet.chance(0.5):
        sheet.background(wall_tone.shade(0.06), sheet.motif())
    floor = extent * sheet.uniform(0.65, 0.85)
    boards = np.linspace(-3, 4, sheet.integer(20, 40)) * extent
    wood = Tone(sheet.palette.sky.lightness * 0.75, 0.06 if sheet.palette.sky.chroma else 0, 65)
    sheet.fill(box(0, floor, extent, extent * 1.1), wood)
    seams = np.stack([points(extent / 2 + (boards - extent / 2) * 0.3, floor), points(boards, extent * 1.3)], axis=1)
    sheet.wire(seams, 0.7, wood.shade(0.3))
    x, width = extent * sheet.uniform(0.02, 0.5), extent * sheet.uniform(0.3, 0.5)
    rows = sheet.integer(3, 6)
    sheet.cel(box(x, floor - rows * 0.13 * extent - 8, x + width, floor), wood.shade(0.35))
    for row in range(rows):
        base = floor - row * 0.13 * extent - 5
        left = x + 5 + np.cumsum(sheet.rng.uniform(0.008, 0.03, 60)) * extent
        left = left[left < x + width - 5]
        tall = extent * sheet.rng.uniform(0.07, 0.115, len(left) - 1)
        books, kind = box(left[:-1], base - tall, left[1:] - 0.8, base), sheet.rng.integers(0, 4, len(left) - 1)
        bands = box(left[:-1], base - tall * 0.8, left[1:] - 0.8, base - tall * 0.7)
        for part in range(4):
            if (kind == part).any():
                tone = sheet.tone()
                sheet.fill(books[kind == part], tone)
                sheet.fill(bands[kind == part], tone.light(0.7))
        sheet.wire(books[:, [0, 1, 2, 3, 0]], 0.6, sheet.palette.ink)
    _window(sheet, box(extent * 0.6, extent * 0.12, extent * 0.92, extent * 0.52))
    if sheet.chance(0.6):
        head(sheet, Frame(extent * sheet.uniform(0.3, 0.7), extent * 0.62, extent * sheet.uniform(0.14, 0.25), sheet.uniform(-0.2, 0.2)))


def _window(sheet: Sheet, frame: np.ndarray) -> None:
    with sheet.clip(frame):
        sky(sheet)
    (x0, y0), (x1, y1) = frame[0], frame[2]
    bars = [np.array([[x, y0], [x, y1]]) for x in np.linspace(x0, x1, sheet.integer(2, 5))]
    bars += [np.array([[x0, y], [x1, y]]) for y in np.linspace(y0, y1, sheet.integer(2, 4))]
    sheet.fill(ribbon(np.stack(bars), 7.0), sheet.ink(sheet.palette.cloth))
    sheet.fill(ribbon(np.stack(bars), 5.0), WHITE)
    for x in np.arange(x0 - 0.06 * sheet.extent, x0 + 0.06 * sheet.extent, 0.02 * sheet.extent):
        fold = curve([(x, y0 - 12), (x + 4, (y0 + y1) / 2), (x - 3, y1 + 20)])
        sheet.fill(ribbon(fold, 0.02 * sheet.extent), sheet.palette.accent.shade(0.16 if sheet.chance(0.5) else 0))
        sheet.line(fold, 0.7, sheet.ink(sheet.palette.accent))


def shapes(sheet: Sheet) -> None:
    """Cel-shaded shapes, flat, patterned or with gradients, and loose pen strokes."""
    plain(sheet)
    for _ in range(sheet.integer(5, 14)):
        x, y, r = *sheet.rng.uniform(0, sheet.extent, 2), sheet.extent * float(np.exp(sheet.uniform(np.log(0.05), np.log(0.35))))
        form, tone = _form(sheet, Frame(x, y, r, sheet.uniform(0, 2 * np.pi))), sheet.tone()
        draw_shaded(sheet, form, tone, r)
        with sheet.clip(form):
            if sheet.chance(0.4):
                sheet.fill(form, tone.light(0.6) if sheet.chance(0.5) else sheet.tone(), sheet.motif())
            elif sheet.chance(0.4):
                sheet.fill(form, Gradient((tone.light(0.5), tone, tone.shade(0.3)), (x, y), (x + r, y + r), sheet.chance(0.5)))
        sheet.outline(form, 1.3, sheet.ink(tone))
    for _ in range(sheet.integer(2, 10)):
        path = sheet.rng.uniform(0, 1, 2) + np.cumsum(sheet.rng.normal(0, 0.13, (5, 2)), axis=0)
        sheet.line(curve(path * sheet.extent, 16), sheet.uniform(0.6, 2.5), sheet.palette.ink if sheet.chance(0.6) else sheet.tone())


def _form(sheet: Sheet, frame: Frame) -> np.ndarray:
    """A blob, a star, a heart, a box or a gem."""
    spokes, kind = ellipse(0, 0, 1, 1, 10), sheet.choose((4, 2, 1, 2, 1))
    if kind == 0:
        return curve(frame(spokes * sheet.rng.uniform(0.55, 1.3, (10, 1))), closed=True)
    if kind == 1:
        return _subdivide(frame(spokes * np.where(np.arange(10) % 2, sheet.uniform(0.35, 0.6), 1.0)[:, None]))
    if kind == 2:
        t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        return frame(np.stack([np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16], axis=-1))
    return _subdivide(frame(box(-1, -sheet.uniform(0.1, 1), 1, sheet.uniform(0.1, 1)) if kind == 3 else spokes[::2]))


def _subdivide(corners: np.ndarray, count: int = 12) -> np.ndarray:
    """Add points along the sides of a polygon."""
    t = np.arange(count)[:, None] / count
    return np.concatenate([a * (1 - t) + b * t for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)])


def lettering(sheet: Sheet) -> None:
    """Words of many sizes in front of a background."""
    backdrop(sheet)
    for _ in range(sheet.integer(6, 20)):
        x, y = sheet.rng.uniform(0.1, 0.9, 2) * sheet.extent
        size = sheet.extent * float(np.exp(sheet.uniform(np.log(0.02), np.log(0.2))))
        angle = sheet.uniform(-40, 40) if sheet.chance(0.4) else 0.0
        text(sheet, x, y, size, sheet.tone(), sheet.palette.ink if sheet.chance(0.5) else WHITE, angle)
    for x, y in sheet.rng.uniform(0.05, 0.7, (sheet.integer(1, 3), 2)) * sheet.extent:
        glyphs(sheet, x, y, sheet.uniform(8, 24), sheet.integer(2, 6), sheet.integer(3, 10), sheet.palette.ink)


def burst(sheet: Sheet) -> None:
    """Focus lines towards a point or speed lines."""
    extent, n = sheet.extent, sheet.integer(60, 220)
    width = sheet.rng.uniform(0.5, 2.5, (n, 1)) * max(1.2, extent / 250)
    if sheet.chance(0.6):
        near = sheet.rng.uniform(0.22, 0.5, (n, 1, 1))
        rays = unit(sheet.rng.uniform(0, 2 * np.pi, (n, 1))) * (near + (1.2 - near) * np.linspace(1, 0, 5)[:, None])
        strokes = (0.5 + rays) * extent
    else:
        start, length = sheet.rng.uniform(-0.2, 1.2, (n, 1, 2)), sheet.rng.uniform(0.2, 0.9, (n, 1, 1))
        strokes = (start + unit(np.array(sheet.uniform(-0.3, 0.3))) * length * np.linspace(0, 1, 5)[:, None]) * extent
    sheet.fill(ribbon(strokes, width * np.linspace(1.6, 0, 5)), sheet.palette.ink if sheet.chance(0.7) else WHITE)


def plain(sheet: Sheet) -> None:
    """A flat tone or a gradient, sometimes with a pattern."""
    tone, extent = sheet.palette.sky if sheet.chance(0.6) else sheet.tone(), sheet.extent
    middle, radial = (extent * sheet.uniform(0.2, 0.8), extent * sheet.uniform(0.2, 0.8)), sheet.chance(0.5)
    other = tone.shade(sheet.uniform(0.05, 0.4)) if sheet.chance(0.7) else sheet.tone()
    paints = (WHITE, tone, Gradient((tone, other), middle, (extent, extent), radial))
    sheet.background(paints[sheet.choose((15, 35, 50))])
    if sheet.chance(0.35):
        sheet.background(tone.light(0.35), sheet.motif())


def backdrop(sheet: Sheet) -> None:
    """A background for figures or words."""
    (plain, sky, landscape, city)[sheet.choose((9, 2, 2, 2))](sheet)
    if sheet.chance(0.15):
        burst(sheet)


def bubble(sheet: Sheet, x: float, y: float, rx: float, ry: float) -> None:
    """A round or spiky speech bubble with writing."""
    shape = ellipse(x, y, rx, ry, 48)
    if sheet.chance(0.3):
        forms = [_subdivide((x, y) + (shape - (x, y)) * np.where(np.arange(48) % 2, 1.0, sheet.rng.uniform(0.7, 0.85, 48))[:, None], 4)]
    else:
        tip = x + rx * sheet.uniform(-0.8, 0.8)
        forms = [shape, _subdivide(np.array([(x - rx * 0.2, y + ry * 0.8), (tip, y + ry * 1.5), (x + rx * 0.15, y + ry * 0.8)]))]
    for form in forms:
        sheet.outline(form, 2.0, BLACK)
    sheet.fill(forms, WHITE)
    size = max(6.0, min(rx, ry) * sheet.uniform(0.16, 0.3))
    columns, rows = max(1, int(rx * 1.1 / size / 1.15)), max(1, int(ry * 1.2 / size / 1.15))
    if sheet.chance(0.5):
        glyphs(sheet, x - columns * size * 0.57, y - rows * size * 0.57, size, rows, columns, BLACK)
    else:
        for row in range(rows):
            text(sheet, x, y + (row - (rows - 1) / 2) * size * 1.15, size, BLACK)


def panels(sheet: Sheet, x0: float, y0: float, x1: float, y1: float, depth: int) -> list[np.ndarray]:
    """Divide a page by slanted gutters."""
    if depth == 0 or min(x1 - x0, y1 - y0) < sheet.extent * 0.3:
        return [box(x0, y0, x1, y1) + sheet.rng.uniform(-2.5, 2.5, (4, 2)) * sheet.chance(0.5)]
    at, gutter = sheet.uniform(0.35, 0.65), sheet.extent * 0.012
    if y1 - y0 > x1 - x0 or sheet.chance(0.4):
        cut = y0 + (y1 - y0) * at
        return panels(sheet, x0, y0, x1, cut - gutter, depth - 1) + panels(sheet, x0, cut + gutter, x1, y1, depth - 1)
    cut = x0 + (x1 - x0) * at
    return panels(sheet, x0, y0, cut - gutter, y1, depth - 1) + panels(sheet, cut + gutter, y0, x1, y1, depth - 1)


def manga(sheet: Sheet) -> None:
    """A black-and-white page: panels, screentone, bubbles, focus lines."""
    sheet.palette = grey_palette(sheet.rng)
    if sheet.chance(0.8):
        sheet.screen = (sheet.uniform(2.8, 7.5), sheet.uniform(0.2, 1.2), sheet.chance(0.8))
    sheet.pen = min(sheet.pen, 2.0)
    edge = sheet.extent * 0.03
    for panel in panels(sheet, edge, edge, sheet.extent - edge, sheet.extent - edge, sheet.integer(0, 3)):
        (x0, y0), (x1, y1) = panel.min(axis=0), panel.max(axis=0)
        with sheet.clip(panel):
            peopled = sheet.chance(0.8)
            if not peopled or sheet.chance(0.5):
                backdrop(sheet)
            if peopled:
                x, size = (x0 + x1) / 2 + sheet.uniform(-0.2, 0.2) * (x1 - x0), min(x1 - x0, y1 - y0) * sheet.uniform(0.3, 0.55)
                head(sheet, Frame(x, y0 * 0.45 + y1 * 0.55, size, sheet.uniform(-0.2, 0.2)))
            if sheet.chance(0.3):
                text(sheet, sheet.uniform(x0, x1), sheet.uniform(y0, y1), (y1 - y0) * 0.3, WHITE, BLACK, sheet.uniform(-30, 30))
        sheet.wire(panel[[0, 1, 2, 3, 0, 1]], 1.6, BLACK)
        if sheet.chance(0.7):
            rx, ry = (x1 - x0) * sheet.uniform(0.12, 0.2), (y1 - y0) * sheet.uniform(0.1, 0.2)
            bubble(sheet, sheet.uniform(x0 + rx, x1 - rx), y0 + ry * 1.3, rx, ry)


SCENES: dict[str, tuple[float, Callable[[Sheet], None]]] = {
    "portrait": (0.30, portrait),
    "eyes": (0.08, close_eyes),
    "hair": (0.09, flowing_hair),
    "garment": (0.07, garment),
    "manga": (0.16, manga),
    "city": (0.07, city),
    "landscape": (0.07, landscape),
    "room": (0.06, room),
    "shapes": (0.06, shapes),
    "lettering": (0.05, lettering),
}
"""All scenes, with their weights in the random choice."""


def draw(rng: np.random.Generator, size: int = 512, fonts: Sequence[str | Path] = ()) -> np.ndarray:
    """Draw a random scene as `(size, size, 3)` uint8; with the same Pillow and numpy, the same generator state gives the same image.

    `fonts` are font files for lettering; by default, Pillow's own font is used. Raises ValueError for a file that is not a font.
    """
    for font in fonts:
        load_font(str(font), 24)
    weights = np.array([weight for weight, _ in SCENES.values()])
    return draw_scene(list(SCENES)[rng.choice(len(weights), p=weights / weights.sum())], rng, size, fonts)


def draw_scene(name: str, rng: np.random.Generator, size: int = 512, fonts: Sequence[str | Path] = ()) -> np.ndarray:
    """Draw one of `SCENES`, like `draw`."""
    sheet = Sheet(rng, size, fonts)
    SCENES[name][1](sheet)
    return np.asarray(sheet.image).copy()
