"""Run a network over pictures of any size within a memory budget, with exactly the full-frame result.

The network streams the picture through its layers in bands of rows (see `arch.bands`), so a band's height changes memory and
speed and nothing else. Planning is arithmetic on sizes; running takes the network as it is.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arch import TransformerSR, TransformerSRConfig
from .containers import room_in_container

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int], None]
"""Called with rows done and rows in all, at least once per band and channel block. It may raise to stop the run."""

HELD_WINDOWS = 3
"""Rows of windows that the layers between two channel blocks hold back together; the last band of a picture is larger by them."""

CPU_BAND_BYTES = 36 * 2**20
"""`row_bytes` of a band on a CPU where memory allows more, 128x128 pixels of `tiny`. Larger ones gain little or nothing
(benchmarks/bench_bands.py measures it), and layers of 32 MiB, of which four are counted, are not kept (`keep_freed_memory`)."""

PASS_PIXELS = 2**20
"""Pixels that frames run together have at most; a larger picture alone keeps any device busy."""

CPU_PASS_PIXELS = 2**13
"""The same on a CPU, where frames of 24x24 gain a quarter from company, of 64x64 little, and still more of them lose."""


class MemoryBudgetError(ValueError):
    """A picture does not fit the given memory even one row of windows at a time; the message says what to change."""


# --- planning ------------------------------------------------------------------------------------


def picture_bytes(config: TransformerSRConfig, height: int, width: int, element_size: int, stored: bool = False) -> int:
    """What a picture costs whatever the band: two trunks of `embed_dim` channels, the image, and its result in float32.

    Where the trunks are stored elsewhere (and so is the result), the image alone.
    """
    pixels = height * width
    if stored:
        return config.channels * pixels * element_size
    trunk = config.embed_dim * pixels // config.unshuffle**2
    return 2 * trunk * element_size + config.channels * pixels * (element_size + 4 * config.scale**2)


def row_bytes(config: TransformerSRConfig, width: int, element_size: int) -> int:
    """What each row that is worked on costs: queries, keys and values twice, or the hidden layer twice, or the tail."""
    body = (8 + 2 * config.mlp_ratio) * config.embed_dim
    tail = 4 * config.channels * (config.scale * config.unshuffle) ** 2
    return max(body, tail) * width // config.unshuffle * element_size


def plan_band_rows(
    config: TransformerSRConfig,
    height: int,
    width: int,
    element_size: int,
    budget: int | None,
    most: int | None = None,
    stored: bool = False,
) -> int:
    """Rows of a band for a picture, in whole windows: as many as `budget` bytes and `most` rows allow, `stored` as in `picture_bytes`.

    Raises MemoryBudgetError where not even one row of windows fits. A budget of None does not limit.
    """
    step = config.window_size
    whole = -(-height // config.multiple) * step
    rows = whole if most is None else max(step, min(most, whole) // step * step)
    if budget is None:
        return rows
    per_row = row_bytes(config, width, element_size)
    fixed = picture_bytes(config, height, width, element_size, stored) + HELD_WINDOWS * step * per_row
    if budget < fixed + step * per_row:
        raise MemoryBudgetError(
            f"a picture of {width}x{height} needs at least {_readable(fixed + step * per_row)} with this model and precision, "
            f"and the budget is {_readable(budget)}; raise the budget, take half precision or a smaller model, or cut the picture in parts"
        )
    return min(rows, (budget - fixed) // per_row // step * step)


def plan_frames(config: TransformerSRConfig, count: int, height: int, width: int, element_size: int, budget: int | None, most: int) -> int:
    """Frames of a batch to run together: as many whole ones as `budget` bytes (None: any) and `most` pixels allow, at least one."""
    frames = max(1, min(count, most // (height * width)))
    if budget is None:
        return frames
    return max(1, min(frames, budget // comfortable_bytes(config, 1, height, width, element_size)))


def comfortable_bytes(config: TransformerSRConfig, count: int, height: int, width: int, element_size: int) -> int:
    """What a batch takes where memory does not limit it, in bands and frames of `PASS_PIXELS` together: more would not make it faster."""
    width *= max(1, min(count, PASS_PIXELS // (height * width)))  # frames together cost what one as wide as all of them does
    whole = -(-height // config.multiple) * config.window_size
    rows = min(whole, max(config.window_size, PASS_PIXELS // width)) + HELD_WINDOWS * config.window_size
    return picture_bytes(config, height, width, element_size) + rows * row_bytes(config, width, element_size)


def _readable(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def free_memory(device: torch.device) -> int | None:
    """Bytes that may be taken on a device without asking: four fifths of what is free, or None where that cannot be known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) * 4 // 5
    if device.type == "cpu":
        rooms = [room for room in (_available_memory(), room_in_container()) if room is not None]
        return min(rooms) * 4 // 5 if rooms else None
    return None


