"""Measure the numerical accuracy of every shipped model and print it as Markdown, for docs/reliability.md.

    OMP_NUM_THREADS=1 python tests/long/exactness.py FOLDER_OF_IMAGES

Takes about three minutes on one core for two tiny models. Differences are in 8-bit levels (1/255), before rounding.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transformersr import Upscaler
from transformersr.arch import stream
from transformersr.training.data.folders import find_images
from transformersr.training.results.metrics import psnr
from transformersr.upscale.image_io import read_image
from transformersr.upscale.image_safety import ImageError
from transformersr.upscale.upscaler import available_models

CROP = 96
"""Side of the centre crop of an image."""
HALF_COUNT, HALF_SIDE = 6, 64
"""Number and size of the images for half precision, which most processors run ten times slower."""
FLAT = 64
"""Side of a flat image."""
MARGIN = 8
"""Width of the edge that does not count as the interior."""


# --- images ------------------------------------------------------------------------------------


def crops(folder: Path, count: int) -> Tensor:
    """Load centre crops of images spread evenly over a folder, `(count, 3, CROP, CROP)`."""
    paths = find_images(folder)
    found = []
    for path in paths[:: max(1, len(paths) // (2 * count))]:
        try:
            color = read_image(path).color
        except ImageError:
            continue
        top, left = ((side - CROP) // 2 for side in color.shape[:2])
        if min(top, left) >= 0:
            found.append(torch.from_numpy(np.ascontiguousarray(color[top : top + CROP, left : left + CROP])).permute(2, 0, 1))
    if len(found) < count:
        raise SystemExit(f"{folder}: {len(found)} images of at least {CROP}x{CROP} found; expected {count}, or fewer with --images")
    return torch.stack(found[:: len(found) // count][:count]).contiguous()


def flats() -> Tensor:
    """Return 27 flat colours with each channel 0, 0.5 or 1: `(27, 3, FLAT, FLAT)`."""
    levels = torch.tensor([0.0, 0.5, 1.0])
    return torch.cartesian_prod(levels, levels, levels)[:, :, None, None].expand(-1, -1, FLAT, FLAT).contiguous()


def extremes() -> dict[str, Tensor]:
    """Return images beyond any real one, `(1, 3, 32, 32)` each."""
    side, black = 32, torch.zeros(1, 3, 32, 32)
    rows = torch.arange(side)
    noise = torch.rand(black.shape, generator=torch.Generator().manual_seed(0))
    images = {name: black.clone() for name in ("black", "white", "one white pixel", "one NaN pixel", "all NaN")}
    images["white"] += 1
    images["one white pixel"][..., side // 2, side // 2] = 1
    images["one NaN pixel"] += 0.5
    images["one NaN pixel"][..., side // 2, side // 2] = float("nan")
    images["all NaN"] += float("nan")
    images["checks of 1 pixel"] = ((rows[:, None] + rows) % 2).float().expand(1, 3, -1, -1).contiguous()
    images["checks of 8 pixels"] = ((rows[:, None] // 8 + rows // 8) % 2).float().expand(1, 3, -1, -1).contiguous()
    return images | {"noise": noise, "noise of 0 to 255": 255 * noise, "noise of 0 to 1e30": 1e30 * noise}


# --- measuring -----------------------------------------------------------------------------------


def levels(one: Tensor, other: Tensor) -> float:
    """Return the largest difference in 8-bit levels."""
    return 255 * float((one - other).abs().max())


def mean_shift(large: Tensor, small: Tensor) -> Tensor:
    """Return the shift of each channel's mean in 8-bit levels, `(b, 3)`."""
    return 255 * (large.double().mean((2, 3)) - small.double().mean((2, 3)))


def precisions(name: str, device: str, images: Tensor) -> Iterator[tuple[str, ...]]:
    expected = Upscaler.from_pretrained(name, device, "fp32")(images)
    for dtype in ("fp16", "bf16"):
        result = Upscaler.from_pretrained(name, device, dtype)(images)
        eights = ((result * 255).round() != (expected * 255).round()).float().mean()
        worst = min(psnr(one, other) for one, other in zip(result, expected, strict=True))
        yield dtype, f"{psnr(result, expected):.1f}", f"{worst:.1f}", f"{levels(result, expected):.3f}", f"{100 * eights:.2f} %"


