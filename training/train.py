"""The training loop."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
import math
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..arch import TransformerSR, load_model, save_model
from ..arch.atomic import write_aside
from .checkpoint import Progress, RunState
from .config import TrainConfig
from .dataset import CropDataset, read_pictures, split_pictures
from .losses import edge_weighted_l1
from .strips import contact_sheet, save_image, to_image
from .validate import Enlarge, Pair, Scores, mean_scores, resize_with, score, score_pair, validation_pairs

logger = logging.getLogger(__name__)


def train(config: TrainConfig, data: str | Path, out: str | Path, resume: bool = False) -> Path:
    """Train a network on a folder of pictures and return the path of its best weights.

    `out` receives `config.json`, `state.pt` (to resume), `last.safetensors` and `best.safetensors` (moving averages; best validation PSNR),
    and `strips/` of pictures beside bicubic and the truth.
    Ctrl-C ends the run after the step it is in, saved.

    Raises:
        ValueError: where the folder or the settings cannot be used.
        FileExistsError: where `out` holds a run and `resume` is off.
    """
    out = Path(out)
    state_file = out / "state.pt"
    if state_file.exists() and not resume:
        raise FileExistsError(f"{out} already holds a run; resume it, or choose another folder")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())

    files = split_pictures(data, config.validation, config.exclude, without=out)  # the strips of a run are no pictures to learn from
    crops = training_crops(config, files.train)
    validation = Validation.of(files.validation, config)
    logger.info(
        "%d pictures to train on, %d to validate on; %s, %s", len(crops.pictures), len(validation.pairs), device, "bf16" if half else "fp32"
    )
    logger.info("bicubic: %s", validation.bicubic)

    torch.manual_seed(config.seed)
    net = initial_network(config).to(device).train()
    run = RunState(net, copy.deepcopy(net).eval().requires_grad_(False), make_optimizer(net, config), Progress())
    if state_file.exists():
        try:
            run.load(state_file)
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{state_file}: damaged, or of a run with other settings ({str(error).splitlines()[0]})") from error
    progress = run.progress
    out.mkdir(parents=True, exist_ok=True)
    write_config(out / "config.json", config)

    forward = torch.compile(net) if config.compile else net
    started = time.monotonic() - progress.seconds
    with stop_on_signals() as stop:
        for lq, gt in batches(crops, config, progress.step):
            done = schedule(config, progress)
            if done >= 1 or stop.is_set():
                break
            set_rate(run.optimizer, learning_rate(config, progress.step, done))
            lq, gt = (images.to(device, non_blocking=True).float() / 255 for images in (lq, gt))
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                sr = forward(lq)
            loss = edge_weighted_l1(sr, gt, flat_weight=1.0 if done < config.edge_start else config.flat_weight)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            update_average(run.ema, net, config.ema_decay, progress.step)

            if progress.step % config.log_every == 0:  # the only place that waits for the device between validations
                figures = progress.step, 100 * done, loss.item(), norm, progress.seconds
                logger.info("step %d  %.0f %%  loss %.5f  gradient %.3f  %.0f s", *figures)
            if progress.step % config.save_every == 0:
                validate_and_save(out, config, run, validation)
    if progress.step % config.save_every:
        validate_and_save(out, config, run, validation)
    if stop.is_set():
        logger.info("stopped at step %d; go on with --resume", progress.step)
    return out / "best.safetensors"


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


def training_crops(config: TrainConfig, paths: list[Path]) -> CropDataset:
    """The crops of a run."""
    pictures = read_pictures(paths, smallest=config.patch * config.scale)
    return CropDataset(pictures, config.patch, config.scale, config.preset, config.keep_flat, config.seed)


def draw_crops(config: TrainConfig, data: str | Path, path: Path, count: int = 16) -> None:
    """Write a sheet of the first crops of a run, what the network gets beside what it is to make of it."""
    crops = training_crops(config, split_pictures(data, config.validation, config.exclude).train)
    pairs = [[to_image(images[None] / 255) for images in crops[index]] for index in range(count)]
    rows = [[*left, *right] for left, right in zip(pairs[::2], pairs[1::2], strict=True)]
    save_image(contact_sheet(rows, ["given", "wanted"] * 2, cell=256), path)


def initial_network(config: TrainConfig) -> TransformerSR:
    """A new network, or the one in `config.init`; a different scale there keeps everything but the last layer."""
    net = TransformerSR(config.network())
    if config.init:
        given = load_model(config.init)
        if dataclasses.replace(given.config, scale=config.scale) != net.config:
            raise ValueError(f"init: {config.init} holds {given.config}; expected {net.config} at any scale")
        shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
        weights = {name: tensor for name, tensor in given.state_dict().items() if name != "architecture" and tensor.shape == shapes[name]}
        net.load_state_dict(weights, strict=False)
    return net


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; only matrices and convolutions of more than one input decay, not norms, biases, temperatures and position tables."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        (decayed if parameter.ndim > 1 and "position_bias" not in name else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))


def batches(crops: CropDataset, config: TrainConfig, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `lq` and `gt` (uint8) for step `first_step` and all after it."""
    steps = itertools.count(first_step)
    indices: Any = (range(step * config.batch, (step + 1) * config.batch) for step in steps)  # a generator, where the stubs want a Sampler
    return iter(DataLoader(crops, batch_sampler=indices, num_workers=config.workers, pin_memory=torch.cuda.is_available()))


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
    return config.learning_rate * min(1.0, (step + 1) / config.warmup_steps) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def update_average(ema: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the current ones; the first steps weigh more, so that the start is forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), weight)


