"""Show the results of upscalers on images without a high-resolution original, such as those of a diffusion model.

    python benchmarks/gallery.py FOLDER --out gallery.png
    python benchmarks/gallery.py --draw 6 --out gallery.png

Look for ringing next to lines, invented texture on flat colours and broken strokes. Without a folder, synthetic images from the generator
of `transformersr draw` are used, softened as by a latent decoder (preset `sd`); models trained on such images have an advantage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from transformersr.training.data.degradation import PRESETS, degrade
from transformersr.training.data.images import read_rgb
from transformersr.training.data.synthetic import SCENES, draw_scene
from transformersr.training.results.strips import contact_sheet, save_image
from transformersr.training.results.validate import to_image, to_tensor
from transformersr.upscale.upscaler import available_models

from peers import PEERS, Peer
from quality import choose_images, choose_upscalers


def make_synthetic_images(count: int, size: int, seed: int, scenes: Sequence[str]) -> list[Image.Image]:
    """Draw synthetic images and degrade them as a latent decoder does, at full size."""
    images = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        images.append(degrade(Image.fromarray(draw_scene(scenes[index % len(scenes)], rng, size)), 1, PRESETS["sd"], rng))
    return images


def most_detailed_window(image: Image.Image, side: int) -> tuple[int, int]:
    """Return the corner of the square with the most contrast; measured at 1/8 size, where screentone is grey."""
    reduced = np.asarray(image.reduce(8), np.float64)
    step, size = max(1, side // 32), max(1, side // 8)
    corners = [(x, y) for y in range(0, reduced.shape[0] - size + 1, step) for x in range(0, reduced.shape[1] - size + 1, step)]
    x, y = max(
        corners, key=lambda corner: reduced[corner[1] : corner[1] + size, corner[0] : corner[0] + size].std((0, 1)).sum(), default=(0, 0)
    )
    return min(x * 8, image.width - side), min(y * 8, image.height - side)


def gallery_row(image: Image.Image, upscalers: Sequence[Peer], scale: int, side: int, margin: int = 48) -> list[Image.Image]:
    """Return the most detailed square of an image and all upscaled versions; a margin is upscaled as well and cropped off."""
    side = min(side, *image.size)
    x, y = most_detailed_window(image, side)
    left, top = max(0, x - margin), max(0, y - margin)
    context = image.crop((left, top, min(image.width, x + side + margin), min(image.height, y + side + margin)))
    x, y, large = (x - left) * scale, (y - top) * scale, side * scale
    box = (x, y, x + large, y + large)
    small = context.resize((context.width * scale, context.height * scale), Image.Resampling.NEAREST).crop(box)
    return [small, *(to_image(upscaler.upscale(to_tensor(context))).crop(box) for upscaler in upscalers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="images to upscale; default: synthetic images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draw", type=int, default=6, help="number of synthetic images if there is no folder")
    parser.add_argument(
        "--scenes",
        nargs="+",
        default=["portrait", "eyes", "hair", "garment"],
        choices=list(SCENES),
        help="scenes to draw, one after another",
    )
    parser.add_argument("--size", type=int, default=512, help="side of the synthetic images")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--count", type=int, default=0, help="maximum number of images from the folder; 0 for all")
    parser.add_argument("--scale", type=int, default=4, choices=[2, 4])
    parser.add_argument("--side", type=int, default=80, help="side of the square to show, in input pixels")
    parser.add_argument("--cell", type=int, default=320, help="side of a crop in the sheet")
    parser.add_argument("--models", nargs="*", default=list(available_models()), help="our models: names or files")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    options = parser.parse_args()
    if options.folder:
        images = [Image.fromarray(read_rgb(path)) for path in choose_images(options.folder, [], options.count)]
    else:
        images = make_synthetic_images(options.draw, options.size, options.seed, options.scenes)
    upscalers, missing = choose_upscalers(options.models, options.peers, options.scale)
    with torch.inference_mode():
        rows = [gallery_row(image, upscalers, options.scale, options.side) for image in images]
    save_image(contact_sheet(rows, ["input", *(upscaler.name for upscaler in upscalers)], options.cell), options.out)
    print(*missing, options.out, sep="\n")


if __name__ == "__main__":
    main()
