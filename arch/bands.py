"""Stream a picture through local layers in bands of rows, with exactly the full-frame result.

A layer here takes an iterator of `Band`s, top to bottom, and yields the bands of its result. What it still needs for the rows
to come (a convolution's last rows, half a window) it holds back itself, so nothing is computed twice and no seam exists. Chaining layers
chains generators; only the rows between them are alive. One band holding the whole picture makes every layer an ordinary one:
that is what training runs.

Rows are tensors `b h w c`: batch, rows, columns, channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Band:
    """Some consecutive rows `b h w c` of a picture; `top` and `bottom` say whether they touch its first and last row."""

    rows: Tensor
    top: bool
    bottom: bool

    def map(self, function: Callable[[Tensor], Tensor]) -> Band:
        """The band after a function that works on every pixel by itself."""
        return Band(function(self.rows), self.top, self.bottom)


Bands = Iterator[Band]


def with_halo(bands: Bands, halo: int = 1) -> Bands:
    """Hand every row on once, with `halo` rows of context above and below it except beyond the picture's edge."""
    held: Tensor | None = None
    top = True
    for band in bands:
        rows = _join(held, band.rows)
        done = rows.shape[1] - (0 if top else halo) - (0 if band.bottom else halo)
        if done <= 0:
            held = rows
            continue
        yield Band(rows, top, band.bottom)
        held = None if band.bottom else rows[:, -2 * halo :].clone()
        top = False


def without_halo(slab: Band, halo: int = 1) -> Tensor:
    """The rows of a slab from `with_halo` that its result stands for."""
    return slab.rows[:, 0 if slab.top else halo : None if slab.bottom else -halo]


def in_cells(bands: Bands, size: int, offset: int = 0) -> Bands:
    """Regroup into whole cells of `size` rows. With an offset the first cell has `offset` rows, and the last is cut likewise."""
    held: Tensor | None = None
    start = 0
    for band in bands:
        rows = _join(held, band.rows)
        end = start + rows.shape[1]
        stop = end if band.bottom else (end - offset) // size * size + offset
        if stop <= start:
            held = rows
            continue
        yield Band(rows[:, : stop - start], start == 0, band.bottom)
        held = rows[:, stop - start :].clone() if stop < end else None
        start = stop


def split(rows: Tensor, band_rows: int) -> Bands:
    """Cut a whole picture `b h w c` into bands of at most `band_rows` rows."""
    height = rows.shape[1]
    for start in range(0, height, band_rows):
        yield Band(rows[:, start : start + band_rows], start == 0, start + band_rows >= height)


class RowQueue:
    """Rows of a picture, first in, first out; memory is given back as rows are taken."""

    def __init__(self) -> None:
        self._bands: deque[Tensor] = deque()

    def tee(self, bands: Bands) -> Bands:
        """Keep every band's rows while handing the bands on."""
        for band in bands:
            self._bands.append(band.rows)
            yield band

    def take(self, count: int) -> Tensor:
        """The next `count` rows (fewer at the end)."""
        taken: list[Tensor] = []
        while count > 0 and self._bands:
            rows = self._bands.popleft()
            if rows.shape[1] > count:
                self._bands.appendleft(rows[:, count:])
                rows = rows[:, :count]
            taken.append(rows)
            count -= rows.shape[1]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)

    def drain(self, band_rows: int) -> Bands:
        """Take everything, in bands of `band_rows` rows."""
        top = True
        while self._bands:
            rows = self.take(band_rows)
            yield Band(rows, top, not self._bands)
            top = False


def _join(held: Tensor | None, rows: Tensor) -> Tensor:
    return rows if held is None else torch.cat([held, rows], dim=1)
