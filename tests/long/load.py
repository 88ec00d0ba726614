"""A thousand images of mixed kinds in one folder, and batches of 500 frames through the ComfyUI node: does memory stay flat?

    PYTHONPATH=tests python tests/long/load.py --chart docs/images/load.svg

Resident memory, open files and threads are looked at before each image and at each of the node's calls of its progress bar. The node
has a host of a few lines here, and the model x4-tiny; the folder has a small random network. Prints the figures, draws memory, and ends
with an error where memory grows by more than 24 MiB from the second quarter to the last, or anything is left open. Linux only: it
reads /proc.
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
import torch
from click.testing import CliRunner
from PIL import Image

from transformersr.arch import save_model
from transformersr.training.results.charts import Chart, as_svg
from transformersr.upscale import batch
from transformersr.upscale.cli import main
from transformersr.upscale.image_io import ImageData, write_image
from transformersr.upscale.metadata import Carried

from random_models import V2, random_model
from synthetic_images import synthetic_image

FRAMES, SIDE, BATCHES = 500, 24, 3
GROWTH = 24.0
"""MiB that memory may grow by from the second quarter of the work to the last."""


@dataclass(frozen=True)
class Sample:
    """What this process has at a time."""

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
    """Fill a folder with images of all modes, formats and small sizes, one in twenty of them broken, and return how many are whole."""
    rng = np.random.default_rng(0)
    whole = 0
    for index in range(count):
        path = folder / f"{index % 7}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = synthetic_image(index, 40).resize((int(rng.integers(1, 17)), int(rng.integers(1, 17))))
        whole += not break_one(index, path, image) and write_one(index, path, image)
    return whole


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
    whole = make_images(scratch / "in", count)
    save_model(random_model(dataclasses.replace(V2, blocks="RWC")), scratch / "model.safetensors")
    samples, read = [], batch.read_image

    def reading(path: Path) -> ImageData:
        samples.append(Sample.take(len(samples)))
        return read(path)

    batch.read_image = reading
    begun = time.monotonic()
    result = CliRunner().invoke(
        main, ["upscale", str(scratch / "in"), "-o", str(scratch / "out"), "-m", str(scratch / "model.safetensors")]
    )
    seconds = time.monotonic() - begun
    print(f"{count} images, {count - whole} of them broken: {result.stdout.strip()}, exit code {result.exit_code}, {seconds:.0f} s")
    assert f"{whole} of {count} images done" in result.stdout, result.output[-2000:]
    assert len([path for path in (scratch / "out").rglob("*") if path.is_file()]) == whole
    return [*samples, Sample.take(count)]


# --- the node ------------------------------------------------------------------------------------


def make_host(scratch: Path, on_progress: list) -> None:
    """What the nodes want of ComfyUI."""
    cpu = torch.device("cpu")
    comfy, utils, management, patcher, paths = map(
        types.ModuleType, ("comfy", "comfy.utils", "comfy.model_management", "comfy.model_patcher", "folder_paths")
    )

    class Bar:
        def __init__(self, total: int):
            self.total = total

        def update_absolute(self, value: int) -> None:
            on_progress[0](value / self.total)

    class Patcher:
        def __init__(self, model: torch.nn.Module, load_device: torch.device, offload_device: torch.device):
            self.model, self.load_device, self.offload_device = model, load_device, offload_device

    utils.ProgressBar, patcher.ModelPatcher = Bar, Patcher
    management.get_torch_device = management.unet_offload_device = management.intermediate_device = lambda: cpu
    management.load_models_gpu = lambda *args, **options: None
    management.throw_exception_if_processing_interrupted = lambda: None
    paths.models_dir, paths.get_folder_paths = str(scratch), lambda kind: []
    paths.add_model_folder_path, paths.get_user_directory = lambda *args: None, lambda: str(scratch)
    comfy.utils, comfy.model_management, comfy.model_patcher = utils, management, patcher
    sys.modules.update({module.__name__: module for module in (comfy, utils, management, patcher, paths)})


def run_node(scratch: Path) -> list[Sample]:
    """Upscale batches with one node, as one after the other in a workflow; the result, which has to grow, is taken off what is sampled."""
    on_progress: list = [None]
    make_host(scratch, on_progress)
    from transformersr.nodes import TransformerSRUpscale

    node, frames, samples = TransformerSRUpscale(), torch.rand(FRAMES, SIDE, SIDE, 3), []
    result_mib = FRAMES * (4 * SIDE) ** 2 * 3 * 4 / 2**20
    begun, before = time.monotonic(), live_tensors()
    for number in range(BATCHES):

        def sample(share: float, number: int = number) -> None:
            taken = Sample.take((number + share) * FRAMES)
            samples.append(Sample(taken.place, taken.mib - share * result_mib, taken.files, taken.threads))

        on_progress[0] = sample
        (large,) = node.upscale(frames, "x4-tiny")
        assert large.shape == (FRAMES, 4 * SIDE, 4 * SIDE, 3)
        del large
    kept = len(list(node._patcher.model.state_dict())) + 2  # the network and its tables
    print(f"{BATCHES} batches of {FRAMES} frames: {time.monotonic() - begun:.0f} s; tensors alive before {before}, after {live_tensors()}")
    assert live_tensors() <= before + 2 * kept
    return samples


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


# --- what came of it -----------------------------------------------------------------------------


def judge(name: str, samples: list[Sample]) -> Chart:
    """Print the figures of some work, and return the chart of its memory."""
    quarter = len(samples) // 4
    second, last = fmean(one.mib for one in samples[quarter : 2 * quarter]), fmean(one.mib for one in samples[-quarter:])
    late, most = samples[quarter:], max(one.mib for one in samples)
    print(
        f"{name}: {second:.1f} in the second quarter, {last:.1f} in the last, at most {most:.1f}; open files "
        f"{min(one.files for one in late)} to {max(one.files for one in late)}; threads {late[0].threads} to {late[-1].threads}"
    )
    assert last - second < GROWTH, "memory grows"
    assert late[-1].files <= late[0].files, "files stay open"
    assert late[-1].threads <= late[0].threads, "threads stay"
    return Chart(name, {"MiB": [(one.place, one.mib) for one in samples]}, reference={"nothing": 0.0})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--chart", type=Path, help="SVG file for the drawing of the memory")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = [
            f"Memory in MiB over a folder of {asked.images:,} images",
            f"Memory in MiB, without the result, over {BATCHES} batches of {FRAMES} frames through the node",
        ]
        charts = [judge(names[0], run_folder(Path(folder), asked.images)), judge(names[1], run_node(Path(folder)))]
    if asked.chart:
        asked.chart.write_text(as_svg(charts))