@dataclass(frozen=True)
class Validation:
    """What a run is measured on."""

    pairs: list[Pair]
    watched: list[Pair]
    """The pairs that are drawn: on which bicubic is worst, middling and best."""
    bicubic: Scores

    @classmethod
    def of(cls, paths: list[Path], config: TrainConfig) -> Validation:
        """Make the pairs of validation pictures, and measure bicubic on them."""
        pairs, enlarge = validation_pairs(paths, config.scale, config.validation_crop), resize_with("bicubic", config.scale)
        scores = [score_pair(pair, enlarge(pair.lq), config.scale) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda index: scores[index].psnr_y)
        watched = dict.fromkeys((order[0], order[len(order) // 2], order[-1]))
        return cls(pairs, [pairs[index] for index in watched], mean_scores(scores))


def validate_and_save(out: Path, config: TrainConfig, run: RunState, validation: Validation) -> None:
    """Measure the averaged weights, draw what they make of the watched pairs, and write weights and state."""
    device, progress = next(run.ema.parameters()).device, run.progress

    def enlarge(lq: Tensor) -> Tensor:
        with torch.inference_mode():
            return run.ema(lq.to(device)).cpu()

    scores = score(validation.pairs, enlarge, config.scale)
    if not all(parameter.isfinite().all() for parameter in run.net.parameters()) or not math.isfinite(scores.psnr_y):
        raise FloatingPointError(
            f"step {progress.step}: the weights are no longer finite; {out / 'state.pt'} holds the last good step, if there was one: "
            "lower learning_rate and --resume"
        )
    logger.info("validation at step %d: %s", progress.step, scores)
    with open(out / "validation.jsonl", "a", encoding="utf-8") as file:
        figures = {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(scores).items()}
        file.write(json.dumps({"step": progress.step, "seconds": round(progress.seconds), **figures}) + "\n")
    save_image(draw_strip(validation.watched, enlarge, config.scale), out / "strips" / f"{progress.step:07d}.png")
    record = {"step": progress.step, "scores": figures, "settings": dataclasses.asdict(config)}
    metadata = {"training": json.dumps(record)}
    save_model(run.ema, out / "last.safetensors", metadata=metadata)
    if scores.psnr_y > progress.best_psnr:
        progress.best_psnr = scores.psnr_y
        save_model(run.ema, out / "best.safetensors", metadata=metadata)
    run.save(out / "state.pt")


def draw_strip(pairs: list[Pair], enlarge: Enlarge, scale: int) -> Image.Image:
    """A sheet of pairs: bicubic, this network, the true picture."""
    ways: list[Enlarge] = [resize_with("bicubic", scale), enlarge]
    rows = []
    for pair in pairs:
        side = min(pair.gt.shape[2:])
        rows.append([to_image(image).crop((0, 0, side, side)) for image in (*(way(pair.lq) for way in ways), pair.gt)])
    return contact_sheet(rows, ["bicubic", "this network", "true picture"], cell=256)


def write_config(path: Path, config: TrainConfig) -> None:
    """Keep the settings beside the weights."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")
