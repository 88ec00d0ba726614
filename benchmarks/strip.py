"""Draw crops of pictures side by side: the small picture, bicubic, ours, the true one.

    python benchmarks/strip.py OUT.png PICTURE:x,y,side [PICTURE:x,y,side ...] --model x4-tiny

Each picture is cut to a multiple of the model's scale, shrunk (bicubic unless --method says otherwise) and enlarged again, whole; then the
square of `side` pixels at `x,y` is shown.
"""

from __future__ import annotations

import argparse

from PIL import Image

from transformersr import Upscaler
from transformersr.training.degradation import FILTERS, shrink
from transformersr.training.pictures import read_rgb
from transformersr.training.strips import contact_sheet


def strip(path: str, x: int, y: int, side: int, upscaler: Upscaler, method: str) -> list[Image.Image]:
    """The four crops of one picture."""
    scale = upscaler.scale
    gt = Image.fromarray(read_rgb(path))
    gt = gt.crop((0, 0, gt.width // scale * scale, gt.height // scale * scale))
    lq = shrink(gt, scale, method)
    results = [lq.resize(gt.size, Image.Resampling.NEAREST), lq.resize(gt.size, Image.Resampling.BICUBIC), upscaler(lq), gt]
    return [image.crop((x, y, x + side, y + side)) for image in results]


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
        rows.append(strip(path, *map(int, box.split(",")), upscaler, options.method))
    scale = upscaler.scale
    contact_sheet(rows, [f"small (x{scale} pixels)", "bicubic", "TransformerSR", "true picture"], options.cell).save(options.out)


if __name__ == "__main__":
    main()
