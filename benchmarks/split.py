"""One image before and after, in one picture: the left of a detail resized by bicubic, the right of it upscaled, at one pixel a pixel.

python benchmarks/split.py scene.png --width 512 --box 150,60,300,150 --out docs/images/before-after.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from transformersr import Upscaler
from transformersr.training.data.pictures import read_rgb
from transformersr.training.results.strips import save_image


def split_view(small: Image.Image, large: Image.Image, box: tuple[int, int, int, int], thumbnail: int) -> Image.Image:
    """`large` and the bicubic resize of `small` side by side in a box of pixels of `small`, the whole of `small` in a corner."""
    scale = large.width // small.width
    x, y, width, height = (side * scale for side in box)
    view = large.crop((x, y, x + width, y + height))
    view.paste(small.resize(large.size, Image.Resampling.BICUBIC).crop((x, y, x + width // 2, y + height)))
    draw = ImageDraw.Draw(view)
    draw.rectangle((width // 2 - 1, 0, width // 2 + 1, height), fill="white")
    font = ImageFont.load_default(size=height // 20)
    for center, text in ((width // 4, f"bicubic x{scale}"), (3 * width // 4, f"TransformerSR x{scale}")):
        draw.text((center, height - height // 14), text, "white", font, "mm", stroke_width=3, stroke_fill="black")
    whole = small.resize((thumbnail, round(thumbnail * small.height / small.width)), Image.Resampling.BOX)
    shrink = thumbnail / small.width
    frame = [round(side * shrink) for side in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
    ImageDraw.Draw(whole).rectangle(frame, outline="white", width=2)
    view.paste(Image.new("RGB", (whole.width + 6, whole.height + 6), "white"), (12, 12))
    view.paste(whole, (15, 15))
    return view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--width", type=int, default=0, help="downscale the image to this width first; 0 leaves it as it is")
    parser.add_argument("--box", required=True, help="what to show, as x,y,width,height in pixels of the small image")
    parser.add_argument("--model", default="x4-tiny")
    parser.add_argument("--crispness", type=float, default=0.0)
    parser.add_argument("--thumbnail", type=int, default=240, help="width of the whole image in the corner")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    small = Image.fromarray(read_rgb(options.image))
    if options.width:
        small = small.resize((options.width, round(options.width * small.height / small.width)), Image.Resampling.BOX)
    large = Upscaler.from_pretrained(options.model, crispness=options.crispness)(small)
    x, y, width, height = map(int, options.box.split(","))
    save_image(split_view(small, large, (x, y, width, height), options.thumbnail), options.out)


if __name__ == "__main__":
    main()
