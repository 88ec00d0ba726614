"""Images side by side, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...arch.atomic import write_aside
from .metrics import edge_mask, luma, psnr
from .validate import Pair

LABEL_HEIGHT, GAP = 16, 4
CELL = 384
"""Side of an image in a validation strip; a number with many divisors, so that pixels of it are whole pixels of the sheet."""


# --- sheets --------------------------------------------------------------------------------------


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], cell: int, captions: Sequence[Sequence[str]] = (), title: str = ""
) -> Image.Image:
    """A grid of images, each scaled to `cell` pixels (whole pixels where it is smaller), with a label over every column.

    `captions`, one a cell, stand below the images; `title` stands above it all.
    """
    head = LABEL_HEIGHT * (2 if title else 1)
    below = LABEL_HEIGHT if captions else 0
    size = len(labels) * (cell + GAP) - GAP, head + len(rows) * (cell + below + GAP) - GAP
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    if title:
        draw.text((2, 1), title, fill="black", font=font)
    for column, label in enumerate(labels):
        left = column * (cell + GAP)
        draw.text((left + 2, head - LABEL_HEIGHT + 1), label, fill="black", font=font)
        for row, images in enumerate(rows):
            image, top = images[column], head + row * (cell + below + GAP)
            resample = Image.Resampling.NEAREST if image.width <= cell else Image.Resampling.LANCZOS
            sheet.paste(image.resize((cell, cell), resample), (left, top))
            if captions:
                draw.text((left + 2, top + cell + 1), captions[row][column], fill="black", font=font)
    return sheet


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size that is easily read; before 10.1 it had one size."""
    try:
        return ImageFont.load_default(12)
    except TypeError:
        return ImageFont.load_default()


def to_image(tensor: Tensor) -> Image.Image:
    """The first of `(b, 3, h, w)` in [0, 1] as an RGB image."""
    return Image.fromarray((tensor[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, its folder too where need be; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        image.save(aside, format="PNG")


# --- strips of a run -----------------------------------------------------------------------------


def draw_strip(pairs: Sequence[Pair], columns: Mapping[str, Sequence[Tensor]], scale: int) -> Image.Image:
    """A row for every pair: the place with the most edges as each of `columns` has made it, and as it truly is.

    `columns` are results `(1, 3, h, w)` of all pairs by name. Below each stands the PSNR-Y of what is shown, and its gain over the column
    before it.
    """
    rows, captions = [], []
    for index, pair in enumerate(pairs):
        place = busiest_place(pair.gt, strip_side(pair.gt), scale)
        truth = pair.gt[place]
        shown = [_rounded(results[index])[place] for results in columns.values()]
        rows.append([to_image(image) for image in (*shown, truth)])
        values = [psnr(luma(image), luma(truth)) for image in shown]
        gains = ["", *(f" ({after - before:+.2f})" for before, after in pairwise(values))]
        name = pair.name.encode("ascii", "replace").decode()  # the font knows no other letters
        captions.append([*(f"PSNR-Y {value:.2f} dB{gain}" for value, gain in zip(values, gains, strict=True)), name])
    return contact_sheet(rows, [*columns, "your image"], CELL, captions)


def strip_side(gt: Tensor) -> int:
    """Side of the square of `(1, 3, h, w)` that a strip shows: at most half of `CELL`, and a divisor of it that fits the image."""
    shortest = min(gt.shape[2:])
    return max(side for side in range(1, CELL // 2 + 1) if CELL % side == 0 and side <= shortest)


def busiest_place(gt: Tensor, side: int, step: int) -> tuple[slice, ...]:
    """The square of `side` in `(1, 3, h, w)` with most edge pixels, as an index; its corner is at multiples of `step`."""
    counts = F.avg_pool2d(edge_mask(luma(gt)).float(), side, stride=step)
    y, x = divmod(int(counts.flatten().argmax()), counts.shape[3])
    return (..., slice(y * step, y * step + side), slice(x * step, x * step + side))  # type: ignore[return-value]


def _rounded(image: Tensor) -> Tensor:
    return (image.float().clamp(0, 1) * 255).round() / 255
