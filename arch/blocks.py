"""The layers of the body: each takes bands of rows `b h w c` and yields bands of the result (see `bands`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import ChannelAttention, WindowAttention, gram_matrix, merge_windows, split_windows
from .bands import Band, Bands, RowQueue, in_cells, map_rows, map_slabs, without_halo


def added(change: Tensor, x: Tensor) -> Tensor:
    """`x + change`, in the memory of `change` unless `x` is more precise, as it is under autocast.

    `change` has to come from a linear layer or a convolution, which do not look at their result again in the backward pass.
    """
    return change.add_(x) if change.dtype == x.dtype else x + change


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of rows `b h w c`, zero beyond the picture's edge."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1):
        super().__init__(in_channels, out_channels, 3, padding=1, groups=groups)

    def forward(self, slab: Band) -> Tensor:  # type: ignore[override]
        """Rows from `with_halo`; returns the rows without the halo."""
        x = rearrange(slab.rows, "b h w c -> b c h w")
        padding = (1, 1)
        if not (slab.top and slab.bottom):
            x, padding = F.pad(x, (0, 0, int(slab.top), int(slab.bottom))), (0, 1)
        x = F.conv2d(x, self.weight, self.bias, padding=padding, groups=self.groups)
        return rearrange(x, "b c h w -> b h w c")


class DepthwiseConv(Conv3x3):
    """`x + conv(x)`, one 3x3 filter per channel, starting as the identity.

    In front of attention it tells a pixel where it is and lets windows exchange (DaViT's convolutional position encoding).
    """

    def __init__(self, dim: int):
        super().__init__(dim, dim, groups=dim)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, slab: Band) -> Tensor:  # type: ignore[override]
        return added(super().forward(slab), without_halo(slab))


class FeedForward(nn.Module):
    """`x + fc2(GELU(local(fc1(norm(x)))))`; `local` is a depthwise convolution or nothing."""

    def __init__(self, dim: int, ratio: int, local: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.local = DepthwiseConv(ratio * dim) if local else None
        self.fc2 = nn.Linear(ratio * dim, dim)

    def over(self, bands: Bands) -> Bands:
        """Bands of the result."""
        return map_slabs(self, bands, halo=0 if self.local is None else 1)

    def forward(self, slab: Band) -> Tensor:
        """Rows from `with_halo`, where there is a convolution; returns the rows without the halo."""
        hidden = self.fc1(self.norm(slab.rows))
        if self.local is None:
            return added(self.fc2(F.gelu(hidden)), slab.rows)
        hidden = self.local(Band(hidden, slab.top, slab.bottom))
        return added(self.fc2(F.gelu(hidden)), without_halo(slab))


class WindowBlock(nn.Module):
    """Attention within windows, then the feed-forward layer."""

    def __init__(self, attention: WindowAttention, dim: int, mlp_ratio: int, local: bool):
        super().__init__()
        self.local = DepthwiseConv(dim) if local else None
        self.norm = nn.LayerNorm(dim)
        self.attention = attention
        self.mlp = FeedForward(dim, mlp_ratio, local)

    def forward(self, bands: Bands) -> Bands:
        bands = bands if self.local is None else map_slabs(self.local, bands)
        return self.mlp.over(map(self._attend, in_cells(bands, self.attention.window_size, self.attention.offset)))

    def _attend(self, cells: Band) -> Band:
        size, offset = self.attention.window_size, self.attention.offset
        windows = split_windows(cells.rows, size, offset, cells.top, cells.bottom)
        windows = added(self.attention(self.norm(windows)), windows)
        return Band(merge_windows(windows, cells.rows, size, offset, cells.top), cells.top, cells.bottom)


class ChannelBlock(nn.Module):
    """Attention among channels over the whole picture, then the feed-forward layer.

    The one layer that has to see the whole picture before its first row comes out: it keeps the rows and adds up their Gram matrix.
    """

    def __init__(self, attention: ChannelAttention, dim: int, mlp_ratio: int, local: bool):
        super().__init__()
        self.local = DepthwiseConv(dim) if local else None
        self.norm = nn.LayerNorm(dim)
        self.attention = attention
        self.mlp = FeedForward(dim, mlp_ratio, local)

    def forward(self, bands: Bands, band_rows: int, on_rows: Callable[[int], None], store: torch.device | None = None) -> Bands:
        """`band_rows`: height of the bands handed on. `on_rows(count)` is called as rows arrive. `store` keeps them, as in `RowQueue`."""
        bands = bands if self.local is None else map_slabs(self.local, bands)
        return self.mlp.over(self._attend(bands, band_rows, on_rows, RowQueue(store)))

    def _attend(self, bands: Bands, band_rows: int, on_rows: Callable[[int], None], trunk: RowQueue) -> Bands:
        grams = []
        for band in trunk.tee(bands):
            grams.append(self._products(band.rows))
            on_rows(band.rows.shape[1])
            del band  # or its rows would stay alive while the trunk is read
        weight, bias = self.attention.mixing(torch.stack(grams).sum(0))
        yield from map_rows(lambda x: self._mix(x, weight, bias), trunk.drain(band_rows))

    def _products(self, x: Tensor) -> Tensor:
        return gram_matrix(self.norm(x))

    def _mix(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return added(self.attention.mix(self.norm(x), weight, bias), x)


class ResidualGroup(nn.Module):
    """Pairs of a window and a channel block; with `residual` a convolution after them, and the group's input added."""

    def __init__(self, blocks: list[nn.Module], dim: int, residual: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = Conv3x3(dim, dim) if residual else None

    def forward(self, bands: Bands, band_rows: int, on_rows: Callable[[int], None], store: torch.device | None = None) -> Bands:
        skip, conv = RowQueue(store), self.conv
        x = bands if conv is None else skip.tee(bands)
        for block in self.blocks:
            x = block(x, band_rows, on_rows, store) if isinstance(block, ChannelBlock) else block(x)
        return x if conv is None else map_slabs(lambda slab: skip.add_to(conv(slab)), x)
