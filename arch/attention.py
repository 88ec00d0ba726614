"""Window attention and channel attention.

Legend: `b` batch, `h w` rows and columns (or the grid of windows), `wh ww` inside a window, `c` channels, `n` tokens, `d` head width.

Window attention is that of Swin (Liu et al. 2021, arXiv:2103.14030), channel attention that of DaViT (Ding et al. 2022,
arXiv:2204.03645) and XCiT (El-Nouby et al. 2021, arXiv:2106.09681). Two things differ: shifted windows see the image
mirrored beyond its edge instead of wrapped round and masked, and channel attention is computed from the Gram matrix of its
input, so that queries and keys of single pixels are never stored.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

# --- windows -------------------------------------------------------------------------------------


def mirror_pad(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Pad `x` along `dim` with its mirror image, including the edge itself."""
    parts = [x]
    if before:
        parts.insert(0, x.narrow(dim, 0, before).flip(dim))
    if after:
        parts.append(x.narrow(dim, x.shape[dim] - after, after).flip(dim))
    return torch.cat(parts, dim) if len(parts) > 1 else x


def split_windows(x: Tensor, size: int, offset: int, top: bool, bottom: bool) -> Tensor:
    """Split rows `b h w c`, which end at window borders, into windows `(b h w) (wh ww) c`.

    `top` and `bottom` say whether the rows include the first and last row of the image. With an offset, windows there are completed with
    the mirror image.
    """
    if offset:
        x = mirror_pad(x, 1, size - offset if top else 0, offset if bottom else 0)
        x = mirror_pad(x, 2, size - offset, offset)
    return rearrange(x, "b (h wh) (w ww) c -> (b h w) (wh ww) c", wh=size, ww=size)


def merge_windows(windows: Tensor, like: Tensor, size: int, offset: int, top: bool) -> Tensor:
    """Invert `split_windows`, returning rows of the shape of `like`."""
    height, width = like.shape[1:3]
    before = size - offset if offset else 0
    w = -(-(before + width) // size)
    x = rearrange(windows, "(b h w) (wh ww) c -> b (h wh) (w ww) c", b=len(like), w=w, wh=size, ww=size)
    return x.narrow(1, before if top else 0, height).narrow(2, before, width)


def relative_position_index(window_size: int) -> Tensor:
    """Return `(n, n)`: for each pair of tokens in a window, the row of the bias table for their offset."""
    axis = torch.arange(window_size)
    y = repeat(axis, "wh -> (wh ww)", ww=window_size)
    x = repeat(axis, "ww -> (wh ww)", wh=window_size)
    dy = y[:, None] - y[None, :] + window_size - 1
    dx = x[:, None] - x[None, :] + window_size - 1
    return dy * (2 * window_size - 1) + dx


class WindowAttention(nn.Module):
    """Multi-head attention among the pixels of each window.

    Args:
        offset: position of the first window border in pixels; 0 aligns windows with the corner of the image.
        scale: factor on the logits before softmax.
        position_bias: whether to learn a bias for each head and offset between two pixels.
    """

    position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int, offset: int, scale: float, position_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.offset = offset
        self.scale = scale
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.position_bias = None
        if position_bias:
            self.position_bias = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
            self.register_buffer("position_index", relative_position_index(window_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention to windows of tokens `bw n c` from `split_windows`; returns the same shape."""
        q, k, v = rearrange(self.qkv(x), "bw n (qkv heads d) -> qkv bw heads n d", qkv=3, heads=self.num_heads)
        bias = self._bias(q.dtype)
        if self.training and bias is not None:
            # the backward pass of scaled_dot_product_attention with a trainable bias is twice as slow on CPUs
            x = (q * self.scale @ k.transpose(-1, -2) + bias).softmax(-1).to(v.dtype) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.proj(rearrange(x, "bw heads n d -> bw n (heads d)"))

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        if self.position_bias is None:
            return None
        return rearrange(self.position_bias[self.position_index], "q k heads -> 1 heads q k").to(dtype)


# --- precision -----------------------------------------------------------------------------------


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Disable an enclosing autocast on devices that have autocast in every supported PyTorch."""
    if tensor.device.type not in ("cpu", "cuda"):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


# --- channels ------------------------------------------------------------------------------------


def gram_matrix(x: Tensor) -> Tensor:
    """Sum the products of channels of `[x, 1]` over all pixels: `b h w c` -> `(b, c + 1, c + 1)` in float32.

    The last row contains the channel sums and the number of pixels, so the matrices of bands add up to that of the image.
    """
    with without_autocast(x):
        tokens = rearrange(x, "b h w c -> b (h w) c").float()
        products = tokens.transpose(1, 2) @ tokens
        sums = tokens.sum(dim=1, keepdim=True)
        count = sums.new_full((sums.shape[0], 1, 1), tokens.shape[1])
        return torch.cat([torch.cat([products, sums], 1), torch.cat([sums.transpose(1, 2), count], 1)], 2)


class ChannelAttention(nn.Module):
    """Multi-head attention among channels; the vector of a channel is its values at all pixels of the image.

    Softmax runs over the key channels of a head. With `correlation`, the logits are the cosines between query and key channels times a
    learned temperature per head, independent of the size of the image (XCiT). Without it, they are `q k / L**2` for `L` pixels, as in
    the original network.
    """

    def __init__(self, dim: int, num_heads: int, correlation: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.temperature = nn.Parameter(torch.ones(num_heads)) if correlation else None

    def mixing(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce the attention to one linear map per pixel: from `gram_matrix` to weight `(b, c, c)` and bias `(b, 1, c)` in float32."""
        with without_autocast(gram):
            weight = torch.cat([self.qkv.weight, self.qkv.bias[:, None]], 1).float()
            q, k, v = rearrange(weight, "(qkv heads d) c -> qkv heads d c", qkv=3, heads=self.num_heads)
            gram = gram[:, None]
            logits = q @ gram @ k.transpose(-1, -2)
            if self.temperature is None:
                logits = logits / gram[..., -1:, -1:] ** 2
            else:
                q_energy = ((q @ gram) * q).sum(-1).clamp_min(1e-6)
                k_energy = ((k @ gram) * k).sum(-1).clamp_min(1e-6)
                logits = logits * q_energy.rsqrt()[..., :, None] * k_energy.rsqrt()[..., None, :]
                logits = logits * self.temperature.float()[:, None, None]
            mixed = rearrange(logits.softmax(-1) @ v, "b heads d c -> b (heads d) c")
            folded = self.proj.weight.float() @ mixed
            return folded[..., :-1], (folded[..., -1] + self.proj.bias.float())[:, None]

    @staticmethod
    def mix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply the linear map from `mixing` to rows `b h w c`."""
        tokens = rearrange(x, "b h w c -> b (h w) c")
        tokens = torch.baddbmm(bias.to(x.dtype), tokens, weight.to(x.dtype).transpose(1, 2))
        return rearrange(tokens, "b (h w) c -> b h w c", w=x.shape[2])
