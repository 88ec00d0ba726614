"""Run a network over images of any size within a memory budget, with exactly the full-frame result.

`planning` computes the height of a band, `memory` measures free memory, and `arch.streaming` runs the network band by band.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arch import TransformerSR
from ..arch.streaming import stream, total_rows
from . import planning
from .memory import explain_out_of_memory, free_memory, is_out_of_memory, keep_freed_memory
from .planning import MemoryBudgetError, Plan, Workload, frames_within, make_plan, pass_pixels, sizes_of_passes

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int], None]
"""Called with `(rows done, total rows)` at least once per band and channel block. It may raise an exception to stop the run."""


def upscale_to(
    model: TransformerSR,
    image: Tensor,
    height: int,
    width: int,
    *,
    memory: int | None = None,
    ensemble: bool = False,
    on_progress: ProgressCallback | None = None,
) -> Tensor:
    """Upscale to a given size: `(b, c, h, w)` to `(b, c, height, width)`. Arguments as for `upscale`.

    The network runs until both sides are long enough (a x2 network runs twice for x4), and the result is resized in float. With
    `ensemble`, every run is an `upscale_ensemble`.
    """
    run = upscale_ensemble if ensemble else upscale
    inputs = list(sizes_of_passes(image.shape[2], image.shape[3], model.config.scale, height, width))
    work = [rows * columns for rows, columns in inputs]
    if image.device.type == "cpu":  # fail now, not after hours of earlier passes; the memory is reserved but never touched
        with explain_out_of_memory(len(image), height, width):
            image.new_empty(len(image), image.shape[1], height, width, dtype=torch.float32)
    if memory is not None:  # likewise
        for index, size in enumerate(inputs):
            with _name_pass(index, len(inputs)):
                _plan(model, Workload(model.config, *size, model.dtype.itemsize), memory)
    for index, size in enumerate(inputs):
        image = _resize(image, *size)
        with _name_pass(index, len(inputs)):
            image = run(model, image, memory=memory, on_progress=_share(on_progress, work, index))
    with explain_out_of_memory(len(image), height, width):
        return _resize(image, height, width).clamp_(0, 1)


@contextmanager
def _name_pass(index: int, count: int) -> Iterator[None]:
    """Name a pass after the first in a MemoryBudgetError, whose message has the size of this pass, not of the user's image."""
    try:
        yield
    except MemoryBudgetError as error:
        if index == 0:
            raise
        raise MemoryBudgetError(f"pass {index + 1} of {count}: {error}") from error


def upscale(model: TransformerSR, image: Tensor, *, memory: int | None = None, on_progress: ProgressCallback | None = None) -> Tensor:
    """Upscale a batch with a network: `(b, c, h, w)` in [0, 1] to `(b, c, h * scale, w * scale)`, float32, clamped to [0, 1].

    The network runs on its own device and in its own dtype; the result is on the image's device. The input is sanitized. If a
    half-precision result is not finite, the image is automatically computed again in float32, with a log message.

    Args:
        memory: limit in bytes for the network's tensors without its weights; None uses the free memory. It covers one image and its
            result. Other images of a batch, including transparency, are not counted.
        on_progress: see `ProgressCallback`.

    Raises:
        MemoryBudgetError: if `memory` is too small for the image.
        ValueError: if the image has an unexpected shape.
    """
    config = model.config
    if image.ndim != 4 or image.shape[1] != config.channels or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (batch, {config.channels}, height, width), none of them 0")
    image = sanitize(image)
    count, _, height, width = image.shape
    with explain_out_of_memory(count, height * config.scale, width * config.scale):
        out = image.new_empty(count, config.channels, height * config.scale, width * config.scale, dtype=torch.float32)
    budget = free_memory(model.device) if memory is None else memory
    work = Workload(config, height, width, model.dtype.itemsize)
    frames = frames_within(work, count, budget, pass_pixels(on_cpu=model.device.type == "cpu"))
    rows, start = total_rows(model, height), 0
    while start < count:
        part = slice(start, start + frames)
        report = _Rows(on_progress, start * rows, count * rows, min(frames, count - start))
        try:
            reason = _stream_within_memory(model, image[part], out[part], memory, report)
            if reason is not None:
                _redo_in_float32(model, image[part], out[part], memory, report, reason)
        except MemoryBudgetError:
            if frames == 1:
                raise
            frames = 1
            continue
        start += frames
    return out.clamp_(0, 1)


def upscale_ensemble(
    model: TransformerSR, image: Tensor, *, memory: int | None = None, on_progress: ProgressCallback | None = None
) -> Tensor:
    """Average the results of `upscale` for the eight rotated and mirrored versions of an image: slightly better, eight times slower.

    This is the geometric self-ensemble of EDSR (Lim et al. 2017, arXiv:1707.02921); waifu2x calls it TTA. Arguments and errors as for
    `upscale`.
    """
    total: Tensor | None = None
    for index in range(8):
        turns, mirrored = index % 4, index >= 4
        version = torch.rot90(image.flip(3) if mirrored else image, turns, (2, 3))
        large = upscale(model, version, memory=memory, on_progress=_share(on_progress, [1] * 8, index))
        large = torch.rot90(large, -turns, (2, 3))
        large = large.flip(3) if mirrored else large
        total = large if total is None else total.add_(large)
    assert total is not None
    return total.div_(8)


