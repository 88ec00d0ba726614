"""Make the README image: an image before and after upscaling, and an inset at full resolution.

    python benchmarks/showcase.py renpy-cg-4.png --at 337,22 --out docs/images/before-after.jpg

The README's image is a held-out one of the Ren'Py tutorial artists, downscaled to 512x326 with Pillow's BOX filter.
Left: the whole image, half bicubic and half ours. Right: the inset at `--at` in both versions, pixel for pixel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from transformersr.upscale.atomic import write_aside
from transformersr.upscale.upscaler import Upscaler

HEIGHT = 720
INSET = 440
"""Width of each of the two insets."""
GAP = 8
LABEL = 46
"""Font size; a phone shows it at a quarter of this."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--at", required=True, metavar="X,Y", help="top left corner of the inset, in input pixels")
    parser.add_argument("--model", default="x4-base")
    parser.add_argument("--crispness", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    image = Image.open(options.image).convert("RGB")
    upscaler = Upscaler.from_pretrained(options.model, "cpu", "fp32", crispness=options.crispness)
    after = upscaler(image)
    before = image.resize(after.size, Image.Resampling.BICUBIC)
    left, top = (int(number) * upscaler.scale for number in options.at.split(","))
    box = (left, top, left + INSET, top + HEIGHT)
    if box[2] > after.width or box[3] > after.height:
        raise SystemExit(
            f"--at {options.at}: an inset of {INSET}x{HEIGHT} pixels does not fit there; the result has {after.width}x{after.height}"
        )
    sizes = [f"{version.width}x{version.height}" for version in (image, after)]
    panels = [split(before, after, *sizes), add_label(before.crop(box), "bicubic"), add_label(after.crop(box), "TransformerSR")]
    with write_aside(options.out) as aside:
        side_by_side(panels).save(aside, format="JPEG", quality=92, subsampling=0, optimize=True)


def split(before: Image.Image, after: Image.Image, before_label: str, after_label: str) -> Image.Image:
    """Combine the left half of `before` and the right half of `after`, with labels."""
    size = (round(before.width * HEIGHT / before.height), HEIGHT)
    whole, half = after.resize(size, Image.Resampling.LANCZOS), size[0] // 2
    whole.paste(before.resize(size, Image.Resampling.LANCZOS).crop((0, 0, half, HEIGHT)))
    ImageDraw.Draw(whole).line((half, 0, half, HEIGHT), "white", 5)
    return add_label(add_label(whole, before_label), after_label, half)


def add_label(image: Image.Image, text: str, left: int = 0) -> Image.Image:
    """Draw a label with dark text on white at the bottom of an image."""
    draw, place = ImageDraw.Draw(image), (left + 14, image.height - 14)
    font = ImageFont.load_default(LABEL)
    x0, y0, x1, y1 = draw.textbbox(place, text, font, anchor="lb")
    draw.rounded_rectangle((x0 - 10, y0 - 10, x1 + 10, y1 + 8), 10, fill="white")
    draw.text(place, text, "#1f2937", font, anchor="lb")
    return image


def side_by_side(panels: list[Image.Image]) -> Image.Image:
    """Join panels in a row with white gaps."""
    sheet = Image.new("RGB", (sum(panel.width for panel in panels) + GAP * (len(panels) - 1), HEIGHT), "white")
    x = 0
    for panel in panels:
        sheet.paste(panel, (x, 0))
        x += panel.width + GAP
    return sheet


if __name__ == "__main__":
    main()
