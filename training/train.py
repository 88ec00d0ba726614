"""The training loop."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..arch import TransformerSR, load_model, save_model
from ..arch.atomic import write_aside
from .checkpoint import Progress, load_state, save_state
from .config import TrainConfig
from .dataset import CropDataset, read_pictures, split_pictures
from .losses import edge_weighted_l1
from .strips import contact_sheet, save_sheet, to_image
from .validate import Pair, mean_scores, resize_with, score, score_pair, validation_pairs

logger = logging.getLogger(__name__)


def train(config: TrainConfig, data: str | Path, out: str | Path, resume: bool = False) -> Path:
    """Train a network on a folder of pictures and return the path of its best weights.

    `out` receives `config.json`, `state.pt` (to resume), `last.safetensors` and `best.safetensors` (moving averages; best validation PSNR),
    and `strips/` of pictures beside bicubic and the truth.
    Ctrl-C ends the run after the step it is in, saved. Raises ValueError where the folder or the settings cannot be used, and FileExistsError where `out` holds a run and `resume` is off.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.pt"
    if state_file.exists() and not resume:
        raise FileExistsError(f"{out} already holds a run; resume it, or choose another folder")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())

    files = split_pictures(data, config.validation, config.exclude)
    pictures = read_pictures(files.train, smallest=config.patch * config.scale)
    crops = CropDataset(pictures, config.patch, config.scale, config.preset, config.keep_flat, config.seed)
    pairs = validation_pairs(files.validation, config.scale, config.validation_crop)
    logger.info("%d pictures to train on, %d to validate on; %s, %s", len(pictures), len(pairs), device, "bf16" if half else "fp32")

    torch.manual_seed(config.seed)
    net = initial_network(config).to(device).train()
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = make_optimizer(net, config)
    progress = load_state(state_file, net, ema, optimizer) if state_file.exists() else Progress()
    write_config(out / "config.json", config)
    bicubic = [score_pair(pair, resize_with("bicubic", config.scale)(pair.lq), config.scale) for pair in pairs]
    logger.info("bicubic: %s", mean_scores(bicubic))
    watched = [pairs[index] for index in worst_median_best([one.psnr_y for one in bicubic])]

    stop = stop_on_signals()
    started = time.monotonic() - progress.seconds
    for lq, gt in batches(crops, config, progress.step):
        done = schedule(config, progress)
        if done >= 1 or stop.is_set():
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, progress.step, done)
        lq, gt = (images.to(device, non_blocking=True).float() / 255 for images in (lq, gt))
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            sr = net(lq)
        loss = edge_weighted_l1(sr, gt, flat_weight=1.0 if done < config.edge_start else config.flat_weight)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.seconds = time.monotonic() - started
        update_average(ema, net, config.ema_decay, progress.step)

        if progress.step % config.log_every == 0:  # the only place that waits for the device between validations
            logger.info(
                "step %d  %.0f %%  loss %.5f  gradient %.3f  %.0f s", progress.step, 100 * done, loss.item(), norm, progress.seconds
            )
        if progress.step % config.save_every == 0:
            validate_and_save(out, config, net, ema, optimizer, progress, pairs)
            draw_strip(out / "strips" / f"{progress.step:07d}.png", ema, watched)
    if progress.step % config.save_every:
        validate_and_save(out, config, net, ema, optimizer, progress, pairs)
        draw_strip(out / "strips" / f"{progress.step:07d}.png", ema, watched)
    if stop.is_set():
        logger.info("stopped at step %d; go on with --resume", progress.step)
    return out / "best.safetensors"


def stop_on_signals() -> threading.Event:
    """An event that Ctrl-C and a polite kill set, so that a run ends after a whole step; a second Ctrl-C ends it at once."""
    stop = threading.Event()

    def request(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, request)
        signal.signal(signal.SIGTERM, request)
    return stop


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


@torch.no_grad()
def update_average(ema: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the current ones; the first steps weigh more, so that the start is forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), weight)


def validate_and_save(
    out: Path,
    config: TrainConfig,
    net: nn.Module,
    ema: TransformerSR,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    pairs: list[Pair],
) -> None:
    """Measure the averaged weights, then write them and the run's state."""
    device = next(ema.parameters()).device
    with torch.inference_mode():
        scores = score(pairs, lambda lq: ema(lq.to(device)).cpu(), config.scale)
    logger.info("validation at step %d: %s", progress.step, scores)
    with open(out / "validation.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": progress.step, "seconds": round(progress.seconds), **dataclasses.asdict(scores)}) + "\n")
    metadata = {"training": json.dumps({"step": progress.step, "validation": dataclasses.asdict(scores), **dataclasses.asdict(config)})}
    save_model(ema, out / "last.safetensors", metadata=metadata)
    if scores.psnr_y > progress.best_psnr:
        progress.best_psnr = scores.psnr_y
        save_model(ema, out / "best.safetensors", metadata=metadata)
    save_state(out / "state.pt", net, ema, optimizer, progress)


def worst_median_best(values: list[float]) -> list[int]:
    """Indices of the lowest, the middle and the highest value."""
    order = sorted(range(len(values)), key=values.__getitem__)
    return sorted({order[0], order[len(order) // 2], order[-1]}, key=order.index)


def draw_strip(path: Path, ema: TransformerSR, pairs: list[Pair]) -> None:
    """Write a sheet that shows what the averaged weights make of some pairs."""
    device, bicubic = next(ema.parameters()).device, resize_with("bicubic", ema.config.scale)
    rows = []
    for pair in pairs:
        with torch.inference_mode():
            sr = ema(pair.lq.to(device))
        side = min(pair.gt.shape[2:])
        rows.append([to_image(image).crop((0, 0, side, side)) for image in (bicubic(pair.lq), sr, pair.gt)])
    save_sheet(contact_sheet(rows, ["bicubic", "this network", "true picture"], cell=256), path)


def write_config(path: Path, config: TrainConfig) -> None:
    """Keep the settings beside the weights."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")