def reproducibility(name: str, device: str, images: Tensor, expected: Tensor) -> Iterator[tuple[str, ...]]:
    """Measure the effect of settings that should not matter."""
    upscaler = Upscaler.from_pretrained(name, device, "fp32")
    yield "again in the same process", f"{levels(upscaler(images), expected):.6f}"
    child = [sys.executable, __file__, "--child", name, device]
    digests = {subprocess.run(child, check=True, capture_output=True, text=True).stdout for _ in range(2)}
    yield "another process, twice", "identical" if digests == {digest(upscaler)} else "DIFFERENT"
    image, alone = images[:1], expected[:1]
    for rows in (8, 24, 40, CROP):
        with torch.inference_mode():
            result = stream(upscaler.model, image.to(upscaler.model.device), rows).cpu().clamp(0, 1)
        yield f"bands of {rows} rows" if rows < CROP else "the whole image at once", f"{levels(result, alone):.6f}"
    small = images[:, :, :24, :24].contiguous()
    singly = torch.cat([upscaler(one[None]) for one in small])
    for count in (2, 3, 8):
        together = torch.cat([upscaler(some) for some in small.split(count)])
        yield f"batches of {count}", f"{levels(together, singly):.6f}"
    laid = image.contiguous(memory_format=torch.channels_last)
    yield "channels last in memory", f"{levels(upscaler(laid), alone):.6f}"
    for threads in (1, 2):
        torch.set_num_threads(threads)
        yield f"{threads} thread{'s' * (threads > 1)}", f"{levels(upscaler(image), alone):.6f}"
    torch.set_num_threads(1)


def colours(upscaler: Upscaler, images: Tensor, expected: Tensor) -> Iterator[tuple[str, ...]]:
    """Yield the mean shift over all images and the largest of any image."""
    flat, edge = flats(), MARGIN * upscaler.scale
    large = upscaler(flat)
    for what, shift in {
        f"27 flat images of {FLAT}x{FLAT}": mean_shift(large, flat),
        f"their interior, without {MARGIN} pixels of edge": mean_shift(large[..., edge:-edge, edge:-edge], flat),
        f"{len(images)} images": mean_shift(expected, images),
    }.items():
        within = f"{int((shift.abs().amax(1) < 0.5).sum())} of {len(shift)}"
        yield what, ", ".join(f"{one:+.3f}" for one in shift.mean(0)), f"{shift.abs().max():.3f}", within


def extreme_results(name: str, device: str) -> Iterator[tuple[str, ...]]:
    upscalers = {dtype: Upscaler.from_pretrained(name, device, dtype) for dtype in ("fp32", "fp16", "bf16")}
    for what, image in extremes().items():
        usable = image.nan_to_num(0.0).clamp(0, 1)
        with CollectWarnings() as warnings:
            results = {dtype: upscaler(image) for dtype, upscaler in upscalers.items()}
        result, finite = results["fp32"], all(bool(one.isfinite().all()) for one in results.values())
        off = [f"{levels(results[dtype], result):.2f}" for dtype in ("fp16", "bf16")]
        shift = mean_shift(result, usable).abs().max()
        text = "; ".join(dict.fromkeys(warnings.messages))
        yield what, "yes" if finite else "NO", f"{result.min():.3f} to {result.max():.3f}", f"{shift:.2f}", *off, text


class CollectWarnings(logging.Handler):
    """Collect the package's warnings within a with block."""

    def __enter__(self) -> CollectWarnings:
        self.messages: list[str] = []
        logging.getLogger("transformersr").addHandler(self)
        return self

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __exit__(self, *error: object) -> None:
        logging.getLogger("transformersr").removeHandler(self)


def digest(upscaler: Upscaler) -> str:
    """Return a checksum of the result for a fixed image."""
    image = torch.rand(1, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    return hashlib.sha256(upscaler(image).numpy().tobytes()).hexdigest()


# --- printing ------------------------------------------------------------------------------------


def table(title: str, columns: str, rows: Iterator[tuple[str, ...]]) -> None:
    heads = columns.split(", ")
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="images, at any depth")
    parser.add_argument("--images", type=int, default=16, help="number of images to use, spread evenly")
    parser.add_argument("--models", nargs="*", default=list(available_models()))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "DEVICE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        sys.stdout.write(digest(Upscaler.from_pretrained(*options.child, "fp32")))
        return
    if options.folder is None:
        parser.error("expected a folder of images")
    start, images = time.monotonic(), crops(options.folder, options.images)
    few = images[:: max(1, len(images) // HALF_COUNT), :, :HALF_SIDE, :HALF_SIDE][:HALF_COUNT].contiguous()
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine()
    print(f"{time.strftime('%Y-%m-%d')}, {options.device} ({device}), Python {platform.python_version()}, torch {torch.__version__}")
    for name in options.models:
        upscaler = Upscaler.from_pretrained(name, options.device, "fp32")
        expected = upscaler(images)
        print(f"\n### {name}")
        columns = "precision, PSNR to fp32 in dB, worst image, largest difference in levels, 8-bit values that change"
        table(f"Precision, {HALF_SIDE}x{HALF_SIDE} of {len(few)} images:", columns, precisions(name, options.device, few))
        table("The same image, fp32:", "change, largest difference in levels", reproducibility(name, options.device, images, expected))
        columns = "images, mean shift of R; G; B in levels, largest, images within 0.5"
        table("Colour, fp32:", columns, colours(upscaler, images, expected))
        columns = "image, finite, values of the result, mean shift in levels, fp16 difference, bf16 difference, warnings"
        table("Extreme images:", columns, extreme_results(name, options.device))
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
