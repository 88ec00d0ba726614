"""Run a network over an image in bands of rows, with exactly the full-frame result.

The layers and their order are those of `TransformerSR.forward`; this module only decides which rows they process at a time. A
convolution holds back its last rows until the next band brings their neighbours, window attention waits for whole rows of windows,
and channel attention sums its Gram matrix over all bands before any row passes. So there are no seams, and no row is computed twice.
Memory contains the features of the whole image twice (before the next channel block, and for the addition after the body) and the
intermediate results of one band.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import without_autocast
from .blocks import ChannelBlock, ResidualBlock, WindowBlock
from .model import TransformerSR

CONV_HALO = 1
"""Neighbouring rows that a 3x3 convolution needs on each side."""


@torch.inference_mode()
def stream(
    model: TransformerSR,
    image: Tensor,
    band_rows: int,
    *,
    on_rows: Callable[[int], None] | None = None,
    out: Tensor | None = None,
    offload_device: torch.device | None = None,
) -> Tensor:
    """Compute `model(image)` in bands: `(b, c, h, w)` to `(b, c, h * scale, w * scale)`, not clamped.

    Args:
        band_rows: height of a band in rows of the body. The result is the same for all heights, up to rounding.
        on_rows: called with the number of rows that pass each channel block and the last layer. The numbers add up to `total_rows`. It
            may raise an exception to stop the run.
        out: tensor for the result, on any device; it is also returned.
        offload_device: device for features that wait, if the network's own device has no room for them.
    """
    height, width = image.shape[-2] * model.config.scale, image.shape[-1] * model.config.scale
    padded = model.pad(image)
    on_rows = on_rows or (lambda count: None)
    if out is None:
        out = image.new_empty(*image.shape[:2], height, width)

    waiting: RowQueue | RowBuffer = RowQueue()
    waiting.append(model.to_pixels(padded))
    features = _empty_features(model, padded, offload_device)
    skip = None if model.conv_after_body is None else RowBuffer(torch.empty_like(features))
    stages: list[Stage] = [FirstConvolution(model.conv_first, skip)]
    for block in model.body:
        if not isinstance(block, ChannelBlock):
            stages.append(stage_of(block))
            continue
        gram, mixed = None, RowBuffer(features)
        while waiting:
            rows = next_rows(stages, waiting, band_rows)
            if rows is None:
                continue
            gram = block.gram(rows) if gram is None else gram + block.gram(rows)
            on_rows(rows.shape[2])
            mixed.append(rows)
            del rows
        assert gram is not None
        waiting, stages = mixed, [Mixing(block, *block.attention.mixing(gram))]

    if model.conv_after_body is not None:
        stages.append(Convolution(model.conv_after_body, skip))
    stages.append(Convolution(model.upsample))
    done = 0
    while waiting:
        rows = next_rows(stages, waiting, band_rows)
        if rows is None:
            continue
        on_rows(rows.shape[2])
        rows = model.to_image(rows, padded, done)
        stop = min(done + rows.shape[2], height)
        out[:, :, done:stop] = rows[:, :, : stop - done, :width]
        done = stop
    return out


def total_rows(model: TransformerSR, height: int) -> int:
    """Return the sum of all `on_rows` calls for an image of this height."""
    rows = -(-height // model.config.multiple) * model.config.multiple // model.config.unshuffle
    return rows * (model.config.blocks.count("C") + 1)


# --- stages --------------------------------------------------------------------------------------


class Stage:
    """A local layer that takes the rows of an image band by band and returns the result rows that it can compute."""

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        """Return the next result rows `b c h w`, or None if there are none yet; with the `last` band, all remaining rows."""
        raise NotImplementedError


def stage_of(block: nn.Module) -> Stage:
    """Return the stage of a local block of the body."""
    if isinstance(block, ResidualBlock):
        return Residual(block)
    assert isinstance(block, WindowBlock)
    return Windows(block)


def next_rows(stages: list[Stage], waiting: RowQueue | RowBuffer, band_rows: int) -> Tensor | None:
    """Pass the next band through stages, for as long as rows come out."""
    rows: Tensor | None = waiting.take(band_rows)
    last = not waiting
    for stage in stages:
        if rows is None:
            return None
        rows = stage.push(rows, last)
    return rows


class Convolution(Stage):
    """A 3x3 convolution, and the addition of waiting rows where there are some."""

    def __init__(self, conv: nn.Conv2d, addend: RowQueue | RowBuffer | None = None):
        self.conv, self.addend = conv, addend
        self.held: Tensor | None = None
        self.top = True

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        rows, top = _join(self.held, rows), self.top
        if rows.shape[2] <= (0 if top else CONV_HALO) + (0 if last else CONV_HALO):
            self.held = rows
            return None
        self.held = None if last else rows[:, :, -2 * CONV_HALO :].clone()
        self.top = False
        result = self._convolve(rows, top, last)
        return result if self.addend is None else result.add_(self.addend.take(result.shape[2]))

    def _convolve(self, rows: Tensor, top: bool, bottom: bool) -> Tensor:
        """The convolution of rows with their neighbours; beyond the image there are zeros."""
        if top and bottom:
            return self.conv(rows)
        rows = F.pad(rows, (0, 0, int(top), int(bottom))) if top or bottom else rows
        return F.conv2d(rows, self.conv.weight, self.conv.bias, padding=(0, 1))


class FirstConvolution(Convolution):
    """`conv_first`, whose result is also stored for the addition after the body."""

    def __init__(self, conv: nn.Conv2d, skip: RowBuffer | None):
        super().__init__(conv)
        self.skip = skip

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        with without_autocast(rows):
            result = super().push(rows, last)
        if self.skip is not None and result is not None:
            self.skip.append(result)
        return result


class Residual(Stage):
    """A `ResidualBlock`: two convolutions, each with held rows, and the input waiting to be added to their result."""

    def __init__(self, block: ResidualBlock):
        self.input = RowQueue()
        self.conv1 = Convolution(block.conv1)
        self.conv2 = Convolution(block.conv2, self.input)

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        self.input.append(rows)
        hidden = self.conv1.push(rows, last)
        return None if hidden is None else self.conv2.push(F.silu(hidden, inplace=True), last)


class Windows(Stage):
    """A `WindowBlock`, which waits for whole rows of windows."""

    def __init__(self, block: WindowBlock):
        self.block = block
        self.size, self.offset = block.attention.window_size, block.attention.offset
        self.held: Tensor | None = None
        self.start = 0

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        rows, start = _join(self.held, rows), self.start
        end = start + rows.shape[2]
        stop = end if last else (end - self.offset) // self.size * self.size + self.offset
        if stop <= start:
            self.held = rows
            return None
        self.held = rows[:, :, stop - start :].clone() if stop < end else None
        self.start = stop
        return self.block(rows[:, :, : stop - start], top=start == 0, bottom=last)


class Mixing(Stage):
    """The second pass of a `ChannelBlock`, after the Gram matrix of the whole image has been computed."""

    def __init__(self, block: ChannelBlock, weight: Tensor, bias: Tensor):
        self.block, self.weight, self.bias = block, weight, bias

    def push(self, rows: Tensor, last: bool) -> Tensor:
        return self.block.mix(rows, self.weight, self.bias)


def _join(held: Tensor | None, rows: Tensor) -> Tensor:
    return rows if held is None else torch.cat([held, rows], dim=2)


class RowQueue:
    """A first-in, first-out queue of rows `b c h w`. Taken rows are freed."""

    def __init__(self) -> None:
        self._bands: deque[Tensor] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Tensor) -> None:
        """Append rows."""
        self._bands.append(rows)
        self._count += rows.shape[2]

    def take(self, count: int) -> Tensor:
        """Remove and return the next `count` rows (fewer at the end)."""
        count = min(count, self._count)
        self._count -= count
        taken: list[Tensor] = []
        while count > 0:
            rows = self._bands.popleft()
            if rows.shape[2] > count:
                self._bands.appendleft(rows[:, :, count:])
                rows = rows[:, :, :count]
            taken.append(rows)
            count -= rows.shape[2]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)


class RowBuffer:
    """A queue for all rows of an image in preallocated memory, on any device.

    With separate memory for each band, the C library could not reuse the gaps in between, and a process would grow by up to twice as much.
    Two buffers can share memory if one is filled from the rows of the other, because layers never return more rows than they were given.
    """

    def __init__(self, memory: Tensor):
        self._memory = memory
        self._device = memory.device
        self._start = self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Tensor) -> None:
        """Copy rows to the end."""
        self._device = rows.device
        end = self._start + self._count
        self._memory[:, :, end : end + rows.shape[2]] = rows.to(self._memory.device)
        self._count += rows.shape[2]

    def take(self, count: int) -> Tensor:
        """Remove and return the next `count` rows (fewer at the end), as a view, or as a copy on their original device."""
        count = min(count, self._count)
        start, self._start = self._start, self._start + count
        self._count -= count
        return self._memory[:, :, start : start + count].to(self._device)


def _empty_features(model: TransformerSR, padded: Tensor, device: torch.device | None) -> Tensor:
    """Allocate the features of a padded image in the memory layout of `TransformerSR.to_pixels`, by default on the image's device."""
    config = model.config
    height, width = (side // config.unshuffle for side in padded.shape[2:])
    layout = model.memory_format(padded.device)
    return torch.empty(
        (len(padded), config.embed_dim, height, width), dtype=padded.dtype, device=device or padded.device, memory_format=layout
    )
