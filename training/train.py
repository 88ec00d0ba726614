"""The training loop."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm

from ..upscale.engine import is_out_of_memory, keep_freed_memory
from ..upscale.processes import check_cpu_processes
from .adversarial import R1_EVERY, discriminator_loss, generator_loss, r1_penalty
from .config import TrainConfig
from .dataset import CropDataset
from .folders import Split, split_pictures
from .losses import color_loss, edge_weighted_l1
from .monitor import Monitor, Validation
from .networks import checkpoint_groups, update_average
from .perceptual import FeatureLoss, RandomFilterLoss
from .plan import choose_micro_batch, choose_precision, choose_workers, device_kind, fill_in
from .run_state import Progress, RunState
from .store import Cache, Drawings, PictureStore, read_pictures
from .strips import contact_sheet, save_image, to_image

logger = logging.getLogger(__name__)

MOST_SKIPPED = 10
"""Steps in a row whose gradient is not finite before a run returns to its last good state."""

AGREE_EVERY = 10
"""Steps between two agreements of several processes on the time and on stopping, for which they wait for each other."""

LONGEST_WARMUP = 0.05
"""Share of a run after which its warm-up ends, however few steps that is."""

STRONG, STRONG_STEPS = 0.95, 1000
"""A discriminator that has been right this often for this long is ahead: the adversarial loss is not raised any more."""


def train(config: TrainConfig, data: str | Path, out: str | Path, resume: bool = False) -> Path:
    """Train a network on a folder of pictures and return the path of its best weights.

    `out` receives `config.json`, `run.json`, `state.pt` (to resume), `last.safetensors` and `best.safetensors` (moving averages; best
    validation PSNR), `train.jsonl` and `validation.jsonl` (figures), `strips/` of pictures beside bicubic and the truth,
    `logs/` of the trackers, at the end `report.html`, and `cache/` where pictures are kept in a file.
    Ctrl-C ends the run after the step it is in, saved.

    Started by `torchrun` or `accelerate launch`, several processes share each batch and come to the same weights as one.

    Raises:
        ValueError: where the folder or the settings cannot be used.
        FileExistsError: where `out` holds a run and `resume` is off.
        FloatingPointError: where gradients stay without end or number, even from the last good state at half the rate.
    """
    out = Path(out)
    state_file = out / "state.pt"
    if state_file.exists() and not resume:
        raise FileExistsError(f"{out} already holds a run; resume it, or choose another folder")
    if config.threads:
        torch.set_num_threads(config.threads)
    config, choices = fill_in(config)
    accelerator, precision = start_accelerator(config, out)
    if accelerator.device.type == "cpu":
        keep_freed_memory()

    files = split_pictures(data, config.validation, config.exclude, out, config.scale)  # the strips of a run are no pictures to learn from
    files.tell()
    workers = choose_workers(config, accelerator.device, accelerator.num_processes)
    cache = Cache(out / "cache", int(config.memory_gb * 2**30), shared=accelerator.num_processes > 1)
    with accelerator.main_process_first():  # one writes the cache, the others find it
        pictures = find_training_pictures(config, files, cache, workers)
    crops = training_crops(config, pictures)
    device = accelerator.device
    given = config, device, accelerator.scaler
    run = RunState.resume(state_file, *given) if state_file.exists() else RunState.start(*given)
    nets = Networks.prepare(run, config, accelerator)
    progress = run.progress
    micro_batch, why = choose_micro_batch(config, run.net, accelerator.device, accelerator.num_processes)
    progress.micro_batch = config.micro_batch or progress.micro_batch or micro_batch
    losses = Losses(config).to(accelerator.device)
    monitor = None
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        monitor = Monitor(out, config, Validation.of(files, config, workers), accelerator)
        monitor.begin(pictures, precision, (*choices, f"workers: {workers}", why))
        if not state_file.exists():
            monitor.validate_and_save(run)  # where it starts from and can go back to; a disk that cannot be written shows now
    accelerator.init_trackers("transformersr")
    accelerator.wait_for_everyone()

    begun, saved = time.monotonic() - progress.seconds, progress.seconds
    with stop_on_signals() as stop, logging_redirect_tqdm():
        for lq, gt in batches(crops, config, workers, progress.step, accelerator):
            progress.seconds, stopping = agree(accelerator, progress, time.monotonic() - begun, stop)
            done = schedule(config, progress)
            if done >= 1 or stopping:
                break
            rate = learning_rate(config, progress.step, done) * (0.5 if progress.went_back else 1.0)
            set_rate(run.optimizer, rate)
            lq, gt = (images.to(accelerator.device, non_blocking=True).float() / 255 for images in (lq, gt))
            figures = add_gradients(accelerator, run, nets, losses, lq, gt, done)
            norm = accelerator.clip_grad_norm_(run.net.parameters(), config.clip_norm)
            if follow_gradients(run, nets, norm):
                climb_ramp(run, config)
                update_average(run.ema, run.net, config.ema_decay, progress.step + 1)
            elif skipped_too_many(run, [crops.place(index) for index in crop_numbers(config, progress.step, accelerator)]):
                run.go_back(state_file)  # weights alone: time, rates and crops go on
            progress.step += 1

            if progress.step % config.log_every == 0:
                watch_discriminator(run, config)
                if monitor:
                    monitor.log(run, done, {**figures, "gradient_norm": norm, "learning_rate": rate})
            if is_due(config, progress, saved):
                if monitor:
                    monitor.try_to_save(run)
                accelerator.wait_for_everyone()
                saved = progress.seconds
            if monitor:
                monitor.show(done, progress.step)
    if monitor:
        monitor.finish(run)
    if monitor and stop.is_set():
        logger.info("stopped at step %d; go on with --resume", progress.step)
    accelerator.end_training()
    return out / "best.safetensors"


# --- setting up ----------------------------------------------------------------------------------


def start_accelerator(config: TrainConfig, out: Path) -> tuple[Accelerator, str]:
    """Devices, processes, precision and trackers, and the name of the precision."""
    precision = choose_precision(config)
    if AcceleratorState._shared_state and AcceleratorState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process may have had other settings
    trackers = [name for name in config.trackers if _is_installed(name)]
    on_cpu = device_kind(config) == "cpu"  # has to be said, or several processes on CPUs do not find each other
    if on_cpu:
        check_cpu_processes()
    mixed = "no" if precision == "fp32" else precision
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, log_with=trackers or None, project_dir=out / "logs")
    return accelerator, precision


def _is_installed(tracker: str) -> bool:
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    return is_tensorboard_available() if tracker == "tensorboard" else is_wandb_available()


@dataclass
class Networks:
    """The networks of a run as its steps call them: in mixed precision, compiled, one of several processes."""

    forward: nn.Module
    optimizer: Any
    net_d: nn.Module | None

    @classmethod
    def prepare(cls, run: RunState, config: TrainConfig, accelerator: Accelerator) -> Networks:
        """Hand networks and optimiser to accelerate. The discriminator's optimiser stays outside: it works in float32, without a scaler."""
        if config.checkpointing:
            checkpoint_groups(run.net)
        forward, optimizer = accelerator.prepare(torch.compile(run.net) if config.compile else run.net, run.optimizer)
        return cls(forward, optimizer, accelerator.prepare_model(run.net_d) if run.net_d else None)