def _stream_within_memory(model: TransformerSR, image: Tensor, out: Tensor, memory: int | None, report: _Rows) -> str | None:
    """Run with the largest bands that memory allows, and with smaller ones while the device is out of memory.

    Returns None, or the reason to compute the result again in a higher precision.
    """
    device, host, on_cpu = model.device, torch.device("cpu"), model.device.type == "cpu"
    image = image.to(device, model.dtype)
    count, _, height, width = image.shape
    work = Workload(model.config, height, width * count, model.dtype.itemsize)
    if on_cpu:
        keep_freed_memory()
    plan = _plan(model, work, memory)
    warned = False
    while True:
        try:
            report.done = 0
            stream(model, image, plan.band_rows, on_rows=report, out=out, offload_device=host if plan.offload else None)
            return None if out.isfinite().all() else "gave values that are not finite"
        except (RuntimeError, MemoryError) as error:
            if model.dtype != torch.float32 and "not implemented for" in str(error):  # fp16 on a CPU with PyTorch 2.1
                return f"cannot be computed on {device} by PyTorch {torch.__version__}"
            if not is_out_of_memory(error):
                raise
            smaller = plan.smaller(work.step, can_offload=not on_cpu)
            if smaller is None:
                raise MemoryBudgetError(
                    f"{device} is out of memory for an image of {width}x{height} even with bands of {plan.band_rows} rows; free memory, "
                    "use half precision, a smaller model or the CPU, or split the image"
                ) from error
        plan = smaller
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if not warned:
            logger.warning("%s is out of memory; continuing with bands of %d rows", device, plan.band_rows)
            warned = True


def _plan(model: TransformerSR, work: Workload, memory: int | None) -> Plan:
    """Return the plan for a workload on the network's device. Raises MemoryBudgetError if it does not fit into `memory`."""
    on_cpu = model.device.type == "cpu"
    max_rows = max(1, planning.CPU_BAND_BYTES // (work.row_bytes * 4 // work.element_size)) if on_cpu else None
    budget = free_memory(model.device) if memory is None else memory
    return make_plan(work, budget, max_rows, can_offload=not on_cpu, estimated=memory is None)


def _redo_in_float32(model: TransformerSR, image: Tensor, out: Tensor, memory: int | None, report: _Rows, reason: str) -> None:
    """Run again in float32 after the network's own precision failed for a `reason`."""
    dtype = model.dtype
    if dtype != torch.float32:
        logger.warning("%s %s; computing the image in float32", dtype, reason)
        try:
            reason_again = _stream_within_memory(model.float(), image, out, memory, report)
        except MemoryBudgetError as error:
            raise MemoryBudgetError(f"{dtype} {reason}, and in float32 {error}") from error
        finally:
            model.to(dtype)
        if reason_again is None:
            return
    raise FloatingPointError(
        "the network gave values that are not finite; its weights are damaged or need a higher precision: load them in fp32"
    )


# --- around the network --------------------------------------------------------------------------


def sanitize(image: Tensor) -> Tensor:
    """Replace NaN and infinity with 0 and clamp the image to [0, 1]. Returns the image itself if there is nothing to do.

    One NaN would spread to every pixel of the result. Values far outside [0, 1] indicate a mistake in an earlier step and are logged.
    """
    if ((image >= 0) & (image <= 1)).all():
        return image
    if broken := image.numel() - int(image.isfinite().sum()):
        text = "%d of the image's %d values are not finite (NaN or infinity) and are replaced with black; check the step that produced them"
        logger.warning(text, broken, image.numel())
        image = image.nan_to_num(0.0, 0.0, 0.0)
    low, high = float(image.min()), float(image.max())
    if low < -1 or high > 2:
        logger.warning("the image has values from %g to %g; expected 0 to 1, the rest is clipped", low, high)
    return image.clamp(0, 1)


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[2:] == (height, width):
        return image
    return F.interpolate(image, (height, width), mode="bicubic", align_corners=False, antialias=True)


class _Rows:
    """Converts row counts of several frames at once into calls of a `ProgressCallback`."""

    def __init__(self, callback: ProgressCallback | None, start: int, total: int, frames: int):
        self.callback, self.start, self.total, self.frames = callback, start, total, frames
        self.done = 0

    def __call__(self, count: int) -> None:
        self.done += count * self.frames
        if self.callback:
            self.callback(self.start + self.done, self.total)


def _share(progress: ProgressCallback | None, work: list[int], index: int) -> ProgressCallback | None:
    """Convert the progress of one of several runs into the progress of all, in thousandths; `work` has the cost of each run."""
    if progress is None:
        return None
    before, all_ = sum(work[:index]), sum(work)
    return lambda done, total: progress(round(1000 * (before + work[index] * done / total) / all_), 1000)