def _available_memory() -> int | None:
    with suppress(OSError):  # Linux alone has this file
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        return int(available[1]) * 1024 if available else None
    return None


# --- running -------------------------------------------------------------------------------------


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep what one layer frees for the next one, once in a process that computes on the CPU.

    glibc asks the system for every larger piece of memory anew and gives it back at once, and the system clears it page by page. When the
    first piece of up to 32 MiB is freed, glibc takes that as the size up to which pieces are kept, 64 MiB in all (mallopt(3),
    M_MMAP_THRESHOLD); other libraries are not troubled by it.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)  # freed at once, unused


def enlarge(model: TransformerSR, image: Tensor, *, memory: int | None = None, on_progress: ProgressCallback | None = None) -> Tensor:
    """Enlarge a batch with a network: `(b, c, h, w)` in [0, 1] to `(b, c, h * scale, w * scale)`, float32, clamped to [0, 1].

    The network runs on its own device and in its own dtype; the result lies on the image's device. The input is `repaired`; where a
    half-precision result is not finite, the picture is done again in float32, and that is logged.

    Args:
        memory: bytes that the network's tensors may take beside the weights; None takes what is free. One picture counts with its result;
            those of the others in the batch, its transparency among them, come on top.
        on_progress: see `ProgressCallback`.

    Raises:
        MemoryBudgetError: if `memory` is too small for the picture.
        ValueError: for an image of another shape.
    """
    config = model.config
    if image.ndim != 4 or image.shape[1] != config.channels or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (batch, {config.channels}, height, width), none of them 0")
    image = repaired(image)
    count, _, height, width = image.shape
    with saying_what_does_not_fit(count, height * config.scale, width * config.scale):
        out = image.new_empty(count, config.channels, height * config.scale, width * config.scale, dtype=torch.float32)
    rows, start, frames = model.total_rows(height), 0, _frames_together(model, image, memory)
    with torch.inference_mode():
        while start < count:
            part = slice(start, start + frames)
            report = _Rows(on_progress, start * rows, count * rows, min(frames, count - start))
            try:
                _enlarge_pass(model, image[part], out[part], memory, report)
            except MemoryBudgetError:
                if frames == 1:
                    raise
                frames = 1
                continue
            start += frames
    return out.clamp_(0, 1)


def repaired(image: Tensor) -> Tensor:
    """The image with 0 where it is NaN or infinite and all else cut to [0, 1]; itself where there is nothing to repair.

    A network would carry one NaN into every pixel of the result. What is far from [0, 1] is a mistake of whoever made it, and logged too.
    """
    if ((image >= 0) & (image <= 1)).all():
        return image
    if broken := image.numel() - int(image.isfinite().sum()):
        text = "%d of the picture's %d values are not finite (NaN or infinity) and are taken as black; look at the step that made them"
        logger.warning(text, broken, image.numel())
        image = image.nan_to_num(0.0, 0.0, 0.0)
    low, high = float(image.min()), float(image.max())
    if low < -1 or high > 2:
        logger.warning("the picture has values from %g to %g; expected 0 to 1, and what is outside is cut off", low, high)
    return image.clamp(0, 1)


class _Rows:
    """Turns counts of rows, of several frames at once, into calls of a `ProgressCallback`."""

    def __init__(self, callback: ProgressCallback | None, start: int, total: int, frames: int):
        self.callback, self.start, self.total, self.frames = callback, start, total, frames
        self.done = 0

    def __call__(self, count: int) -> None:
        self.done += count * self.frames
        if self.callback:
            self.callback(self.start + self.done, self.total)


