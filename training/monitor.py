"""What a run writes down as it goes: figures, strips, weights, its state."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..arch import save_model
from ..arch.atomic import write_aside
from ..upscale.engine import is_out_of_memory
from ..upscale.messages import BAR
from .check import near_duplicates
from .config import TrainConfig, without_paths
from .folders import Split
from .report import write_report
from .run_state import RunState
from .store import PictureStore
from .strips import draw_strip, save_image
from .validate import Pair, Scores, mean_scores, resize_with, score, score_pair, validation_pairs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """What a run is measured on."""

    pairs: list[Pair]
    watched: list[Pair]
    """The pairs that are drawn: on which bicubic is worst, middling and best."""
    bicubic: Scores

    @classmethod
    def of(cls, files: Split, config: TrainConfig, workers: int = 0) -> Validation:
        """Make the pairs of validation pictures, and measure bicubic on them."""
        pairs = validation_pairs(files.validation, config.scale, config.validation_crop, files.partners, config.max_pixels, workers)
        enlarge = resize_with("bicubic", config.scale)
        scores = [score_pair(pair, enlarge(pair.lq), config.scale) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda index: scores[index].psnr_y)
        watched = dict.fromkeys((order[0], order[len(order) // 2], order[-1]))
        return cls(pairs, [pairs[index] for index in watched], mean_scores(scores))


@dataclass
class Monitor:
    """The record of a run in its folder, kept by the main process alone; trackers such as TensorBoard get the same figures."""

    out: Path
    config: TrainConfig
    validation: Validation
    accelerator: Accelerator
    saved_step: int = -1
    bar: Any = field(default_factory=lambda: tqdm(total=100, unit="%", bar_format=BAR, disable=None))

    def begin(self, pictures: PictureStore, precision: str, choices: Sequence[str]) -> None:
        """Write down what the run starts from; `choices` are lines on what was settled for the user."""
        logger.info("%d pictures to train on, %d to validate on", len(pictures), len(self.validation.pairs))
        logger.info("device: %s, precision: %s, processes: %d", self.accelerator.device, precision, self.accelerator.num_processes)
        for choice in choices:
            logger.info("%s", choice)
        doubles = near_duplicates(pictures.looks)
        for finding in doubles:
            logger.warning("%s", finding)
        write_json(self.out / "config.json", dataclasses.asdict(self.config))
        device = self.accelerator.device
        versions = {"torch": torch.__version__, "python": platform.python_version(), "transformersr": _own_version()}
        record = {
            "bicubic": _plain(dataclasses.asdict(self.validation.bicubic)),
            "pictures": {"train": len(pictures), "validation": len(self.validation.pairs)},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})",
            "precision": precision,
            "processes": self.accelerator.num_processes,
            "versions": versions,
            "left_out": [str(finding) for finding in (*pictures.findings, *doubles)],
        }
        write_json(self.out / "run.json", record)
        logger.info("bicubic: %s", self.validation.bicubic)

    def show(self, done: float, step: int) -> None:
        """Move the bar to this share of the run."""
        self.bar.n = 100 * min(done, 1.0)
        self.bar.set_description_str(f"step {step}")

    def log(self, run: RunState, done: float, figures: Mapping[str, float | Tensor]) -> None:
        """Write one line of figures, or say why not; the one place, with validation, that waits for the device."""
        plain = _plain({name: float(value) for name, value in figures.items()})
        progress = run.progress
        record = {"step": progress.step, "seconds": round(progress.seconds), **plain}
        with _going_on(f"the figures of step {progress.step} are not written"):
            _append(self.out / "train.jsonl", {**record, "skipped": progress.skipped, "went_back": progress.went_back})
            self.accelerator.log({f"train/{name}": value for name, value in plain.items() if value is not None}, step=progress.step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in plain.items() if value is not None)
        logger.info("step %d  %.0f %%  %.0f s  %s", progress.step, 100 * done, progress.seconds, text)

    def try_to_save(self, run: RunState) -> None:
        """`validate_and_save`, except that with disk or memory full the log says so, what was saved before stays, and the run goes on."""
        with _going_on(f"step {run.progress.step} is not saved"):
            self.validate_and_save(run)

    def finish(self, run: RunState) -> None:
        """Save what is not saved yet, and write the report. Raises OSError where that fails."""
        if self.saved_step != run.progress.step:
            self.validate_and_save(run)
        self.bar.close()
        logger.info("report: %s", write_report(self.out))

    def validate_and_save(self, run: RunState) -> None:
        """Measure the averaged weights, draw what they make of the watched pairs, and write weights and state. Raises OSError."""
        device, progress = next(run.ema.parameters()).device, run.progress

        def enlarge(lq: Tensor) -> Tensor:
            with torch.inference_mode():
                return run.ema(lq.to(device)).cpu()

        scores = score(self.validation.pairs, enlarge, self.config.scale)
        figures = _plain(dataclasses.asdict(scores))
        logger.info("validation at step %d: %s", progress.step, scores)
        _append(self.out / "validation.jsonl", {"step": progress.step, "seconds": round(progress.seconds), **figures})
        strip = draw_strip(self.validation.watched, enlarge, self.config.scale, progress.step)
        save_image(strip, self.out / "strips" / f"{progress.step:07d}.png")
        self._track(figures, strip, progress.step)
        record = {"step": progress.step, "scores": figures, "settings": without_paths(dataclasses.asdict(self.config))}
        metadata = {"training": json.dumps(record)}
        save_model(run.ema, self.out / "last.safetensors", metadata=metadata)
        if scores.psnr_y > progress.best_psnr or self.config.gan_weight:  # against a discriminator PSNR falls, so newest is best
            save_model(run.ema, self.out / "best.safetensors", metadata=metadata)
            progress.best_psnr = scores.psnr_y
        run.save(self.out / "state.pt")
        self.saved_step = progress.step

    def _track(self, figures: Mapping[str, float | None], strip: Image.Image, step: int) -> None:
        bicubic = dataclasses.asdict(self.validation.bicubic)
        values = {f"validation/{name}": value for name, value in figures.items() if value is not None}
        self.accelerator.log({**values, "validation/psnr_y_over_bicubic": (figures["psnr_y"] or 0) - bicubic["psnr_y"]}, step=step)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"bicubic | this network | true picture": np.asarray(strip)[None]}, step=step, dataformats="NHWC")


def _own_version() -> str:
    try:
        return version("transformersr")
    except PackageNotFoundError:  # run from a folder, without an install
        return "not installed"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object; the file appears whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _append(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line, whole or not at all."""
    end = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
    except OSError:
        with suppress(OSError):
            os.truncate(path, end)
        raise


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Say in the log what could not be done where disk or memory are full, or a file cannot be written to, and go on."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space" if full else str(error).partition("\n")[0] or "not enough memory"
        logger.error("%s (%s); what was saved before it is kept, and the run goes on", what, reason)


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON has them: None for what is not a number."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
