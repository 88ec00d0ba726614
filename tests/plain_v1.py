"""A plain implementation of the original network for comparison, with the keys of the author's older files."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def plain_v1(state: dict[str, Tensor], image: Tensor, heads: int, window: int) -> Tensor:
    """Upscale `(b, 3, h, w)`, whose sides are multiples of the window, to `(b, 3, h * s, w * s)`."""
    pairs = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    x = torch.nn.functional.conv2d(image - 0.5, state["in_conv.weight"], state["in_conv.bias"], padding=1)
    x = rearrange(x, "b c h w -> b h w c")
    for pair in range(pairs):
        for block, attention in enumerate((_window, _channel)):
            prefix = f"blocks.{pair}.{block}."
            part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            x = x + attention(_norm(x, part, "norm1"), part, heads, window)
            hidden = torch.nn.functional.gelu(_linear(_norm(x, part, "norm2"), part, "mlp.0"))
            x = x + _linear(hidden, part, "mlp.2")
    x = torch.nn.functional.conv2d(rearrange(x, "b h w c -> b c h w"), state["out_conv.0.weight"], state["out_conv.0.bias"], padding=1)
    return torch.nn.functional.pixel_shuffle(x, int((x.shape[1] // 3) ** 0.5)) + 0.5


def _norm(x: Tensor, part: dict[str, Tensor], name: str) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], part[f"{name}.weight"], part[f"{name}.bias"], 1e-5)


def _linear(x: Tensor, part: dict[str, Tensor], name: str) -> Tensor:
    return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]


def _window(x: Tensor, part: dict[str, Tensor], heads: int, window: int) -> Tensor:
    h, w = x.shape[1] // window, x.shape[2] // window
    qkv = rearrange(
        _linear(x, part, "window_attention.qkv"), "b (h i) (w j) (t n d) -> t (b h w) n (i j) d", t=3, n=heads, i=window, j=window
    )
    q, k, v = qkv
    d = q.shape[-1]
    x = torch.softmax((q / d) @ (k / d).transpose(-1, -2), -1) @ v
    x = rearrange(x, "(b h w) n (i j) d -> b (h i) (w j) (n d)", h=h, w=w, i=window)
    return _linear(x, part, "window_attention.out")


def _channel(x: Tensor, part: dict[str, Tensor], heads: int, window: int) -> Tensor:
    height, width = x.shape[1:3]
    q, k, v = rearrange(_linear(x, part, "window_attention.qkv"), "b h w (t n d) -> t b n d (h w)", t=3, n=heads)
    length = height * width
    x = torch.softmax((q / length) @ (k / length).transpose(-1, -2), -1) @ v
    return _linear(rearrange(x, "b n d (h w) -> b h w (n d)", h=height), part, "window_attention.out")


def random_state(pairs: int, dim: int, scale: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights with the older keys, large enough for attention to be far from uniform."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, size: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * size + mean

    state = {"in_conv.weight": draw(dim, 3, 3, 3), "in_conv.bias": draw(dim)}
    for pair in range(pairs):
        for block in range(2):
            prefix = f"blocks.{pair}.{block}."
            for name, rows, columns in (("qkv", 3 * dim, dim), ("out", dim, dim)):
                size = 3.0 if name == "qkv" else 0.3
                state[f"{prefix}window_attention.{name}.weight"] = draw(rows, columns, size=size / dim**0.5)
                state[f"{prefix}window_attention.{name}.bias"] = draw(rows, size=0.3)
            for name, rows, columns in (("mlp.0", 4 * dim, dim), ("mlp.2", dim, 4 * dim)):
                state[f"{prefix}{name}.weight"] = draw(rows, columns, size=0.5 / columns**0.5)
                state[f"{prefix}{name}.bias"] = draw(rows, size=0.1)
            for name in ("norm1", "norm2"):
                state[f"{prefix}{name}.weight"] = draw(dim, size=0.2, mean=1.0)
                state[f"{prefix}{name}.bias"] = draw(dim, size=0.2)
    return state | {
        "out_conv.0.weight": draw(3 * scale**2, dim, 3, 3, size=0.1 / dim**0.5),
        "out_conv.0.bias": draw(3 * scale**2, size=0.1),
    }


def newer_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to the author's newer keys."""
    pairs = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    renamed = {}
    for name, value in state.items():
        if name.startswith("in_conv."):
            renamed[name.replace("in_conv", "layers.0")] = value
        elif name.startswith("out_conv.0."):
            renamed[name.replace("out_conv.0", f"layers.{pairs + 1}")] = value
        else:
            _, pair, rest = name.split(".", 2)
            prefix = f"layers.{int(pair) + 1}."
            if ".qkv." in rest:
                for one, part in zip("qkv", value.chunk(3), strict=True):
                    renamed[prefix + rest.replace("qkv", f"project_{one}")] = part
            else:
                renamed[prefix + rest.replace("attention.out", "attention.project_out")] = value
    return renamed