def _frames_together(model: TransformerSR, image: Tensor, memory: int | None) -> int:
    parameter = next(model.parameters())
    budget = free_memory(parameter.device) if memory is None else memory
    most = CPU_PASS_PIXELS if parameter.device.type == "cpu" else PASS_PIXELS
    height, width = image.shape[2:]
    return plan_frames(model.config, len(image), height, width, parameter.element_size(), budget, most)


def _enlarge_pass(model: TransformerSR, image: Tensor, out: Tensor, memory: int | None, report: _Rows) -> None:
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    if device.type == "cpu":
        keep_freed_memory()
    image = image.contiguous()  # convolutions of another layout round in another way, and who calls should not matter
    trouble = "gave values that are not finite"
    try:
        _enlarge_within(model, image.to(device, dtype), out, memory, report)
        again = dtype != torch.float32 and not out.isfinite().all()
    except RuntimeError as error:
        if dtype == torch.float32 or "not implemented for" not in str(error):
            raise
        again, trouble = True, f"cannot be computed on {device} by PyTorch {torch.__version__}"  # fp16 on a CPU by 2.1
    if again:
        logger.warning("%s %s; the picture is done in float32", dtype, trouble)
        try:
            _enlarge_within(model.float(), image.to(device, torch.float32), out, memory, report)
        except MemoryBudgetError as error:
            raise MemoryBudgetError(f"{dtype} {trouble}, and in float32 {error}") from error
        finally:
            model.to(dtype)
    if not out.isfinite().all():
        raise FloatingPointError(
            "the network gave values that are not finite; its weights are damaged or do not fit this precision: load them in fp32"
        )