class Losses(nn.Module):
    """What is asked of the network."""

    def __init__(self, config: TrainConfig):
        super().__init__()
        self.config = config
        self.filters = RandomFilterLoss(config.seed) if config.filter_weight else None
        self.features = FeatureLoss(config.feature_file) if config.feature_weight else None

    def forward(self, sr: Tensor, gt: Tensor, run: RunState, done: float) -> dict[str, Tensor]:
        """Weighted losses by name at this point of the run; their sum is what training lowers."""
        config = self.config
        terms = {"loss": edge_weighted_l1(sr, gt, flat_weight=1.0 if done < config.edge_start else config.flat_weight)}
        if self.filters is not None:
            terms["loss_filters"] = config.filter_weight * self.filters(sr, gt, run.progress.step)
        if config.color_weight:
            terms["loss_color"] = config.color_weight * color_loss(sr, gt)
        if self.features is not None:
            terms["loss_features"] = config.feature_weight * self.features(sr, gt)
        if run.net_d is not None and run.progress.gan_steps:
            weight = config.gan_weight * min(1.0, run.progress.gan_steps / config.gan_ramp)
            terms["loss_gan"] = weight * generator_loss(run.net_d.requires_grad_(False), sr, gt, config.gan_relativistic)
            run.net_d.requires_grad_(True)
        return terms


def find_training_pictures(config: TrainConfig, files: Split, cache: Cache | None = None, workers: int = 0) -> PictureStore:
    """The pictures of a run, their small versions where they have some, and drawings."""
    drawings = Drawings(config.drawings, config.drawings_size, config.seed)
    smallest = config.patch * config.scale
    return read_pictures(files.train, smallest, config.scale, files.partners, config.max_pixels, drawings, cache, workers)


