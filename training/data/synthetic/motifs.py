"""Motifs that scenes are composed of: hair, eyes, heads, clothes, clouds, leaves, writing."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont

from .colors import WHITE, Tone
from .paints import Gradient, Paint, glow, translucent
from .shapes import Frame, both_sides, box, curve, ellipse, path, pointed_widths, points, ribbon, taper, unit
from .sheet import Sheet


def draw_shaded(sheet: Sheet, points: np.ndarray, tone: Tone, size: float, width: float = 1.0) -> None:
    """Draw a cel-shaded shape: flat tone, one or two hard-edged shades on one side, sometimes a highlight, and an outline."""
    sheet.fill(points, tone)
    side = size * sheet.uniform(0.15, 0.5) * np.array([np.cos(a := sheet.uniform(-0.6, 2.2)), np.sin(a)])
    with sheet.clip(points):
        for step in range(sheet.integer(1, 2)):
            _fill_outside(sheet, points - side * (1 - 0.45 * step), points, tone.shade(0.14 * (step + 1)))
        if sheet.chance(0.3):
            sheet.line(points[: len(points) // 4] + side * 0.4, 2.0, tone.light(0.7))
    sheet.outline(points, width, sheet.ink(tone))


def _fill_outside(sheet: Sheet, hole: np.ndarray, points: np.ndarray, paint: Paint) -> None:
    """Paint the part of a shape that is outside another, within the current clip."""
    frame = box(*(points.min(axis=0) - 9), *(points.max(axis=0) + 9))[[0, 1, 2, 3, 0]]
    turns = (hole * np.roll(hole[:, ::-1] * [1, -1], -1, axis=0)).sum() > 0
    sheet.fill(np.concatenate([hole, hole[:1], frame[::-1] if turns else frame]), paint)


def lock(sheet: Sheet, spine: np.ndarray, width: float, tone: Tone, root: float = 0.6) -> None:
    """Draw a pointed lock of hair along a curve, with a shade on one side, strands, and tapered outlines."""
    count = len(spine)
    widths = width * pointed_widths(count, root)
    sheet.fill(ribbon(spine, widths), tone)
    side = 1 if sheet.chance(0.5) else -1
    low, high = sorted((0.5 * side, side * sheet.uniform(0.05, 0.3)))
    sheet.fill(ribbon(spine[2:], widths[2:], low, high), tone.shade())
    ink = sheet.ink(tone)
    strokes = []
    for _ in range(sheet.integer(0, 4)):
        at, a = sheet.uniform(-0.4, 0.4), sheet.integer(0, count // 2)
        strand = ribbon(spine, widths, at, at)[:count][a : a + sheet.integer(count // 3, count - 2)]
        strokes.append(ribbon(strand, sheet.width(sheet.uniform(0.3, 0.7)) * taper(len(strand))))
    edges = ribbon(spine, widths)
    edges = np.stack([edges[:count], edges[count:][::-1]])
    sheet.fill([*strokes, ribbon(edges, sheet.width(1.0) * taper(count, 1.2, 0.45))], ink)


def eye(sheet: Sheet, frame: Frame, outward: float, open_: float, iris: Tone) -> None:
    """Draw an anime eye, two units wide; `outward` is 1 if the outer corner is on the right, else -1."""
    ink, tilt = sheet.palette.ink, sheet.uniform(-0.15, 0.2)
    side, inner, outer = (outward, 1), (-0.95, 0.15 + tilt), (1.0, 0.05 - tilt)
    above = np.array([inner, (-0.6, -0.62 * open_), (0.05, -0.95 * open_), (0.65, -0.7 * open_), outer])
    below = np.array([outer, (0.7, 0.75 * open_), (0.0, 0.95 * open_), (-0.6, 0.75 * open_), inner])
    upper, lower = curve(frame(above * side)), curve(frame(below * side))
    if open_ < 0.3:
        sheet.line(curve(frame(path("-1,0 -0.4,0.35 0.3,0.38 1,0"))), 2.2, ink, 1.0, 0.4)
        return
    white = np.concatenate([upper, lower])
    sheet.fill(white, Tone(0.98, 0.005, 250))
    tall, wide, look = open_ * sheet.uniform(0.85, 1.05), sheet.uniform(0.55, 0.68), sheet.uniform(-0.08, 0.08)
    ring = ellipse(look, 0.0, wide, tall)
    with sheet.clip(white):
        _iris(sheet, frame, look, wide, tall, iris)
        lid = np.concatenate([upper, upper[::-1] + frame.scale * np.array([0, 0.26 * open_])])
        sheet.fill(lid, iris.shade(0.55), translucent(0.55))
        sheet.wire(frame(ring)[[*range(64), 0]], 0.9, iris.shade(0.6))
    for x, y, radius in ((-0.22 + look, -0.42 * tall, 0.2), (0.25 + look, 0.45 * tall, 0.1))[: sheet.integer(1, 2)]:
        sheet.fill(frame(ellipse(x, y, radius, radius * sheet.uniform(1, 1.5))), WHITE)
    lash = frame.scale * sheet.uniform(0.17, 0.3) * taper(len(upper), 1.8, 0.6)
    lashes = [ribbon(upper, lash, -0.8, 0.4)]
    for at in range(len(upper) - 4, len(upper) - 4 - 4 * sheet.integer(1, 4), -4):
        tip = upper[at] + frame.scale * np.array([outward * sheet.uniform(0.15, 0.4), -sheet.uniform(0.05, 0.3)])
        bent = curve([upper[at - 1], (upper[at] + tip) / 2 + (0, frame.scale * 0.04), tip], 4)
        lashes.append(ribbon(bent, frame.scale * 0.14 * pointed_widths(len(bent), 1.0, 0.1)))
    sheet.fill(lashes, ink)
    sheet.line(lower[2:34], 1.1, sheet.ink(sheet.palette.skin))
    if sheet.chance(0.7):
        sheet.line(upper[8:-6] - frame.scale * np.array([0, 0.32]), 0.7, sheet.ink(sheet.palette.skin))


def _iris(sheet: Sheet, frame: Frame, look: float, wide: float, tall: float, iris: Tone) -> None:
    (x0, y0), (x1, y1) = frame((look, -tall)), frame((look, tall))
    paint = Gradient((iris.shade(0.6), iris.shade(0.25), iris, iris.light(0.45)), (x0, y0), (x1, y1))
    sheet.fill(frame(ellipse(look, 0, wide, tall)), paint)
    if frame.scale > 22:
        turn = np.sort(sheet.rng.uniform(0.1, np.pi - 0.1, 14))
        rays = unit(turn)[:, None] * (wide, tall) * np.array([0.45, 0.65, 0.9])[:, None] + (look, 0)
        sheet.fill(ribbon(frame(rays), frame.scale * 0.05 * taper(3)), iris.light(0.3))
    sheet.fill(frame(ellipse(look, -0.05 * tall, wide * 0.42, tall * 0.45)), iris.shade(0.75))
    sheet.fill(frame(ellipse(look, 0.62 * tall, wide * 0.5, tall * 0.2)), iris.light(0.6))


def features(sheet: Sheet, frame: Frame, turn: float) -> None:
    """Draw eyes, brows, nose and mouth of a face."""
    ink = sheet.ink(sheet.palette.skin)
    open_, size = (0.1 if sheet.chance(0.08) else sheet.uniform(0.75, 1.25)), sheet.uniform(0.2, 0.26)
    shift, mood, odd = 0.3 * turn, sheet.uniform(-0.1, 0.1), sheet.chance(0.06)
    for side in (-1, 1):
        narrow = 1 - 0.35 * max(0, turn * side)
        place = frame.inside(shift + side * 0.38 * (1 - 0.2 * max(0, turn * side)), 0.26, size * narrow)
        eye(sheet, place, side, open_ / narrow * 1.1, sheet.palette.accent if odd and side > 0 else sheet.palette.iris)
        brow = curve(frame([(shift + side * x, y) for x, y in ((0.2, -0.1 + mood), (0.38, -0.17), (0.6, -0.1 - mood / 2))]))
        sheet.line(brow, 1.6, sheet.ink(sheet.palette.hair), 0.7)
    sheet.line(curve(frame([(shift * 1.5, 0.5), (shift * 1.5 + 0.03, 0.57), (shift * 1.5 - 0.02, 0.6)])), 0.8, ink)
    _mouth(sheet, frame.inside(shift * 1.1, 0.76, sheet.uniform(0.1, 0.2)), ink)


def blush(sheet: Sheet, frame: Frame, turn: float) -> None:
    """Draw blushing cheeks as a soft glow or as hatching."""
    skin, size = sheet.palette.skin, 0.2 * frame.scale
    tone, soft = replace(skin, lightness=skin.lightness * 0.9, chroma=0.1 if skin.chroma else 0, hue=25), sheet.chance(0.5)
    hatch = np.linspace(-0.09, 0.09, 4)[:, None, None] * (1, 0) + ((0.03, -0.05), (-0.03, 0.05))
    for side in (-1, 1):
        x, y = frame((0.3 * turn + side * 0.45, 0.55))
        if soft:
            sheet.fill(ellipse(x, y, size, size), tone, glow(x, y, size, 1.7))
        else:
            sheet.wire(frame(hatch + np.array([0.3 * turn + side * 0.45, 0.55])), 0.6, tone.shade(0.2))


def _mouth(sheet: Sheet, frame: Frame, ink: Tone) -> None:
    lip = curve(frame(path("-1,-0.1 -0.4,0.1 0.3,0.1 1,-0.15")))
    if sheet.chance(0.45):
        inside = np.concatenate([lip, curve(frame(path("1,-0.15 0.6,0.8 0,1.1 -0.6,0.75 -1,-0.1")))])
        red = 0.12 if sheet.palette.skin.chroma else 0.0
        sheet.fill(inside, Tone(0.45, red, 20))
        with sheet.clip(inside):
            sheet.fill(frame(ellipse(0, 1.1, 0.7, 0.5)), Tone(0.7, red, 20))
            sheet.fill(frame(box(-0.7, -0.1, 0.7, 0.25)), WHITE)
        sheet.outline(inside, 0.8, ink)
    else:
        sheet.line(lip, 1.2, ink)


def head(sheet: Sheet, frame: Frame) -> None:
    """Draw a head from the front or slightly turned, with hair; the chin is at `(0, 1)`, the crown of the hair near `(0, -1.2)`."""
    turn, tone, skin = sheet.uniform(-0.7, 0.7), sheet.palette.hair, sheet.palette.skin
    reach = sheet.uniform(0.5, 2.6)
    _back_hair(sheet, frame, reach, tone)
    torso(sheet, frame)
    for side in (-1, 1):
        ear = curve(frame(path("0.72,0.1 0.9,0.05 0.93,0.25 0.82,0.5 0.7,0.45") * (side, 1)), closed=True)
        sheet.cel(ear, skin, 0.9)
    jaw = path("0.6,-0.75 0.79,-0.1 0.76,0.3 0.52,0.72 0.14,0.98") + sheet.uniform(-0.06, 0.06) * path("0,0 0,0 0,0 1,1 0,1")
    face = both_sides(jaw) + points(np.array([0, 0, 0, 1, 1, 1, 1, 0, 0, 0]) * 0.12 * turn, 0)
    face = curve(frame(face), closed=True)
    sheet.fill(face, skin)
    with sheet.clip(face):
        _fill_outside(sheet, face + frame.scale * np.array([0.12 * np.sign(turn), -0.1]), face, skin.shade(0.1))
        fringe = [(x, 0.02 + 0.12 * (i % 2)) for i, x in enumerate(np.linspace(-0.9, 0.9, sheet.integer(7, 11)))]
        sheet.fill(frame([(-1, -1), *fringe, (1, -1)]), skin.shade(0.12))
        if sheet.chance(0.5):
            blush(sheet, frame, turn)
    sheet.outline(face, 1.0, sheet.ink(skin))
    features(sheet, frame, turn)
    _front_hair(sheet, frame, turn, tone)
    if sheet.chance(0.35):
        bow(sheet, frame.inside(sheet.uniform(0.5, 0.75) * (1 if sheet.chance(0.5) else -1), -0.85, sheet.uniform(0.2, 0.4)))


def _back_hair(sheet: Sheet, frame: Frame, reach: float, tone: Tone) -> None:
    half = np.array([(0.55, -1.15), (1.0, -0.7), (1.1, 0.0), (1.08, 0.2 + reach * 0.4)])
    lower = points(np.linspace(0.95, -0.95, 9), 0.2 + reach * np.where(np.arange(9) % 2, 0.78, 1.0))
    mass = curve(frame(np.concatenate([half, lower, half[::-1] * (-1, 1)])), closed=True)
    sheet.fill(mass, tone.shade(0.18))
    sheet.outline(mass, 1.0, sheet.ink(tone))
    tails = sheet.chance(0.3)
    for i in range(sheet.integer(4, 8)):
        side = 1 if i % 2 else -1
        out = sheet.uniform(1.2, 2.0) if tails else sheet.uniform(0.9, 1.15)
        middle, end = out + sheet.uniform(-0.2, 0.1), sheet.uniform(0.7, 1.6)
        spine = points(side * np.array([0.8, out, middle, end]), np.array([-0.7, -0.2, reach * 0.5, reach + 0.3]))
        lock(sheet, curve(frame(spine)), frame.scale * sheet.uniform(0.25, 0.5), tone.shade(0.06 * (i % 3)))


def _front_hair(sheet: Sheet, frame: Frame, turn: float, tone: Tone) -> None:
    """Draw the cap over the skull, the locks of the fringe, and the band of light across them."""
    part, ink = 0.35 * turn + sheet.uniform(-0.15, 0.15), sheet.ink(tone)
    half = path("0,-0.5 0.6,-0.42 0.92,0.05 0.95,-0.45 0.62,-1.05 0,-1.24")
    cap = curve(frame(both_sides(half)[:-1]), closed=True)
    sheet.fill(cap, tone)
    count = sheet.integer(5, 9)
    across = np.linspace(-1, 1, count) + sheet.rng.uniform(-0.08, 0.08, count)
    fringe = sheet.uniform(-0.1, 0.22)
    for at in sorted(across, key=lambda a: -abs(a)):
        side = abs(at) > 0.72
        low = sheet.uniform(0.6, 1.3) if side else fringe + sheet.uniform(-0.12, 0.12)
        tip = (at * (0.95 if side else 0.75) + sheet.uniform(-0.1, 0.1), low)
        root = (part + (at - part) * 0.35, -1.17 + 0.12 * abs(at))
        spine = curve(frame([root, (at * 0.82, -0.85 + 0.3 * at * at), (at * 0.92, -0.35), tip]))
        lock(sheet, spine, frame.scale * (0.3 if side else 1.9 / count) * sheet.uniform(0.9, 1.15), tone, 0.25)
    sheet.line(cap[20:91], 1.2, ink)
    if sheet.chance(0.75):
        sheet.fill(_shine(sheet, frame, sheet.uniform(-0.78, -0.6)), tone.light(sheet.uniform(0.3, 0.7)))
    a = sheet.rng.uniform(-1, 1, 6)
    strands = frame(
        np.stack([points(part + 0 * a, -1.2), points(a * 0.5, -1.1 + 0.05 * abs(a)), points(a * 0.8, -0.75 + 0.2 * a * a)], axis=1)
    )
    sheet.line(curve(strands), 0.5, ink)
    if sheet.chance(0.4):
        sheet.line(curve(frame([(part, -1.2), (part + 0.1, -1.45), (part + sheet.uniform(0.2, 0.4), -1.4)])), 2.0, tone.shade(), 0.5)


def _shine(sheet: Sheet, frame: Frame, y: float) -> np.ndarray:
    """A zigzag band, curved like the head."""
    x = np.linspace(-0.72, 0.72, sheet.integer(12, 24) * 2 + 1)
    bend, thick = 0.28 * x**2, 0.13 * np.sqrt(1 - (x / 0.75) ** 2)
    tooth = np.where(np.arange(len(x)) % 2, 1.0, 0.25) * sheet.rng.uniform(0.6, 1.3, len(x))
    top, bottom = points(x, y + bend - thick * tooth), points(x, y + bend + thick * tooth)
    return frame(np.concatenate([top, bottom[::-1]]))


def bow(sheet: Sheet, frame: Frame) -> None:
    tone = sheet.palette.accent
    for side in (-1, 1):
        tail = frame(path("0,0 0.5,1.3 0.75,1.1 1,1.2 0.25,0") * (side, 1))
        sheet.fill(tail, tone.shade())
        sheet.wire(tail[[0, 1, 2, 3, 4, 0]], 0.8, sheet.ink(tone))
        wing = curve(frame(path("0.1,-0.1 0.9,-0.65 1.2,-0.1 0.95,0.5 0.1,0.15") * (side, 1)), closed=True)
        draw_shaded(sheet, wing, tone, frame.scale * 0.5, 0.9)
        folds = np.stack([path("0.2,0 0.5,-0.15 0.8,-0.25"), path("0.2,0.05 0.5,0.1 0.7,0.2")])
        sheet.line(curve(frame(folds * (side, 1))), 0.8, sheet.ink(tone))
    sheet.cel(curve(frame(path("-0.2,-0.2 0.2,-0.2 0.22,0.22 -0.22,0.22")), closed=True), tone)


def torso(sheet: Sheet, frame: Frame) -> None:
    """Draw the neck and clothed shoulders below a head."""
    skin, cloth = sheet.palette.skin, sheet.palette.cloth
    neck = frame(path("-0.24,0.7 -0.26,1.3 -0.7,1.55 0,2.1 0.7,1.55 0.26,1.3 0.24,0.7"))
    sheet.fill(neck, skin)
    sheet.fill(curve(frame(path("-0.26,0.8 0.26,0.8 0.24,1.15 0,1.3 -0.25,1.1")), closed=True), skin.shade(0.16))
    sheet.line(np.stack([frame([(side * 0.24, 0.8), (side * 0.25, 1.1), (side * 0.3, 1.35)]) for side in (-1, 1)]), 1.0, sheet.ink(skin))
    half = path("0.32,1.3 0.75,1.5 1.15,1.75 1.35,2.4 1.5,4")
    body = curve(frame(np.concatenate([half[::-1], [[0, 1.55 + 0.3 * sheet.uniform(0, 1)]], half * (-1, 1)])))
    draw_shaded(sheet, body, cloth, frame.scale * 0.6)
    with sheet.clip(body):
        if sheet.chance(0.4):
            sheet.fill(body, cloth.shade(0.25) if sheet.chance(0.5) else sheet.palette.accent, sheet.motif())
        roots = sheet.rng.uniform((-1.1, 1.6), (1.1, 2.4), (10, 2))
        bends = sheet.rng.uniform((-0.25, 0.2), (0.25, 0.5), (2, 10, 2))
        folds = np.stack([roots, roots + bends[0], roots + bends[0] * 1.5 + bends[1] * 0.5], axis=1)
        sheet.line(curve(frame(folds)), 1.0, sheet.ink(cloth), 0.7)
    (_collar if sheet.chance(0.5) else _necklace)(sheet, frame)
    if sheet.chance(0.5):
        bow(sheet, frame.inside(0, 1.95, sheet.uniform(0.3, 0.5)))


def _collar(sheet: Sheet, frame: Frame) -> None:
    tone = sheet.tone()
    for side in (-1, 1):
        wing = path("0.3,1.22 0.95,1.55 0.85,2.1 0.02,2") * (side, 1)
        sheet.cel(frame(wing), tone)
        for inset in (0.8, 0.68)[: sheet.integer(0, 2)]:
            sheet.wire(frame(wing.mean(axis=0) + (wing[1:] - wing.mean(axis=0)) * inset), 1.0, tone.light(0.8))


def _necklace(sheet: Sheet, frame: Frame) -> None:
    bead = curve(path("-0.42,1.4 -0.2,1.58 0.2,1.58 0.42,1.4"), 6)
    sheet.fill(frame(np.stack([ellipse(x, y, 0.04, 0.04, 16) for x, y in bead])), sheet.palette.accent)


def lace(sheet: Sheet, hem: np.ndarray, size: float, tone: Tone) -> None:
    """Draw scallops with holes along a path `(n, 2)`."""
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(hem, axis=0).T))])
    at = np.arange(size, length[-1], size * 1.7)
    centre = points(np.interp(at, length, hem[:, 0]), np.interp(at, length, hem[:, 1]))[:, None]
    sheet.fill([ellipse(0, 0, size * 1.18, size * 1.18, 24) + centre], sheet.ink(tone))
    sheet.fill([ellipse(0, 0, size, size, 24) + centre, ribbon(hem, size * 1.2)], tone)
    sheet.fill(
        [ellipse(x * size, y * size, size * 0.17, size * 0.17, 12) + centre for x, y in path("0,0.6 -0.45,0.45 0.45,0.45")],
        tone.shade(0.45),
    )


def clouds(sheet: Sheet, horizon: float) -> None:
    """Draw cumulus clouds with hard-edged shades."""
    for _ in range(sheet.integer(1, 4)):
        x, y, size = sheet.uniform(0, sheet.extent), sheet.uniform(0.1, 0.9) * horizon, sheet.extent * sheet.uniform(0.05, 0.16)
        puffs = sheet.rng.normal(0, 1, (14, 2)) * (size * 1.3, size * 0.3) + (x, y)
        radii = size * sheet.rng.uniform(0.25, 0.7, 14)
        day = sheet.palette.sky.lightness > 0.5
        for drop, tone in ((0.0, WHITE.shade(0.1)), (-0.18, WHITE)):
            mass = [ellipse(px, py + drop * size, r, r * 0.8, 40) for (px, py), r in zip(puffs, radii, strict=True)]
            sheet.fill(np.stack(mass), tone if day else sheet.palette.sky.light(0.3 - drop))


def leaves(sheet: Sheet, x: float, y: float, size: float, tone: Tone, count: int = 260) -> None:
    """Draw foliage: many small pointed leaves in three tones."""
    for step in range(3):
        n = count // (step + 1)
        centre = sheet.rng.normal(0, 0.42, (n, 1, 2)) * size + (x - 0.1 * step * size, y - 0.12 * step * size)
        turn, length = sheet.rng.uniform(0, 2 * np.pi, n), sheet.rng.uniform(0.5, 1.2, n)[:, None] * size * 0.14
        tip = unit(turn) * length
        spine = centre + tip[:, None] * np.linspace(-1, 1, 7)[:, None]
        sheet.fill(ribbon(spine, length * 0.75 * taper(7)), tone.shade(0.32 - 0.16 * step))


def glyphs(sheet: Sheet, x: float, y: float, size: float, rows: int, columns: int, tone: Tone) -> None:
    """Draw illegible writing: small dense glyphs on a grid."""
    grid = points(*np.meshgrid(np.arange(columns), np.arange(rows))).reshape(-1, 1, 1, 2) * size * 1.15 + (x, y)
    strokes = sheet.rng.integers(0, 4, (len(grid), 6, 2, 2)) / 3
    level = sheet.rng.random((len(grid), 6)) < 0.75
    flat = sheet.rng.integers(0, 2, (len(grid), 6))
    first, second = strokes[..., 0, :], strokes[..., 1, :].copy()
    for axis in (0, 1):
        second[..., axis] = np.where(level & (flat == axis), first[..., axis], second[..., axis])
    both = (np.stack([first, second], axis=2) * size * 0.85 + grid).reshape(-1, 2, 2)
    both = both[np.hypot(*(both[:, 1] - both[:, 0]).T) > size * 0.2]
    sheet.fill(ribbon(both, max(0.7, size * 0.09)), tone)


def text(sheet: Sheet, x: float, y: float, size: float, tone: Tone, edge: Tone | None = None, angle: float = 0.0) -> None:
    """Draw a word centred at `x, y`, rotated by `angle` degrees, with an edge if its tone is given; nothing without a scalable font."""
    fonts = sheet.fonts or ("",)
    name, finer = fonts[sheet.integer(0, len(fonts) - 1)], 1 if not angle else 4 if size < 40 else 2
    letters = _alphabets(name)[sheet.integer(0, 2)]
    word = "".join(letters[i] for i in sheet.rng.integers(0, len(letters), sheet.integer(2, 9)))
    font, border = load_font(name, max(7, round(size)) * finer), max(1, round(size / sheet.uniform(8, 16))) * finer
    if font is None:
        return
    left, top, right, bottom = font.getbbox(word, stroke_width=border)
    for width, paint in ((border, edge), (0, tone)):
        if paint is not None:
            mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
            ImageDraw.Draw(mask).text((1 - left, 1 - top), word, 255, font, stroke_width=width)
            mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True).reduce(finer) if angle else mask
            sheet.stamp(mask, x - mask.width / 2, y - mask.height / 2, paint)


@lru_cache(maxsize=128)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Load a font file or, for an empty name, Pillow's own font; None if this Pillow has no scalable one."""
    if name:
        try:
            return ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise ValueError(f"{name}: cannot be read as a font ({error}); expected a .ttf, .otf or .ttc file") from error
    if tuple(int(part) for part in PIL.__version__.split(".")[:2]) < (10, 1):
        return None
    font = ImageFont.load_default(size)
    return font if isinstance(font, ImageFont.FreeTypeFont) else None


@lru_cache(maxsize=32)
def _alphabets(name: str) -> tuple[str, str, str]:
    """Lower-case letters, upper-case letters, and kana with common kanji if the font has them."""
    small, capital = "aabcdeeefghiiklmnnooprsttuvwy", "ABCDEFGHIKLMNOPRSTUVWXYZ!?&0123456789"
    kana = "あいうえおかきくしすたてとなにのはまもよりるんアイウオカコサシスタテドナバラン大小月日人山"
    font = load_font(name, 24)
    if font is None or bytes(font.getmask("あ")) == bytes(font.getmask("\uffff")):
        kana = capital
    return small, capital, kana
