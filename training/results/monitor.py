"""Log and save a run as it goes: metrics, strips, weights and state."""

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

from ...arch import TransformerSR
from ...upscale.atomic import write_aside
from ...upscale.checkpoint import load_model, save_model
from ...upscale.memory import is_out_of_memory
from ...upscale.messages import BAR
from ..config import TrainConfig, without_paths
from ..data.check import near_duplicates, size_warnings
from ..data.folders import Split
from ..data.image_cache import ImageStore
from ..run_state import Progress, RunState
from .advice import command_line, resume_command, train_longer_command
from .pace import Pace, duration, round_two_digits
from .report import write_report
from .run_files import read_object
from .strips import draw_strip, save_image
from .validate import Measurement, Validation, validation_pairs
from .verdict import Baseline, find_baseline, steps_to_add, summary, weights_name

logger = logging.getLogger(__name__)

START = "start.safetensors"
"""The weights a run started from, to compare with."""
MAX_LOG_INTERVAL = 60
"""Most seconds between two log lines, whatever the steps."""


class Monitor:
    """Interface for logging and saving a run. This base class does nothing, for all processes but the main one (`FolderMonitor`)."""

    def begin(self, run: RunState, images: ImageStore, precision: str, choices: Sequence[str]) -> None:
        """Called when the run starts or resumes; `choices` are lines on the settings that were chosen automatically."""

    def record_step(self, run: RunState, done: float, metrics: Mapping[str, float | Tensor]) -> None:
        """Called after each step; `done` is the fraction of the run that is done."""

    def try_to_save(self, run: RunState) -> None:
        """Save a checkpoint. If disk or memory is full, log that, keep what was saved before, and continue."""

    def finish(self, run: RunState, stopped: bool) -> None:
        """Called at the end of the run, or when it was `stopped`. Raises OSError if it cannot be saved."""


def open_monitor(out: Path, config: TrainConfig, data: Path, files: Split, workers: int, accelerator: Accelerator) -> Monitor:
    """Open the monitor of a run in the folder `out`; only the main process writes."""
    if not accelerator.is_main_process:
        return Monitor()
    pairs = validation_pairs(
        files.validation, config.scale, config.validation_crop, files.partners, config.max_pixels, workers, config.preset
    )
    return FolderMonitor(out, config, data, Validation.prepare(pairs, config.scale), accelerator)


