"""The training loop."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm

from ..upscale.memory import keep_freed_memory
from ..upscale.processes import check_cpu_processes
from .config import TrainConfig
from .data.check import count_of
from .data.dataset import CropDataset, training_crops
from .data.folders import split_images
from .data.image_cache import Cache, find_training_images
from .losses import Losses
from .networks import update_average
from .plan import choose_micro_batch, choose_precision, choose_workers, device_kind, fill_in
from .results.monitor import open_monitor, record_settings
from .run_state import Progress, RunState
from .schedule import fraction_done, is_checkpoint_due, learning_rate, set_learning_rate
from .steps import Networks, add_gradients, advance_gan_ramp, handle_skipped_step, optimizer_step, track_discriminator

logger = logging.getLogger(__name__)

SYNC_EVERY = 10
"""Steps between two synchronizations of time and stop requests across processes, which make them wait for each other."""


def train(config: TrainConfig, data: str | Path, out: str | Path, resume: bool = False) -> Path:
    """Train a network on a folder of images and return the path of its best weights.

    `out` receives `config.json`, `run.json` and `state.pt` (to resume), `start.safetensors` (the weights the run started from, if any),
    `last.safetensors` and `best.safetensors` (moving averages; best validation PSNR), `train.jsonl` and `validation.jsonl` (metrics),
    `strips/` (images before and after), `logs/` of the trackers, `report.html` at the end, and `cache/` if images are cached in a file.
    Ctrl-C ends the run after the current step and saves it.

    Started by `torchrun` or `accelerate launch`, several processes share each batch and reach the same weights as one.

    Raises:
        ValueError: if the folder or the settings cannot be used.
        FileExistsError: if `out` holds a run and `resume` is off.
        FloatingPointError: if gradients remain NaN or infinite, even after a return to the last good state at half the rate.
    """
    data, out = Path(data), Path(out)
    state_file = out / "state.pt"
    if state_file.exists() and not resume:
        raise FileExistsError(f"{out} already holds a run; resume it with --resume, or choose another folder")
    if config.threads:
        torch.set_num_threads(config.threads)
    config, choices = fill_in(config)
    accelerator, precision = start_accelerator(config, out)
    if accelerator.device.type == "cpu":
        keep_freed_memory()

    files = split_images(data, config.validation, config.exclude, out, config.scale)  # without the run's own strips
    files.log_skipped()
    logger.info(
        "reading %s and %s from %s", count_of(len(files.train), "training image"), count_of(len(files.validation), "validation image"), data
    )
    if accelerator.is_main_process and not state_file.exists():
        record_settings(out, config, data)
    workers = choose_workers(config, accelerator.device, accelerator.num_processes)
    cache = Cache(out / "cache", int(config.memory_gb * 2**30), shared=accelerator.num_processes > 1)
    with accelerator.main_process_first():  # one process writes the cache, the others read it
        images = find_training_images(config, files, cache, workers)
    crops = training_crops(config, images)
    setup = config, accelerator.device, accelerator.scaler
    run = RunState.resume(state_file, *setup) if state_file.exists() else RunState.start(*setup)
    nets = Networks.prepare(run, config, accelerator)
    losses = Losses(config).to(accelerator.device)
    progress = run.progress
    micro_batch, why = choose_micro_batch(config, run.net_g, accelerator.device, accelerator.num_processes)
    progress.micro_batch = config.micro_batch or progress.micro_batch or micro_batch
    accelerator.init_trackers("transformersr")
    monitor = open_monitor(out, config, data, files, workers, accelerator)
    monitor.begin(run, images, precision, (*choices, f"equivariant: {'on' if run.symmetry else 'off'}", f"workers: {workers}", why))
    accelerator.wait_for_everyone()

    started, saved = time.monotonic() - progress.seconds, progress.seconds
    with stop_on_signals() as stop, logging_redirect_tqdm():
        for lq, gt in batches(crops, config, workers, progress.step, accelerator):
            progress.seconds, stop_requested = sync_clock(accelerator, progress, time.monotonic() - started, stop)
            done = fraction_done(config, progress)
            if done >= 1 or stop_requested:
                break
            rate = learning_rate(config, progress.step, done) * (0.5 if progress.rolled_back else 1.0)
            set_learning_rate(run.optimizer, rate)
            lq, gt = (batch.to(accelerator.device, non_blocking=True).float() / 255 for batch in (lq, gt))
            metrics = add_gradients(accelerator, run, nets, losses, lq, gt, done)
            if run.symmetry is not None:
                run.symmetry.project_gradients()
            norm = accelerator.clip_grad_norm_(run.net_g.parameters(), config.clip_norm)
            if optimizer_step(run, nets, norm):
                advance_gan_ramp(run, config)
                update_average(run.ema, run.net_g, config.ema_decay, progress.step + 1)
            elif handle_skipped_step(run, [crops.location(index) for index in crop_indices(config, progress.step, accelerator)]):
                run.roll_back(state_file)  # only the weights: time, schedule and crops continue
            progress.step += 1

            track_discriminator(run, config)
            monitor.record_step(run, done, {**metrics, "gradient_norm": norm, "learning_rate": rate})
            if is_checkpoint_due(config, progress, saved):
                monitor.try_to_save(run)
                accelerator.wait_for_everyone()
                saved = progress.seconds
    monitor.finish(run, stopped=stop.is_set())
    with suppress(OSError):  # from a tracker whose disk was full, which is already in the log
        accelerator.end_training()
    return out / "best.safetensors"


# --- setting up ----------------------------------------------------------------------------------


def start_accelerator(config: TrainConfig, out: Path) -> tuple[Accelerator, str]:
    """Set up devices, processes, precision and trackers; also return the name of the precision."""
    precision = choose_precision(config)
    if AcceleratorState._shared_state and AcceleratorState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process may have had other settings
    trackers = [name for name in config.trackers if _is_installed(name)]
    on_cpu = device_kind(config) == "cpu"  # must be set explicitly, or several processes on CPUs do not find each other
    if on_cpu:
        check_cpu_processes()
    mixed = "no" if precision == "fp32" else precision
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, log_with=trackers or None, project_dir=out / "logs")
    return accelerator, precision


def _is_installed(tracker: str) -> bool:
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    return is_tensorboard_available() if tracker == "tensorboard" else is_wandb_available()


def batches(
    crops: CropDataset, config: TrainConfig, workers: int, first_step: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's share of `lq` and `gt` (uint8) for step `first_step` and every later one."""
    steps = itertools.count(first_step)
    indices: Any = (crop_indices(config, step, accelerator) for step in steps)  # a generator, although the stubs require a Sampler
    return iter(DataLoader(crops, batch_sampler=indices, num_workers=workers, pin_memory=accelerator.device.type == "cuda"))


def crop_indices(config: TrainConfig, step: int, accelerator: Accelerator) -> range:
    """Indices of this process's crops in a step."""
    share = config.batch // accelerator.num_processes
    start = step * config.batch + accelerator.process_index * share
    return range(start, start + share)


# --- running -------------------------------------------------------------------------------------


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set, so that a run ends after a complete step; a second Ctrl-C ends it at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def sync_clock(accelerator: Accelerator, progress: Progress, seconds: float, stop: threading.Event) -> tuple[float, bool]:
    """Return the time spent and whether to stop, equal in all processes: learning rates and the last step depend on them."""
    if accelerator.num_processes == 1:
        return seconds, stop.is_set()
    if progress.step % SYNC_EVERY:
        return progress.seconds, False
    gathered = gather(torch.tensor([[seconds, float(stop.is_set())]], dtype=torch.float32, device=accelerator.device))
    return float(gathered[0, 0]), bool(gathered[:, 1].any())
