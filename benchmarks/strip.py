"""Draw crops of pictures side by side: the small picture, bicubic, ours, the true one.

    python benchmarks/strip.py OUT.png PICTURE:x,y,side [PICTURE:x,y,side ...] --model x4-tiny

Each picture is cut to a multiple of the model's scale, shrunk (bicubic unless --method says otherwise) and enlarged again, whole; then the
square of `side` pixels at `x,y` is shown.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from transformersr import Upscaler
from transformersr.training.dataset import read_rgb
from transformersr.training.degradation import FILTERS, shrink


def strip(path: str, x: int, y: int, side: int, upscaler: Upscaler, method: str) -> list[Image.Image]:
    """The four crops of one picture."""
    scale = upscaler.scale
    gt = Image.fromarray(read_rgb(path))
    gt = gt.crop((0, 0, gt.width // scale * scale, gt.height // scale * scale))
    lq = shrink(gt, scale, method)
    results = [lq.resize(gt.size, Image.Resampling.NEAREST), lq.resize(gt.size, Image.Resampling.BICUBIC), upscaler(lq), gt]
    return [image.crop((x, y, x + side, y + side)) for image in results]


def sheet(rows: list[list[Image.Image]], labels: list[str], cell: int) -> Image.Image:
    """All crops in a grid with a line of labels."""
    band, gap = 26, 4
    image = Image.new("RGB", (len(labels) * (cell + gap) - gap, band + len(rows) * (cell + gap)), "white")
    draw = ImageDraw.Draw(image)
    for column, label in enumerate(labels):
        draw.text((column * (cell + gap) + 4, 4), label, fill="black", font=ImageFont.load_default(16))
        for row, crops in enumerate(rows):
            crop = crops[column].resize((cell, cell), Image.Resampling.LANCZOS) if crops[column].width != cell else crops[column]
            image.paste(crop, (column * (cell + gap), band + row * (cell + gap)))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("crops", nargs="+")
    parser.add_argument("--model", default=None)
    parser.add_argument("--method", choices=list(FILTERS), default="bicubic")
    parser.add_argument("--cell", type=int, default=300, help="side of a crop in the sheet")
    options = parser.parse_args()
    upscaler = Upscaler.from_pretrained(options.model)
    rows = []
    for text in options.crops:
        path, _, box = text.rpartition(":")
        rows.append(strip(path, *np.fromstring(box, int, sep=",").tolist(), upscaler, options.method))
    scale = upscaler.scale
    sheet(rows, [f"small (x{scale} pixels)", "bicubic", "TransformerSR", "true picture"], options.cell).save(options.out)


if __name__ == "__main__":
    main()
