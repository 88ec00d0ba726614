"""Check that memory stays constant over a folder of a thousand mixed images and over batches of 500 frames in the ComfyUI node.

    PYTHONPATH=tests python tests/long/load.py --chart docs/images/load.svg

Resident memory, open files and threads are sampled before each image and at each progress update of the node. The node runs x4-tiny with a
minimal stand-in for ComfyUI; the folder runs a small random network. Prints the figures, plots memory, and fails if memory grows by more
than 24 MiB from the second quarter to the last or if files or threads are left open. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import re
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from transformersr.training.results.charts import Chart, as_svg
from transformersr.upscale import batch
from transformersr.upscale.checkpoint import save_model
from transformersr.upscale.cli import main
from transformersr.upscale.image_io import ImageData, write_image
from transformersr.upscale.metadata import Carried

import comfyui_standin
from random_models import V2, random_model
from synthetic_images import synthetic_image

FRAMES, SIDE, BATCHES = 500, 24, 3
GROWTH = 24.0
"""Allowed growth of memory in MiB from the second quarter of the work to the last."""


@dataclass(frozen=True)
class Sample:
    """Memory, open files and threads of this process at one point of the work."""

    place: float
    mib: float
    files: int
    threads: int

    @classmethod
    def take(cls, place: float) -> Sample:
        status = Path("/proc/self/status").read_text()
        rss, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
        return cls(place, rss / 1024, len(os.listdir("/proc/self/fd")), threads)


# --- a folder ------------------------------------------------------------------------------------


def make_images(folder: Path, count: int) -> int:
    """Fill a folder with small images of all modes and formats, one in twenty of them broken, and return the number of valid ones."""
    rng = np.random.default_rng(0)
    valid = 0
    for index in range(count):
        path = folder / f"{index % 7}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = synthetic_image(index, 40).resize((int(rng.integers(1, 17)), int(rng.integers(1, 17))))
        valid += not break_one(index, path, image) and write_one(index, path, image)
    return valid


def break_one(index: int, path: Path, image: Image.Image) -> bool:
    if index % 20:
        return False
    image.save(path)
    content = path.read_bytes()
    path.write_bytes((b"", b"hello", content[: len(content) // 2])[index // 20 % 3])
    return True


def write_one(index: int, path: Path, image: Image.Image) -> bool:
    kinds = {
        "png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "deep"),
        "jpg": ("RGB", "L", "CMYK"),
        "webp": ("RGB", "RGBA"),
        "tif": ("RGB", "CMYK", "I;16"),
        "bmp": ("RGB", "L"),
        "gif": ("P",),
    }
    suffix, mode = [(suffix, mode) for suffix, modes in kinds.items() for mode in modes][index % sum(map(len, kinds.values()))]
    if mode == "deep":
        color = np.asarray(image, np.float32) / 255
        write_image(ImageData(color, color[..., 0] if index % 2 else None, Carried(bits=16)), path)
        return True
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(path.with_suffix(f".{suffix}"))
    return True


def run_folder(scratch: Path, count: int) -> list[Sample]:
    """Upscale a folder, sampling before each image."""
    valid = make_images(scratch / "in", count)
    save_model(random_model(dataclasses.replace(V2, blocks="RWC")), scratch / "model.safetensors")
    samples, read = [], batch.read_image_from

    def sample_and_read(*arguments) -> ImageData:
        samples.append(Sample.take(len(samples)))
        return read(*arguments)

    batch.read_image_from = sample_and_read
    begun = time.monotonic()
    result = CliRunner().invoke(
        main, ["upscale", str(scratch / "in"), "-o", str(scratch / "out"), "-m", str(scratch / "model.safetensors")]
    )
    seconds = time.monotonic() - begun
    print(f"{count} images, {count - valid} of them broken: {result.stdout.strip()}, exit code {result.exit_code}, {seconds:.0f} s")
    assert f"{valid} of {count} images done" in result.stdout, result.output[-2000:]
    assert len([path for path in (scratch / "out").rglob("*") if path.is_file()]) == valid
    return [*samples, Sample.take(count)]


# --- the node ------------------------------------------------------------------------------------


def load_nodes(scratch: Path, on_progress: list) -> types.ModuleType:
    """Import the nodes with a stand-in for ComfyUI that reports progress to the callback in `on_progress`."""

    class Bar:
        def __init__(self, total: int):
            self.total = total

        def update_absolute(self, value: int) -> None:
            on_progress[0](value / self.total)

    nodes = comfyui_standin.install(pytest.MonkeyPatch(), scratch)
    sys.modules["comfy.utils"].ProgressBar = Bar
    return nodes


def run_node(scratch: Path) -> list[Sample]:
    """Upscale batches with one node, as in a workflow. The result, which has to grow, is subtracted from the samples."""
    on_progress: list = [None]
    node, frames, samples = load_nodes(scratch, on_progress).TransformerSRUpscale(), torch.rand(FRAMES, SIDE, SIDE, 3), []
    result_mib = FRAMES * (4 * SIDE) ** 2 * 3 * 4 / 2**20
    begun, before = time.monotonic(), live_tensors()
    for number in range(BATCHES):

        def sample(share: float, number: int = number) -> None:
            taken = Sample.take((number + share) * FRAMES)
            samples.append(Sample(taken.place, taken.mib - share * result_mib, taken.files, taken.threads))

        on_progress[0] = sample
        (large,) = node.upscale(frames, "x4-tiny")["result"]
        assert large.shape == (FRAMES, 4 * SIDE, 4 * SIDE, 3)
        del large
    kept = len(list(node._patcher.model.state_dict())) + 2  # the network and its tables
    print(f"{BATCHES} batches of {FRAMES} frames: {time.monotonic() - begun:.0f} s; tensors alive before {before}, after {live_tensors()}")
    assert live_tensors() <= before + 2 * kept
    return samples


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


# --- results -------------------------------------------------------------------------------------


def judge(name: str, samples: list[Sample]) -> Chart:
    """Print the figures, check them, and return a chart of the memory."""
    quarter = len(samples) // 4
    second, last = fmean(one.mib for one in samples[quarter : 2 * quarter]), fmean(one.mib for one in samples[-quarter:])
    late, most = samples[quarter:], max(one.mib for one in samples)
    print(
        f"{name}: {second:.1f} in the second quarter, {last:.1f} in the last, at most {most:.1f}; open files "
        f"{min(one.files for one in late)} to {max(one.files for one in late)}; threads {late[0].threads} to {late[-1].threads}"
    )
    assert last - second < GROWTH, "memory grows"
    assert late[-1].files <= late[0].files, "files are left open"
    assert late[-1].threads <= late[0].threads, "threads are left running"
    return Chart(name, {"MiB": [(one.place, one.mib) for one in samples]}, reference={"nothing": 0.0})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--chart", type=Path, help="SVG file for the chart of the memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = [
            f"Memory in MiB over a folder of {options.images:,} images",
            f"Memory in MiB without the result, {BATCHES} batches of {FRAMES} frames",
        ]
        charts = [judge(names[0], run_folder(Path(folder), options.images)), judge(names[1], run_node(Path(folder)))]
    if options.chart:
        options.chart.write_text(as_svg(charts))
