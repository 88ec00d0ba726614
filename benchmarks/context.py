"""Measure how the result depends on the size of the image around it.

    python benchmarks/context.py FOLDER --models x4-tiny x4-base --sizes 64 128 224

Channel attention averages over the whole image, so a network trained on small crops can be worse on large images. Squares of growing size
around the centre of each image are upscaled. PSNR-Y is always that of the same middle pixels, half of the smallest square's side. It is
computed from the mean error over all images, because the middle of some is blank.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from transformersr.training.config import load_recipe
from transformersr.training.results.metrics import luma, psnr, quantize
from transformersr.training.results.validate import METHODS, Pair, make_pair
from transformersr.upscale.upscaler import Upscaler, available_models

from machine import command_line, describe_machine, write_report
from quality import choose_images


def middle(image: Tensor, side: int) -> Tensor:
    """Return the central `side` x `side` pixels of `(b, c, h, w)`; `h - side` and `w - side` are even."""
    top, left = ((size - side) // 2 for size in image.shape[2:])
    return image[..., top : top + side, left : left + side]


def measure(upscaler: Upscaler, pairs: Sequence[Pair], sizes: Sequence[int], progress: tqdm) -> list[float]:
    """Return PSNR-Y over the middle pixels of all images for each size of the small image."""
    side = min(sizes) // 2 * upscaler.scale
    scores = []
    for size in sizes:
        results = []
        for pair in pairs:
            results.append(middle(quantize(upscaler(middle(pair.lq, size))), side))
            progress.update()
        scores.append(psnr(luma(torch.cat(results)), luma(torch.cat([middle(pair.gt, side) for pair in pairs]))))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images, searched at any depth; those smaller than the largest size are skipped")
    parser.add_argument("--recipe", type=Path, help="only the validation files of this training recipe")
    parser.add_argument("--models", nargs="+", default=list(available_models()), help="our models: names or files, all of the same scale")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224], help="multiples of 4, in small pixels")
    options = parser.parse_args()
    upscalers = {Path(name).stem: Upscaler.from_pretrained(name, "cpu") for name in options.models}
    scale, largest = next(iter(upscalers.values())).scale, max(options.sizes)
    paths = choose_images(options.folder, load_recipe(options.recipe).validation if options.recipe else (), 0)
    made = (make_pair(path, scale, METHODS[index % len(METHODS)], largest * scale) for index, path in enumerate(paths))
    pairs = [pair for pair in made if min(pair.lq.shape[2:]) == largest]
    if not pairs:
        raise SystemExit(f"error: {options.folder}: no image is at least {largest * scale}x{largest * scale}; lower --sizes")
    lines = [f"| {' | '.join(['PSNR-Y', *(f'{size}x{size}' for size in options.sizes)])} |", "| --- |" + " --- |" * len(options.sizes)]
    with tqdm(total=len(upscalers) * len(options.sizes) * len(pairs), unit="image", disable=None) as progress:
        for name, upscaler in upscalers.items():
            scores = measure(upscaler, pairs, options.sizes, progress)
            lines.append(f"| {name} | " + " | ".join(f"{score:.2f}" for score in scores) + " |")
    command = command_line(sys.argv[1:], options.folder)
    head = f"# PSNR over the size of the image, {time.strftime('%Y-%m-%d')}\n\n    {command}\n\n{len(pairs)} images. {describe_machine()}."
    write_report("\n\n".join([head, "\n".join(lines)]) + "\n", "context")


if __name__ == "__main__":
    main()