def _enlarge_within(model: TransformerSR, image: Tensor, out: Tensor, memory: int | None, report: _Rows) -> None:
    """Run with the band that the memory allows, and with less for as long as the device says that it is full.

    Less is half the band, and at the end the rows that wait for others kept in the host's memory.
    """
    config, device = model.config, image.device
    height, width = image.shape[2], image.shape[3] * len(image)  # see `comfortable_bytes`
    most = max(1, CPU_BAND_BYTES // row_bytes(config, width, 4)) if device.type == "cpu" else None
    host = None if device.type == "cpu" else torch.device("cpu")
    budget = free_memory(device) if memory is None else memory
    band_rows, store = _plan(config, height, width, image.element_size(), budget, most, host, estimated=memory is None)
    told = False
    while True:
        try:
            report.done = 0
            model(image, band_rows=band_rows, on_rows=report, out=out, store=store)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if band_rows <= config.window_size and store is host:
                raise MemoryBudgetError(
                    f"{device} is out of memory for a picture of {image.shape[3]}x{height} even {band_rows} rows at a time; free memory, "
                    "take half precision, a smaller model or the CPU, or upscale the picture in parts"
                ) from error
        store = host if band_rows <= config.window_size else store
        band_rows = max(config.window_size, band_rows // 2 // config.window_size * config.window_size)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if not told:
            logger.warning("%s is out of memory; going on with bands of %d rows", device, band_rows)
            told = True


def _plan(
    config: TransformerSRConfig,
    height: int,
    width: int,
    element_size: int,
    budget: int | None,
    most: int | None,
    host: torch.device | None,
    estimated: bool,
) -> tuple[int, torch.device | None]:
    """Rows of a band, and where rows wait: on the device (None) if they fit there, else on `host`, a device other than the network's.

    Raises MemoryBudgetError for a budget that is too small, unless it is only `estimated`: then the least is tried.
    """
    try:
        return plan_band_rows(config, height, width, element_size, budget, most), None
    except MemoryBudgetError:
        if host is not None:
            with suppress(MemoryBudgetError):
                return plan_band_rows(config, height, width, element_size, budget, most, stored=True), host
        if not estimated:
            raise
        return config.window_size, host


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, a device's or the process's. Few have a class for it; the others say so in words."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)


OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "not enough gpu video memory",
    "can't allocate memory",
    "alloc_failed",
    "could not create a primitive",  # of oneDNN, which does PyTorch's convolutions on CPUs
    "could not create a memory object",
    "storage size calculation overflowed",
)


@contextmanager
def saying_what_does_not_fit(count: int, height: int, width: int) -> Iterator[None]:
    """Turn running out of memory for results of this size into MemoryBudgetError: where no smaller band would help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        pictures = f"a result of {width}x{height}" if count == 1 else f"{count} results of {width}x{height}"
        raise MemoryBudgetError(f"out of memory for {pictures}; free memory, or make it smaller or fewer at a time") from error


# --- sizes ---------------------------------------------------------------------------------------


def target_size(height: int, width: int, scale: int, factor: float | None = None, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width asked for: `size` as given, else each side times `factor` rounded, else times the network's scale.

    Raises ValueError for both at once, or a side below 1.
    """
    if min(height, width) < 1:
        raise ValueError(f"picture of {width}x{height}; expected at least 1x1")
    if factor is not None and size is not None:
        raise ValueError(f"factor {factor} and size {size} were both given; give one of them")
    if size is not None:
        target = (int(size[0]), int(size[1]))
    elif factor is not None:
        if not 0 < factor < 1000:
            raise ValueError(f"factor is {factor}; expected a number above 0 and below 1000")
        target = (max(1, round(height * factor)), max(1, round(width * factor)))
    else:
        target = (height * scale, width * scale)
    if min(target) < 1:
        raise ValueError(f"size is {target[1]}x{target[0]}; expected at least 1x1")
    return target


def proportional_size(height: int, width: int, to_height: int = 0, to_width: int = 0) -> tuple[int, int]:
    """Height and width to make of a picture, where one of 0 follows from the other so that the proportions stay."""
    return (
        to_height or max(1, round(height * to_width / width)),
        to_width or max(1, round(width * to_height / height)),
    )


def enlarge_to(model: TransformerSR, image: Tensor, height: int, width: int, **options) -> Tensor:
    """Enlarge until a size is reached, then resize in float: `(b, c, h, w)` to `(b, c, height, width)`. Options as for `enlarge`.

    The network runs once, and again while a side is still too short (a x2 network asked for x4 runs twice).
    """
    progress: ProgressCallback | None = options.pop("on_progress", None)
    passes = count_passes(image.shape[2], image.shape[3], model.config.scale, height, width)
    work = [model.config.scale ** (2 * index) for index in range(passes)]  # pixels of each pass
    for index in range(passes):
        image = _no_longer_than(image, -(-height // model.config.scale), -(-width // model.config.scale)) if index else image
        try:
            image = enlarge(model, image, on_progress=_share_of_passes(progress, work, index), **options)
        except MemoryBudgetError as error:
            if index == 0:
                raise
            raise MemoryBudgetError(f"pass {index + 1} of {passes}: {error}") from error  # it names a size that nobody has seen
    if image.shape[2:] == (height, width):
        return image
    with saying_what_does_not_fit(len(image), height, width):
        return F.interpolate(image, (height, width), mode="bicubic", align_corners=False, antialias=True).clamp_(0, 1)


def _no_longer_than(image: Tensor, height: int, width: int) -> Tensor:
    """Shorten sides that one more pass would make longer than they have to be."""
    size = min(image.shape[2], height), min(image.shape[3], width)
    return image if image.shape[2:] == size else F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True)


def count_passes(height: int, width: int, scale: int, target_height: int, target_width: int) -> int:
    """How often a network has to run until both sides are long enough, at least once."""
    passes = 1
    while scale > 1 and (height * scale**passes < target_height or width * scale**passes < target_width):
        passes += 1
    return passes


def _share_of_passes(progress: ProgressCallback | None, work: list[int], index: int) -> ProgressCallback | None:
    """Progress of one pass as progress of all, in thousandths."""
    if progress is None:
        return None
    before, all_ = sum(work[:index]), sum(work)
    return lambda done, total: progress(round(1000 * (before + work[index] * done / total) / all_), 1000)