def training_crops(config: TrainConfig, pictures: PictureStore) -> CropDataset:
    """The crops of a run."""
    return CropDataset(
        pictures, config.patch, config.scale, config.preset, config.keep_flat, config.seed, config.drawings_share, config.reduced
    )


def draw_crops(config: TrainConfig, data: str | Path, path: Path, count: int = 16) -> None:
    """Write a sheet of crops as a run has them, what the network gets beside what it is to make of it, from a few of the pictures."""
    config, _ = fill_in(config)
    files = split_pictures(data, config.validation, config.exclude, scale=config.scale)
    few = files.train[:: -(-len(files.train) // (2 * count))]
    fewer = dataclasses.replace(config, drawings=min(config.drawings, count))
    crops = training_crops(config, find_training_pictures(fewer, dataclasses.replace(files, train=few)))
    pairs = [[to_image(images[None] / 255) for images in crops[index]] for index in range(count)]
    rows = [[*left, *right] for left, right in zip(pairs[::2], pairs[1::2], strict=True)]
    save_image(contact_sheet(rows, ["given", "wanted"] * 2, cell=256), path)


def batches(
    crops: CropDataset, config: TrainConfig, workers: int, first_step: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of `lq` and `gt` (uint8) for step `first_step` and all after it."""
    steps = itertools.count(first_step)
    indices: Any = (crop_numbers(config, step, accelerator) for step in steps)  # a generator, where the stubs want a Sampler
    return iter(DataLoader(crops, batch_sampler=indices, num_workers=workers, pin_memory=accelerator.device.type == "cuda"))


def crop_numbers(config: TrainConfig, step: int, accelerator: Accelerator) -> range:
    """The crops of a step that are this process's."""
    share = config.batch // accelerator.num_processes
    start = step * config.batch + accelerator.process_index * share
    return range(start, start + share)


# --- one step ------------------------------------------------------------------------------------


def add_gradients(
    accelerator: Accelerator, run: RunState, nets: Networks, losses: Losses, lq: Tensor, gt: Tensor, done: float
) -> dict[str, Tensor]:
    """Work out the gradients of a batch, a micro-batch at a time; one that does not fit into memory is halved for good.

    Returns mean figures, which stay on the device.
    """
    while True:
        try:
            return _add_gradients(accelerator, run, nets, losses, lq, gt, done)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or run.progress.micro_batch == 1 or accelerator.num_processes > 1:
                raise  # of several processes the others have gone on, and would wait for ever
        run.progress.micro_batch = min(run.progress.micro_batch, len(lq)) // 2
        logger.warning("out of memory: the micro-batch is %d from here on, the batch stays the same", run.progress.micro_batch)
        forget_gradients(run, nets)
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def _add_gradients(
    accelerator: Accelerator, run: RunState, nets: Networks, losses: Losses, lq: Tensor, gt: Tensor, done: float
) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    pieces = list(zip(lq.split(run.progress.micro_batch), gt.split(run.progress.micro_batch), strict=True))
    for index, piece in enumerate(pieces):
        share = len(piece[0]) / len(lq)
        with ExitStack() as local:
            if index + 1 < len(pieces):  # processes exchange gradients once a step
                local.enter_context(accelerator.no_sync(nets.forward))
                if nets.net_d is not None:
                    local.enter_context(accelerator.no_sync(nets.net_d))
            sr = nets.forward(piece[0])
            terms = losses(sr, piece[1], run, done)
            accelerator.backward(sum(terms.values()) * share)
            if nets.net_d is not None:
                terms |= add_discriminator_gradients(run, nets.net_d, losses.config, sr.detach(), piece[1], share)
        for name, value in terms.items():
            totals[name] = totals.get(name, 0) + value.detach() * share
    return totals


def add_discriminator_gradients(
    run: RunState, net_d: nn.Module, config: TrainConfig, sr: Tensor, gt: Tensor, share: float
) -> dict[str, Tensor]:
    """Add the discriminator's gradients for a micro-batch that is `share` of the batch, and return its figures."""
    assert run.net_d is not None
    if config.gan_r1 and run.progress.step % R1_EVERY == 0:  # before the pass that exchanges gradients, so that these go with it
        (config.gan_r1 * R1_EVERY * share * r1_penalty(run.net_d, gt)).backward()
    loss, figures = discriminator_loss(net_d, sr, gt, config.gan_relativistic)
    (loss * share).backward()
    run.net_d.accuracy.lerp_(figures["d_right"], 0.01 * share)
    return {"loss_d": loss, **figures}


def follow_gradients(run: RunState, nets: Networks, norm: Tensor) -> bool:
    """Take the step, unless a gradient is not finite, and forget the gradients. Returns whether it was taken."""
    progress = run.progress
    good = finite = bool(norm.isfinite())  # this waits for the device, once a step: nothing else keeps bad numbers out of the weights
    if run.net_d is not None:
        good = good and bool(nn.utils.clip_grad_norm_(run.net_d.parameters(), math.inf).isfinite())
    if good or (run.scaler is not None and not finite):  # the scaler leaves steps of the network out by itself, and learns from them
        nets.optimizer.step()
    elif run.scaler is not None:
        run.scaler.update()  # of the discriminator it knows nothing
    if good and run.optimizer_d is not None:
        run.optimizer_d.step()
    forget_gradients(run, nets)
    progress.skipped_in_a_row = 0 if good else progress.skipped_in_a_row + 1
    progress.skipped += not good
    return good


def climb_ramp(run: RunState, config: TrainConfig) -> None:
    """One step up towards the full adversarial loss, unless the discriminator still trains alone, or is far ahead."""
    if run.net_d is not None and run.progress.step >= config.gan_start and run.progress.strong_steps < STRONG_STEPS:
        run.progress.gan_steps += 1


def watch_discriminator(run: RunState, config: TrainConfig) -> None:
    """Count for how long the discriminator has been right nearly always."""
    if run.net_d is not None:
        strong = bool(run.net_d.accuracy > STRONG)
        run.progress.strong_steps = run.progress.strong_steps + config.log_every if strong else 0


def forget_gradients(run: RunState, nets: Networks) -> None:
    """Clear all gradients."""
    nets.optimizer.zero_grad(set_to_none=True)
    if run.optimizer_d is not None:
        run.optimizer_d.zero_grad(set_to_none=True)


def skipped_too_many(run: RunState, places: Sequence[object]) -> bool:
    """Name the crops of a step without effect, and say whether to go back. That is done once; then FloatingPointError is raised."""
    progress = run.progress
    logger.warning("step %d is skipped, its gradient is not finite; its crops: %s", progress.step, "; ".join(map(str, places)))
    if progress.skipped_in_a_row < MOST_SKIPPED:
        return False
    if progress.went_back:
        raise FloatingPointError(
            f"step {progress.step}: {MOST_SKIPPED} gradients in a row are not finite, at half the learning rate too; the last good state "
            "is kept: look at the crops named above, lower learning_rate, or take precision fp32, and --resume"
        )
    logger.warning("%d steps in a row: back to the last good state, on at half the learning rate", MOST_SKIPPED)
    progress.went_back, progress.skipped_in_a_row = True, 0
    return True


# --- the course of a run -------------------------------------------------------------------------


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and a polite kill set, so that a run ends after a whole step; a second Ctrl-C ends it at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agree(accelerator: Accelerator, progress: Progress, seconds: float, stop: threading.Event) -> tuple[float, bool]:
    """The time spent and whether to stop, the same in all processes: rates and the last step follow from them."""
    if accelerator.num_processes == 1:
        return seconds, stop.is_set()
    if progress.step % AGREE_EVERY:
        return progress.seconds, False
    told = gather(torch.tensor([[seconds, float(stop.is_set())]], dtype=torch.float32, device=accelerator.device))
    return float(told[0, 0]), bool(told[:, 1].any())


def is_due(config: TrainConfig, progress: Progress, saved: float) -> bool:
    """Whether to validate and save now, by steps or by the seconds since `saved`."""
    by_steps = config.save_every and progress.step % config.save_every == 0
    return bool(by_steps or (config.save_minutes and progress.seconds - saved >= 60 * config.save_minutes))


def schedule(config: TrainConfig, progress: Progress) -> float:
    """Share of the run that is done."""
    return progress.seconds / (60 * config.minutes) if config.minutes else progress.step / config.steps


def learning_rate(config: TrainConfig, step: int, done: float) -> float:
    """The rate of the phase that `step` is in; without phases a linear warm-up, then half a cosine down to nothing."""
    end = 0
    for count, rate in config.parsed_phases():
        end += count
        if step < end:
            return rate
    warm = min(1.0, max((step + 1) / config.warmup_steps, done / LONGEST_WARMUP))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
