"""What a run writes down as it goes: figures, strips, weights, its state."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import platform
import time
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

from ...arch import TransformerSR, load_model, save_model
from ...arch.atomic import write_aside
from ...upscale.memory import is_out_of_memory
from ...upscale.messages import BAR
from ..config import TrainConfig, without_paths
from ..data.check import near_duplicates, too_few
from ..data.folders import Split
from ..data.image_cache import ImageStore
from ..run_state import Progress, RunState
from .advice import resume, shell, train_longer
from .pace import Pace, duration, rounded
from .report import write_report
from .strips import draw_strip, save_image
from .validate import Measured, Validation, validation_pairs
from .verdict import Baseline, find_baseline, steps_to_add, summary, weights_name

logger = logging.getLogger(__name__)

START = "start.safetensors"
"""The weights that a run began with, to compare with."""
LONGEST_SILENCE = 60
"""Seconds after which a log line is due whatever the steps."""


class Monitor:
    """What a process tells of a run: nothing, unless it is the main one (`FolderMonitor`)."""

    def begin(self, run: RunState, images: ImageStore, precision: str, choices: Sequence[str]) -> None:
        """The run begins or goes on; `choices` are lines on what was settled for the user."""

    def watch(self, run: RunState, done: float, figures: Mapping[str, float | Tensor]) -> None:
        """A step is done, and with it this share of the run."""

    def try_to_save(self, run: RunState) -> None:
        """A checkpoint is due. With disk or memory full the log says so, what was saved before stays, and the run goes on."""

    def finish(self, run: RunState, stopped: bool) -> None:
        """The run has come to its end, or was `stopped`. Raises OSError where it cannot be saved."""


def open_monitor(out: Path, config: TrainConfig, data: Path, files: Split, workers: int, accelerator: Accelerator) -> Monitor:
    """The record of a run in the folder `out`, kept by the main process alone."""
    if not accelerator.is_main_process:
        return Monitor()
    pairs = validation_pairs(files.validation, config.scale, config.validation_crop, files.partners, config.max_pixels, workers)
    return FolderMonitor(out, config, data, Validation.of(pairs, config.scale), accelerator)


@dataclass
class FolderMonitor(Monitor):
    """The record of a run in its folder; trackers such as TensorBoard get the same figures."""

    out: Path
    config: TrainConfig
    data: Path
    validation: Validation
    accelerator: Accelerator
    start: Measured | None = None
    """What the run began with, measured; None where it began from random weights."""
    saved_step: int = -1
    pace: Pace = field(default_factory=Pace)
    forecast_given: bool = False
    logged_at: float = field(default_factory=time.monotonic)
    bar: Any = field(default_factory=lambda: tqdm(total=100, unit="%", bar_format=BAR, disable=None))

    def begin(self, run: RunState, images: ImageStore, precision: str, choices: Sequence[str]) -> None:
        """Write down what the run starts from, its weights too: it can go back to them, and a disk that cannot be written shows now."""
        device, measured = self.accelerator.device, self.validation.bicubic
        logger.info("device: %s, precision: %s, processes: %d", device, precision, self.accelerator.num_processes)
        for choice in choices:
            logger.info("%s", choice)
        doubles = near_duplicates(images.hashes)
        warnings = [*doubles, *too_few(len(images), len(self.validation.pairs))]
        for warning in warnings:
            logger.warning("%s", warning)
        start_record(self.out, self.config, self.data)
        record = {
            **read_json(self.out / "run.json"),
            "bicubic": _plain(dataclasses.asdict(measured.mean)),
            "images": {"train": len(images), "validation": len(self.validation.pairs)},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})",
            "precision": precision,
            "processes": self.accelerator.num_processes,
            "versions": {"torch": torch.__version__, "python": platform.python_version(), "transformersr": _own_version()},
            "left_out": [str(finding) for finding in (*images.findings, *warnings)],
        }
        write_json(self.out / "run.json", record)
        logger.info("bicubic: %s", measured.mean)
        if not (self.out / "state.pt").exists():
            self.validate_and_save(run)
        elif (self.out / START).exists():
            self.start = self._measure(load_model(self.out / START).to(device))
        logger.info("training from step %d; the first figures come within a minute", run.progress.step)

    def watch(self, run: RunState, done: float, figures: Mapping[str, float | Tensor]) -> None:
        """Move the bar; log the figures when a line is due, and the forecast as soon as there is one."""
        self.pace.step_done()
        if not self.forecast_given and self.pace.is_known():
            logger.info("%s", self.pace.forecast(self.config, run.progress))
            self.forecast_given = True
        if run.progress.step % self.config.log_every == 0 or time.monotonic() - self.logged_at >= LONGEST_SILENCE:
            self.log(run, figures)
            self.logged_at = time.monotonic()
        self.bar.n = 100 * min(done, 1.0)
        self.bar.set_description_str(f"step {run.progress.step}")
        if self.pace.steps:
            self.bar.set_postfix_str(self.pace.steps_per_second())

    def log(self, run: RunState, figures: Mapping[str, float | Tensor]) -> None:
        """Write one line of figures, or say why not; the one place, with validation, that waits for the device."""
        plain = _plain({name: float(value) for name, value in figures.items()})
        progress = run.progress
        record = {"step": progress.step, "seconds": round(progress.seconds), **plain}
        with _going_on(f"the figures of step {progress.step} are not written"):
            _append(self.out / "train.jsonl", {**record, "skipped": progress.skipped, "rolled_back": progress.rolled_back})
        with _going_on(f"the trackers miss step {progress.step}"):
            self.accelerator.log({f"train/{name}": value for name, value in plain.items() if value is not None}, step=progress.step)
        losses = [f"{name} {value:.4g}" for name, value in plain.items() if name.startswith("loss") and value is not None]
        logger.info("step %d%s: %s", progress.step, self._time_left(progress), ", ".join(losses))

    def _time_left(self, progress: Progress) -> str:
        if not self.pace.steps:
            return ""
        left = self.pace.seconds_left(self.config, progress)
        total = self.config.steps if not self.config.minutes else rounded(progress.step + self.pace.steps_in(self.config, left))
        return f" of {'about ' if self.config.minutes else ''}{total:,}, {self.pace.steps_per_second()}, {duration(left)} left"

    def try_to_save(self, run: RunState) -> None:
        with _going_on(f"step {run.progress.step} is not saved"):
            self.validate_and_save(run)

    def finish(self, run: RunState, stopped: bool) -> None:
        """Save what is not saved yet, write the report, and say what came of it and how to go on."""
        if self.saved_step != run.progress.step:
            self.validate_and_save(run)
        self.bar.close()
        logger.info("report: %s", write_report(self.out))
        for line in self._conclusion(run.progress, stopped):
            logger.info("%s", line)

    def _conclusion(self, progress: Progress, stopped: bool) -> Iterator[str]:
        best = {"psnr_y": progress.best_psnr, "better_on": progress.better_on, "measured_on": len(self.validation.pairs)}
        text = summary(best, self.baseline, dataclasses.asdict(self.validation.bicubic.mean), bool(self.config.gan_weight))
        yield f"best.safetensors (step {progress.best_step}): {text}"
        beaten = bool(self.config.gan_weight) or self.baseline.is_beaten_by(best)
        if self.start is not None and progress.best_step == 0:
            yield f"best.safetensors is still {weights_name(self.config.init)} itself"
        if stopped:
            yield f"stopped at step {progress.step}; go on: {resume(self.out)}"
        elif beaten and (longer := train_longer(self.out, vars(self.config))):
            yield f"finished; to train longer: {longer}"
        elif not beaten:
            yield from self._try_longer(progress)
        if not beaten and progress.step:
            yield f"or take the last weights as they are: {shell('export', self.out, '--last')}"

    def _try_longer(self, progress: Progress) -> Iterator[str]:
        """For a run that has brought nothing: how much longer is worth a try."""
        more = steps_to_add(progress.step)
        seconds = more * self.pace.seconds_a_step if self.pace.steps else 0.0
        minutes = max(math.ceil((progress.seconds + seconds) / 60), math.ceil(self.config.minutes) + 1)
        if longer := train_longer(self.out, vars(self.config), minutes, progress.step + more):
            about = f" (about {duration(seconds)} more at this speed)" if seconds else ""
            yield f"train longer{about}: {longer}"

    @property
    def baseline(self) -> Baseline:
        """What the weights are compared with."""
        start = dataclasses.asdict(self.start.mean) if self.start else {}
        return find_baseline(self.config.init, start, dataclasses.asdict(self.validation.bicubic.mean))

    def validate_and_save(self, run: RunState) -> None:
        """Measure the averaged weights, draw what they make of the watched pairs, and write weights and state. Raises OSError."""
        begun, progress = time.monotonic(), run.progress
        measured = self._measure(run.ema)
        if progress.step == 0 and self.config.init != "none":
            self.start = measured
            save_model(run.ema, self.out / START)
        better_on = self._better_on(measured)
        figures = {**_plain(dataclasses.asdict(measured.mean)), "better_on": better_on, "measured_on": len(measured.each)}
        gain = self.baseline.gain(figures) if progress.step else None
        against = "" if gain is None else f"  ({gain:+.2f} dB against {self.baseline.name})"
        logger.info("measured at step %d: %s%s", progress.step, measured.mean, against)
        _append(self.out / "validation.jsonl", {"step": progress.step, "seconds": round(progress.seconds), **figures})
        strip = self._draw_strip(measured, progress.step)
        save_image(strip, self.out / "strips" / f"{progress.step:07d}.png")
        self._track(figures, strip, progress.step)
        record = {"step": progress.step, "scores": figures, "settings": without_paths(dataclasses.asdict(self.config))}
        metadata = {"training": json.dumps(record)}
        save_model(run.ema, self.out / "last.safetensors", metadata=metadata)
        psnr = measured.mean.psnr_y
        if psnr > progress.best_psnr or self.config.gan_weight:  # against a discriminator PSNR falls, so newest is best
            save_model(run.ema, self.out / "best.safetensors", metadata=metadata)
            progress.best_psnr, progress.best_step, progress.better_on = psnr, progress.step, better_on
        run.save(self.out / "state.pt")
        self.saved_step = progress.step
        self.pace.checkpoint_done(time.monotonic() - begun)

    def _measure(self, net_g: TransformerSR) -> Measured:
        device = next(net_g.parameters()).device

        def upscale(lq: Tensor) -> Tensor:
            with torch.inference_mode():
                return net_g(lq.to(device)).cpu()

        return self.validation.measure(upscale)

    def _better_on(self, measured: Measured) -> int:
        """On how many images this is better than the baseline."""
        before = self.validation.bicubic if self.start is None or self.baseline.name == "bicubic" else self.start
        return sum(now.psnr_y > then.psnr_y for now, then in zip(measured.each, before.each, strict=True))

    def _draw_strip(self, measured: Measured, step: int) -> Image.Image:
        columns = {"bicubic": self.validation.bicubic.watched}
        if self.start is not None and step:
            columns[f"before: {weights_name(self.config.init)}"] = self.start.watched
        columns[f"step {step:,}" if step else "at the start"] = measured.watched
        return draw_strip(self.validation.watched, columns, self.config.scale)

    def _track(self, figures: Mapping[str, Any], strip: Image.Image, step: int) -> None:
        values = {f"validation/{name}": value for name, value in figures.items() if value is not None}
        over = {"validation/psnr_y_over_bicubic": (figures["psnr_y"] or 0) - self.validation.bicubic.mean.psnr_y}
        over["validation/psnr_y_over_start"] = self.baseline.gain(figures) or 0.0
        with _going_on(f"the trackers miss step {step}"):  # TensorBoard's writer never recovers from a full disk
            self.accelerator.log({**values, **over}, step=step)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.log_images({"bicubic, before, after, your image": np.asarray(strip)[None]}, step=step, dataformats="NHWC")


def start_record(out: Path, config: TrainConfig, data: Path) -> None:
    """Write down settings and images of a run before anything else, so that it can be resumed whatever ends it."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", dataclasses.asdict(config))
    write_json(out / "run.json", {**read_json(out / "run.json"), "data": str(data.resolve())})


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file; empty where there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


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
