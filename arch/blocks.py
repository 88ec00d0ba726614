"""The blocks of the body: ordinary modules from `(b, c, h, w)` to the same shape.

Both designs use window and channel blocks. v1 has a feed-forward layer in each; v2 uses convolutions instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import ChannelAttention, WindowAttention, gram_matrix, merge_windows, split_windows


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution with zero padding."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResidualBlock(nn.Module):
    """`x + conv2(SiLU(conv1(x)))`, initialized close to the identity (EDSR, Lim et al. 2017, arXiv:1707.02921)."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = conv3x3(dim, dim)
        self.conv2 = conv3x3(dim, dim)
        with torch.no_grad():
            for parameter in self.conv2.parameters():
                parameter.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))


class FeedForward(nn.Module):
    """`x + fc2(GELU(fc1(norm(x))))` on rows `b h w c`."""

    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class WindowBlock(nn.Module):
    """`x + attention(norm(x))` within windows, then the feed-forward layer if there is one."""

    def __init__(self, dim: int, attention: WindowAttention, mlp_ratio: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = attention
        self.mlp = FeedForward(dim, mlp_ratio) if mlp_ratio else None

    def forward(self, x: Tensor, top: bool = True, bottom: bool = True) -> Tensor:
        """Sides must be multiples of the window size. If `x` is a band of an image, `top` and `bottom` are those of `split_windows`."""
        size, offset = self.attention.window_size, self.attention.offset
        rows = rearrange(x, "b c h w -> b h w c")
        windows = self.attention(split_windows(self.norm(rows), size, offset, top, bottom))
        rows = rows + merge_windows(windows, rows, size, offset, top)
        if self.mlp is not None:
            rows = self.mlp(rows)
        return rearrange(rows, "b h w c -> b c h w")


class ChannelBlock(nn.Module):
    """`x + attention(norm(x))` among channels over the whole image, then the feed-forward layer if there is one."""

    def __init__(self, dim: int, attention: ChannelAttention, mlp_ratio: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = attention
        self.mlp = FeedForward(dim, mlp_ratio) if mlp_ratio else None

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, *self.attention.mixing(self.gram(x)))

    def gram(self, x: Tensor) -> Tensor:
        """Return the Gram matrix of the normalised features. The matrices of bands add up to that of the image."""
        return gram_matrix(self.norm(rearrange(x, "b c h w -> b h w c")))

    def mix(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the rest of the block pixel by pixel, with the linear map from `attention.mixing`."""
        rows = rearrange(x, "b c h w -> b h w c")
        rows = rows + self.attention.mix(self.norm(rows), weight, bias)
        if self.mlp is not None:
            rows = self.mlp(rows)
        return rearrange(rows, "b h w c -> b c h w")
