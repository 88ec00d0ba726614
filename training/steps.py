"""One step of a run: the gradients of a batch, and what is done with them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..upscale.memory import is_out_of_memory
from .adversarial import R1_EVERY, discriminator_loss, r1_penalty
from .config import TrainConfig
from .losses import Losses
from .run_state import RunState

logger = logging.getLogger(__name__)

MAX_SKIPPED = 10
"""Steps in a row whose gradient is not finite before a run returns to its last good state."""

STRONG, STRONG_STEPS = 0.95, 1000
"""A discriminator that has been right this often for this long is ahead: the adversarial loss is not raised any more."""


@dataclass
class Networks:
    """The networks of a run as its steps call them: in mixed precision, compiled, one of several processes."""

    net_g: nn.Module
    optimizer: Any
    net_d: nn.Module | None

    @classmethod
    def prepare(cls, run: RunState, config: TrainConfig, accelerator: Accelerator) -> Networks:
        """Hand networks and optimiser to accelerate. The discriminator's optimiser stays outside: it works in float32, without a scaler."""
        run.net_g.gradient_checkpointing = config.gradient_checkpointing
        net_g, optimizer = accelerator.prepare(torch.compile(run.net_g) if config.compile else run.net_g, run.optimizer)
        return cls(net_g, optimizer, accelerator.prepare_model(run.net_d) if run.net_d else None)


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
        zero_grad(run, nets)
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
                local.enter_context(accelerator.no_sync(nets.net_g))
                if nets.net_d is not None:
                    local.enter_context(accelerator.no_sync(nets.net_d))
            sr = nets.net_g(piece[0])
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
    run.net_d.accuracy.lerp_(figures["d_accuracy"], 0.01 * share)
    return {"loss_d": loss, **figures}


def optimizer_step(run: RunState, nets: Networks, norm: Tensor) -> bool:
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
    zero_grad(run, nets)
    progress.skipped_in_a_row = 0 if good else progress.skipped_in_a_row + 1
    progress.skipped += not good
    return good


def advance_gan_ramp(run: RunState, config: TrainConfig) -> None:
    """One step up towards the full adversarial loss, unless the discriminator still trains alone, or is far ahead."""
    if run.net_d is not None and run.progress.step >= config.gan_start and run.progress.strong_steps < STRONG_STEPS:
        run.progress.gan_steps += 1


def track_discriminator(run: RunState, config: TrainConfig) -> None:
    """Count for how many steps the discriminator has been right nearly always; once every `log_every`, as this waits for the device."""
    if run.net_d is not None and run.progress.step % config.log_every == 0:
        strong = bool(run.net_d.accuracy > STRONG)
        run.progress.strong_steps = run.progress.strong_steps + config.log_every if strong else 0


def zero_grad(run: RunState, nets: Networks) -> None:
    """Clear all gradients."""
    nets.optimizer.zero_grad(set_to_none=True)
    if run.optimizer_d is not None:
        run.optimizer_d.zero_grad(set_to_none=True)


def handle_skipped_step(run: RunState, places: Sequence[object]) -> bool:
    """Name the crops of a step without effect, and say whether to go back. That is done once; then FloatingPointError is raised."""
    progress = run.progress
    logger.warning("step %d is skipped, its gradient is not finite; its crops: %s", progress.step, "; ".join(map(str, places)))
    if progress.skipped_in_a_row < MAX_SKIPPED:
        return False
    if progress.rolled_back:
        raise FloatingPointError(
            f"step {progress.step}: {MAX_SKIPPED} gradients in a row are not finite, at half the learning rate too; the last good state "
            "is kept: look at the crops named above, lower learning_rate, or take precision fp32, and --resume"
        )
    logger.warning("%d steps in a row: back to the last good state, on at half the learning rate", MAX_SKIPPED)
    progress.rolled_back, progress.skipped_in_a_row = True, 0
    return True
