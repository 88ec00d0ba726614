"""One step of a run: the gradients of a batch and the optimiser's step."""

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
"""Consecutive steps with a gradient that is not finite before a run returns to its last good state."""

STRONG, STRONG_STEPS = 0.95, 1000
"""A discriminator with this accuracy for this many steps is too strong: the adversarial loss is not increased further."""


@dataclass
class Networks:
    """The networks and the optimiser of a run, wrapped for mixed precision, compilation and several processes."""

    net_g: nn.Module
    optimizer: Any
    net_d: nn.Module | None

    @classmethod
    def prepare(cls, run: RunState, config: TrainConfig, accelerator: Accelerator) -> Networks:
        """Wrap networks and optimiser with accelerate. The discriminator's optimiser is not wrapped: it is in float32, without a scaler."""
        run.net_g.gradient_checkpointing = config.gradient_checkpointing
        net_g, optimizer = accelerator.prepare(torch.compile(run.net_g) if config.compile else run.net_g, run.optimizer)
        return cls(net_g, optimizer, accelerator.prepare_model(run.net_d) if run.net_d else None)


def add_gradients(
    accelerator: Accelerator, run: RunState, nets: Networks, losses: Losses, lq: Tensor, gt: Tensor, done: float
) -> dict[str, Tensor]:
    """Compute the gradients of a batch in micro-batches; if one does not fit into memory, their size is halved for the rest of the run.

    Returns mean metrics, which stay on the device.
    """
    while True:
        try:
            return _add_gradients(accelerator, run, nets, losses, lq, gt, done)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or run.progress.micro_batch == 1 or accelerator.num_processes > 1:
                raise  # with several processes, the others have continued and would wait forever
        run.progress.micro_batch = min(run.progress.micro_batch, len(lq)) // 2
        logger.warning("out of memory: the micro-batch is %d from now on; the batch stays the same", run.progress.micro_batch)
        zero_grad(run, nets)
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def _add_gradients(
    accelerator: Accelerator, run: RunState, nets: Networks, losses: Losses, lq: Tensor, gt: Tensor, done: float
) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    micro_batches = list(zip(lq.split(run.progress.micro_batch), gt.split(run.progress.micro_batch), strict=True))
    for index, (micro_lq, micro_gt) in enumerate(micro_batches):
        share = len(micro_lq) / len(lq)
        with ExitStack() as without_sync:
            if index + 1 < len(micro_batches):  # processes exchange gradients once per step
                without_sync.enter_context(accelerator.no_sync(nets.net_g))
                if nets.net_d is not None:
                    without_sync.enter_context(accelerator.no_sync(nets.net_d))
            sr = nets.net_g(micro_lq)
            terms = losses(sr, micro_gt, run, done)
            accelerator.backward(sum(terms.values()) * share)
            if nets.net_d is not None:
                terms |= add_discriminator_gradients(run, nets.net_d, losses.config, sr.detach(), micro_gt, share)
        for name, value in terms.items():
            totals[name] = totals.get(name, 0) + value.detach() * share
    return totals


def add_discriminator_gradients(
    run: RunState, net_d: nn.Module, config: TrainConfig, sr: Tensor, gt: Tensor, share: float
) -> dict[str, Tensor]:
    """Add the discriminator's gradients for a micro-batch that is `share` of the batch, and return its metrics."""
    assert run.net_d is not None
    if config.gan_r1 and run.progress.step % R1_EVERY == 0:  # before the pass that exchanges gradients, so that these are included
        (config.gan_r1 * R1_EVERY * share * r1_penalty(run.net_d, gt)).backward()
    loss, metrics = discriminator_loss(net_d, sr, gt, config.gan_relativistic)
    (loss * share).backward()
    run.net_d.accuracy.lerp_(metrics["d_accuracy"], 0.01 * share)
    return {"loss_d": loss, **metrics}


def optimizer_step(run: RunState, nets: Networks, norm: Tensor) -> bool:
    """Step both optimisers unless a gradient is not finite, and clear the gradients. Returns whether the step was taken."""
    progress = run.progress
    good = finite = bool(norm.isfinite())  # waits for the device once per step, as nothing else keeps NaN out of the weights
    if run.net_d is not None:
        good = good and bool(nn.utils.clip_grad_norm_(run.net_d.parameters(), math.inf).isfinite())
    if good or (run.scaler is not None and not finite):  # the scaler skips such steps itself and adapts
        nets.optimizer.step()
    elif run.scaler is not None:
        run.scaler.update()  # the scaler does not see the discriminator's gradients
    if good and run.optimizer_d is not None:
        run.optimizer_d.step()
    zero_grad(run, nets)
    progress.skipped_in_a_row = 0 if good else progress.skipped_in_a_row + 1
    progress.skipped += not good
    return good


def advance_gan_ramp(run: RunState, config: TrainConfig) -> None:
    """Take one step on the ramp of the adversarial loss, unless it has not started or the discriminator is too strong."""
    if run.net_d is not None and run.progress.step >= config.gan_start and run.progress.strong_steps < STRONG_STEPS:
        run.progress.gan_steps += 1


def track_discriminator(run: RunState, config: TrainConfig) -> None:
    """Count the steps for which the discriminator has been too strong; only every `log_every` steps, as this waits for the device."""
    if run.net_d is not None and run.progress.step % config.log_every == 0:
        strong = bool(run.net_d.accuracy > STRONG)
        run.progress.strong_steps = run.progress.strong_steps + config.log_every if strong else 0


def zero_grad(run: RunState, nets: Networks) -> None:
    """Clear all gradients."""
    nets.optimizer.zero_grad(set_to_none=True)
    if run.optimizer_d is not None:
        run.optimizer_d.zero_grad(set_to_none=True)


def handle_skipped_step(run: RunState, crops: Sequence[object]) -> bool:
    """Log the crops of a skipped step, and return whether to roll back, which is done once. Raises FloatingPointError after that."""
    progress = run.progress
    logger.warning("step %d is skipped because its gradient is not finite; its crops: %s", progress.step, "; ".join(map(str, crops)))
    if progress.skipped_in_a_row < MAX_SKIPPED:
        return False
    if progress.rolled_back:
        raise FloatingPointError(
            f"step {progress.step}: {MAX_SKIPPED} gradients in a row are not finite, even at half the learning rate. The last good state "
            "is kept: check the crops named above, lower learning_rate, or use precision fp32, and --resume"
        )
    logger.warning("%d skipped steps in a row: returning to the last good state, at half the learning rate", MAX_SKIPPED)
    progress.rolled_back, progress.skipped_in_a_row = True, 0
    return True
