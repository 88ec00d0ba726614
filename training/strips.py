"""Pictures side by side, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ..arch.atomic import write_aside

LABEL_HEIGHT, GAP = 16, 4


def contact_sheet(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], cell: int) -> Image.Image:
    """A grid of images, each scaled to `cell` pixels (whole pixels where it is smaller), with a label over every column."""
    sheet = Image.new("RGB", (len(labels) * (cell + GAP) - GAP, LABEL_HEIGHT + len(rows) * (cell + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        draw.text((column * (cell + GAP) + 2, 2), label, fill="black")
        for row, images in enumerate(rows):
            image = images[column]
            resample = Image.Resampling.NEAREST if image.width <= cell else Image.Resampling.LANCZOS
            sheet.paste(image.resize((cell, cell), resample), (column * (cell + GAP), LABEL_HEIGHT + row * (cell + GAP)))
    return sheet


def to_image(tensor: Tensor) -> Image.Image:
    """The first of `(b, 3, h, w)` in [0, 1] as an RGB image."""
    return Image.fromarray((tensor[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, its folder too where need be; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        image.save(aside, format="PNG")