@dataclass
class FolderMonitor(Monitor):
    """Logs and saves a run in its folder; trackers such as TensorBoard get the same metrics."""

    out: Path
    config: TrainConfig
    data: Path
    validation: Validation
    accelerator: Accelerator
    start: Measurement | None = None
    """Scores of the initial weights; None for a run from scratch."""
    saved_step: int = -1
    pace: Pace = field(default_factory=Pace)
    forecast_logged: bool = False
    logged_at: float = field(default_factory=time.monotonic)
    bar: Any = field(default_factory=lambda: tqdm(total=100, unit="%", bar_format=BAR, disable=None))

    def begin(self, run: RunState, images: ImageStore, precision: str, choices: Sequence[str]) -> None:
        """Write `run.json` and save the initial weights: the run can roll back to them, and a disk that is not writable shows up now."""
        device, bicubic = self.accelerator.device, self.validation.bicubic
        logger.info("device: %s, precision: %s, processes: %d", device, precision, self.accelerator.num_processes)
        for choice in choices:
            logger.info("%s", choice)
        duplicates = near_duplicates(images.hashes)
        warnings = [*duplicates, *size_warnings(len(images), len(self.validation.pairs))]
        for warning in warnings:
            logger.warning("%s", warning)
        record_settings(self.out, self.config, self.data)
        record = {
            **read_object(self.out / "run.json"),
            "bicubic": _finite_or_none(dataclasses.asdict(bicubic.mean)),
            "images": {"train": len(images), "validation": len(self.validation.pairs)},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})",
            "precision": precision,
            "processes": self.accelerator.num_processes,
            "versions": {"torch": torch.__version__, "python": platform.python_version(), "transformersr": _own_version()},
            "warnings": [str(finding) for finding in (*images.findings, *warnings)],
        }
        write_json(self.out / "run.json", record)
        logger.info("bicubic: %s", bicubic.mean)
        if not (self.out / "state.pt").exists():
            self.validate_and_save(run)
        elif (self.out / START).exists():
            self.start = self._measure(load_model(self.out / START).to(device))
        logger.info("training from step %d; the first log line appears within a minute", run.progress.step)

    def record_step(self, run: RunState, done: float, metrics: Mapping[str, float | Tensor]) -> None:
        """Update the progress bar; log the metrics when due, and the forecast as soon as there is one."""
        self.pace.record_step()
        if not self.forecast_logged and self.pace.is_known():
            logger.info("%s", self.pace.forecast(self.config, run.progress))
            self.forecast_logged = True
        if run.progress.step % self.config.log_every == 0 or time.monotonic() - self.logged_at >= MAX_LOG_INTERVAL:
            self.log(run, metrics)
            self.logged_at = time.monotonic()
        self.bar.n = 100 * min(done, 1.0)
        self.bar.set_description_str(f"step {run.progress.step}")
        if self.pace.steps:
            self.bar.set_postfix_str(self.pace.steps_per_second())

    def log(self, run: RunState, metrics: Mapping[str, float | Tensor]) -> None:
        """Write one line of metrics, or log why not. Only this and validation wait for the device."""
        values = _finite_or_none({name: float(value) for name, value in metrics.items()})
        progress = run.progress
        record = {"step": progress.step, "seconds": round(progress.seconds), **values}
        with _log_and_continue(f"metrics of step {progress.step} are not written"):
            _append(self.out / "train.jsonl", {**record, "skipped": progress.skipped, "rolled_back": progress.rolled_back})
        with _log_and_continue(f"metrics of step {progress.step} are missing in the trackers"):
            self.accelerator.log({f"train/{name}": value for name, value in values.items() if value is not None}, step=progress.step)
        losses = [f"{name} {value:.4g}" for name, value in values.items() if name.startswith("loss") and value is not None]
        logger.info("step %d%s: %s", progress.step, self._time_left(progress), ", ".join(losses))

    def _time_left(self, progress: Progress) -> str:
        if not self.pace.steps:
            return ""
        left = self.pace.seconds_left(self.config, progress)
        total = self.config.steps if not self.config.minutes else round_two_digits(progress.step + self.pace.steps_in(self.config, left))
        return f" of {'about ' if self.config.minutes else ''}{total:,}, {self.pace.steps_per_second()}, {duration(left)} left"

    def try_to_save(self, run: RunState) -> None:
        with _log_and_continue(f"step {run.progress.step} is not saved"):
            self.validate_and_save(run)

    def finish(self, run: RunState, stopped: bool) -> None:
        """Save the last step if necessary, write the report, and log the result and the next commands."""
        if self.saved_step != run.progress.step:
            self.validate_and_save(run)
        self.bar.close()
        logger.info("report: %s", write_report(self.out))
        for line in self._closing_lines(run.progress, stopped):
            logger.info("%s", line)

    def _closing_lines(self, progress: Progress, stopped: bool) -> Iterator[str]:
        best = {"psnr_y": progress.best_psnr, "better_on": progress.better_on, "measured_on": len(self.validation.pairs)}
        text = summary(best, self.baseline, dataclasses.asdict(self.validation.bicubic.mean), bool(self.config.gan_weight))
        yield f"best.safetensors (step {progress.best_step}): {text}"
        beaten = bool(self.config.gan_weight) or self.baseline.is_beaten_by(best)
        if self.start is not None and progress.best_step == 0:
            yield f"best.safetensors is still the same as {weights_name(self.config.init)}"
        if stopped:
            yield f"stopped at step {progress.step}; to resume: {resume_command(self.out)}"
        elif beaten and (longer := train_longer_command(self.out, vars(self.config))):
            yield f"finished; to train longer: {longer}"
        elif not beaten:
            yield from self._suggest_longer(progress)
        if not beaten and progress.step:
            yield f"or export the last weights as they are: {command_line('export', self.out, '--last')}"

    def _suggest_longer(self, progress: Progress) -> Iterator[str]:
        """Suggest how much longer to train after a run without a gain."""
        more = steps_to_add(progress.step)
        seconds = more * self.pace.seconds_per_step if self.pace.steps else 0.0
        minutes = max(math.ceil((progress.seconds + seconds) / 60), math.ceil(self.config.minutes) + 1)
        if longer := train_longer_command(self.out, vars(self.config), minutes, progress.step + more):
            extra = f" (about {duration(seconds)} more at this speed)" if seconds else ""
            yield f"to train longer{extra}: {longer}"

    @property
    def baseline(self) -> Baseline:
        """The baseline that the weights are compared with."""
        start = dataclasses.asdict(self.start.mean) if self.start else {}
        return find_baseline(self.config.init, start, dataclasses.asdict(self.validation.bicubic.mean))

    def validate_and_save(self, run: RunState) -> None:
        """Validate the averaged weights, draw the strip of the example pairs, and save weights and state. Raises OSError."""
        started, progress = time.monotonic(), run.progress
        result = self._measure(run.ema)
        if progress.step == 0 and self.config.init != "none":
            self.start = result
            save_model(run.ema, self.out / START)
        better_on = self._count_better(result)
        metrics = {**_finite_or_none(dataclasses.asdict(result.mean)), "better_on": better_on, "measured_on": len(result.each)}
        gain = self.baseline.gain(metrics) if progress.step else None
        comparison = "" if gain is None else f"  ({gain:+.2f} dB compared with {self.baseline.name})"
        logger.info("validation at step %d: %s%s", progress.step, result.mean, comparison)
        _append(self.out / "validation.jsonl", {"step": progress.step, "seconds": round(progress.seconds), **metrics})
        strip = self._draw_strip(result, progress.step)
        save_image(strip, self.out / "strips" / f"{progress.step:07d}.png")
        self._log_to_trackers(metrics, strip, progress.step)
        record = {"step": progress.step, "scores": metrics, "settings": without_paths(dataclasses.asdict(self.config))}
        metadata = {"training": json.dumps(record)}
        save_model(run.ema, self.out / "last.safetensors", metadata=metadata)
        psnr = result.mean.psnr_y
        if psnr > progress.best_psnr or self.config.gan_weight:  # PSNR falls in adversarial training, so the newest is the best
            save_model(run.ema, self.out / "best.safetensors", metadata=metadata)
            progress.best_psnr, progress.best_step, progress.better_on = psnr, progress.step, better_on
        run.save(self.out / "state.pt")
        self.saved_step = progress.step
        self.pace.record_checkpoint(time.monotonic() - started)

    def _measure(self, net_g: TransformerSR) -> Measurement:
        def upscale(lq: Tensor) -> Tensor:
            with torch.inference_mode():
                return net_g(lq.to(net_g.device)).cpu()

        return self.validation.measure(upscale)

    def _count_better(self, result: Measurement) -> int:
        """Count the images on which a result is better than the baseline."""
        baseline = self.validation.bicubic if self.start is None or self.baseline.name == "bicubic" else self.start
        return sum(ours.psnr_y > theirs.psnr_y for ours, theirs in zip(result.each, baseline.each, strict=True))

    def _draw_strip(self, result: Measurement, step: int) -> Image.Image:
        columns = {"bicubic": self.validation.bicubic.examples}
        if self.start is not None and step:
            columns[f"before: {weights_name(self.config.init)}"] = self.start.examples
        columns[f"step {step:,}" if step else "at the start"] = result.examples
        return draw_strip(self.validation.examples, columns, self.config.scale)

    def _log_to_trackers(self, metrics: Mapping[str, Any], strip: Image.Image, step: int) -> None:
        values = {f"validation/{name}": value for name, value in metrics.items() if value is not None}
        gains = {"validation/psnr_y_over_bicubic": (metrics["psnr_y"] or 0) - self.validation.bicubic.mean.psnr_y}
        gains["validation/psnr_y_over_start"] = self.baseline.gain(metrics) or 0.0
        with _log_and_continue(f"metrics of step {step} are missing in the trackers"):  # TensorBoard never recovers from a full disk
            self.accelerator.log({**values, **gains}, step=step)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.log_images({"bicubic, before, after, your image": np.asarray(strip)[None]}, step=step, dataformats="NHWC")


def record_settings(out: Path, config: TrainConfig, data: Path) -> None:
    """Save settings and image folder of a run before anything else, so that it can be resumed however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", dataclasses.asdict(config))
    write_json(out / "run.json", {**read_object(out / "run.json"), "data": str(data.resolve())})


def _own_version() -> str:
    try:
        return version("transformersr")
    except PackageNotFoundError:  # run from a folder, without an install
        return "not installed"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object atomically as JSON."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _append(path: Path, values: Mapping[str, Any]) -> None:
    """Append a line of JSON; on an error, the file is restored."""
    end = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
    except OSError:
        with suppress(OSError):
            os.truncate(path, end)
        raise


@contextmanager
def _log_and_continue(failure: str) -> Iterator[None]:
    """If disk or memory is full or a file is not writable, log the failure and its reason, and continue."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space" if full else str(error).partition("\n")[0] or "not enough memory"
        logger.error("%s (%s); what was saved before is kept, and the run continues", failure, reason)


def _finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON: NaN and infinite values become None."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
