"""Sheets of images side by side for visual comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...upscale.atomic import write_aside
from .metrics import edge_mask, luma, psnr, quantize
from .validate import Pair, to_image

LABEL_SIZE, GAP = 18, 4
CELL = 384
"""Side of an image in a validation strip; it has many divisors, so each image pixel covers whole pixels of the sheet."""


# --- sheets --------------------------------------------------------------------------------------


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[str],
    cell: int,
    captions: Sequence[Sequence[str]] = (),
    label_size: int = LABEL_SIZE,
) -> Image.Image:
    """A grid of images, each scaled to `cell` pixels (by nearest neighbour if it is smaller), with a label above each column.

    `captions`, one per cell, are below the images.
    """
    head = label_size * 4 // 3
    below = head if captions else 0
    size = len(labels) * (cell + GAP) - GAP, head + len(rows) * (cell + below + GAP) - GAP
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), _font(label_size)
    for column, label in enumerate(labels):
        left = column * (cell + GAP)
        draw.text((left + 2, 1), label, fill="black", font=font)
        for row, images in enumerate(rows):
            image, top = images[column], head + row * (cell + below + GAP)
            resample = Image.Resampling.NEAREST if image.width <= cell else Image.Resampling.LANCZOS
            sheet.paste(image.resize((cell, cell), resample), (left, top))
            if captions:
                draw.text((left + 2, top + cell + 1), captions[row][column], fill="black", font=font)
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; before Pillow 10.1 it has only one size."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image atomically as PNG, creating its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        image.save(aside, format="PNG")


# --- strips of a run -----------------------------------------------------------------------------


def draw_strip(pairs: Sequence[Pair], columns: Mapping[str, Sequence[Tensor]], scale: int) -> Image.Image:
    """Draw a row per pair: its area with the most edges in the result of each column, and in the original.

    `columns` are the results `(1, 3, h, w)` for all pairs by name. The caption is the PSNR-Y of the area shown and its gain over the
    previous column.
    """
    rows, captions = [], []
    for index, pair in enumerate(pairs):
        area = busiest_area(pair.gt, strip_side(pair.gt), scale)
        truth = pair.gt[area]
        shown = [quantize(results[index])[area] for results in columns.values()]
        rows.append([to_image(image) for image in (*shown, truth)])
        values = [psnr(luma(image), luma(truth)) for image in shown]
        gains = ["", *(f" ({after - before:+.2f})" for before, after in pairwise(values))]
        name = pair.name.encode("ascii", "replace").decode()  # the font has only ASCII letters
        captions.append([*(f"PSNR-Y {value:.2f} dB{gain}" for value, gain in zip(values, gains, strict=True)), name])
    return contact_sheet(rows, [*columns, "your image"], CELL, captions)


def strip_side(gt: Tensor) -> int:
    """Side of the square of `(1, 3, h, w)` to show: the largest divisor of `CELL` that fits the image and is at most half of it."""
    shortest = min(gt.shape[2:])
    return max(side for side in range(1, CELL // 2 + 1) if CELL % side == 0 and side <= shortest)


def busiest_area(gt: Tensor, side: int, step: int) -> tuple[slice, ...]:
    """Find the square of `side` in `(1, 3, h, w)` with the most edge pixels, as an index; its corner is at multiples of `step`."""
    counts = F.avg_pool2d(edge_mask(luma(gt)).float(), side, stride=step)
    y, x = divmod(int(counts.flatten().argmax()), counts.shape[3])
    return (..., slice(y * step, y * step + side), slice(x * step, x * step + side))  # type: ignore[return-value]
