"""Stream a picture through local layers in bands of rows, with exactly the full-frame result.

A layer here takes an iterator of `Band`s, top to bottom, and gives the bands of its result. What it still needs for the rows to come (a
convolution's last rows, half a window) it holds back itself, so no seam exists, and next to nothing is computed twice. Chaining layers
chains iterators, and only the rows held back and one layer's work are in memory. One band holding the whole picture makes every layer
an ordinary one: that is what training runs.

The chains are built from `map` and `filter` and not from generators, because a generator keeps its local variables, whole bands, alive
while the layers after it work.

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


Bands = Iterator[Band]


def map_rows(function: Callable[[Tensor], Tensor], bands: Bands) -> Bands:
    """Apply a function that works on every pixel by itself."""
    return map(lambda band: Band(function(band.rows), band.top, band.bottom), bands)


def map_slabs(function: Callable[[Band], Tensor], bands: Bands, halo: int = 1) -> Bands:
    """Apply a function that looks `halo` rows beyond its own: it is given a band `with_halo` and returns the rows without."""
    return map(lambda slab: Band(function(slab), slab.top, slab.bottom), with_halo(bands, halo) if halo else bands)


def with_halo(bands: Bands, halo: int = 1) -> Bands:
    """Hand every row on once, with `halo` rows of context above and below it except beyond the picture's edge."""
    return filter(None, map(_Halo(halo).push, bands))


def without_halo(slab: Band, halo: int = 1) -> Tensor:
    """The rows of a slab from `with_halo` that its result stands for."""
    return slab.rows[:, 0 if slab.top else halo : None if slab.bottom else -halo]


def in_cells(bands: Bands, size: int, offset: int = 0) -> Bands:
    """Regroup into whole cells of `size` rows. With an offset the first cell has `offset` rows, and the last is cut likewise."""
    return filter(None, map(_Cells(size, offset).push, bands))


class _Halo:
    """The rows that `with_halo` holds back."""

    def __init__(self, halo: int):
        self.halo = halo
        self.held: Tensor | None = None
        self.top = True

    def push(self, band: Band) -> Band | None:
        rows, top = _join(self.held, band.rows), self.top
        if rows.shape[1] <= (0 if top else self.halo) + (0 if band.bottom else self.halo):
            self.held = rows
            return None
        self.held = None if band.bottom else rows[:, -2 * self.halo :].clone()
        self.top = False
        return Band(rows, top, band.bottom)


class _Cells:
    """The rows that `in_cells` holds back."""

    def __init__(self, size: int, offset: int):
        self.size, self.offset = size, offset
        self.held: Tensor | None = None
        self.start = 0

    def push(self, band: Band) -> Band | None:
        rows, start = _join(self.held, band.rows), self.start
        end = start + rows.shape[1]
        stop = end if band.bottom else (end - self.offset) // self.size * self.size + self.offset
        if stop <= start:
            self.held = rows
            return None
        self.held = rows[:, stop - start :].clone() if stop < end else None
        self.start = stop
        return Band(rows[:, : stop - start], start == 0, band.bottom)


def split(rows: Tensor, band_rows: int) -> Bands:
    """Cut a whole picture `b h w c` into bands of at most `band_rows` rows."""
    start, height = 0, rows.shape[1]
    while start < height:  # not a range, which torch.export would fix to the height of its example
        stop = start + band_rows
        yield Band(rows[:, start:stop], start == 0, stop >= height)
        start = stop


class RowQueue:
    """Rows of a picture, first in, first out; memory is given back as rows are taken.

    Args:
        store: device that keeps the rows while they wait, the host's memory say; None leaves them where they are.
    """

    def __init__(self, store: torch.device | None = None) -> None:
        self._bands: deque[Tensor] = deque()
        self._store, self._device = store, store

    def tee(self, bands: Bands) -> Bands:
        """Keep every band's rows while handing the bands on."""

        def keep(band: Band) -> Band:
            self._device = band.rows.device
            self._bands.append(band.rows if self._store is None else band.rows.to(self._store))
            return band

        return map(keep, bands)

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
        rows = taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)
        return rows.to(self._device)

    def add_to(self, rows: Tensor) -> Tensor:
        """The given rows plus the next ones of the queue."""
        return self.take(rows.shape[1]) + rows

    def drain(self, band_rows: int) -> Bands:
        """Take everything, in bands of `band_rows` rows."""
        top = True
        while self._bands:
            yield Band(self.take(band_rows), top, not self._bands)
            top = False


def _join(held: Tensor | None, rows: Tensor) -> Tensor:
    return rows if held is None else torch.cat([held, rows], dim=1)
