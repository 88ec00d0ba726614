"""TransformerSR: convolutions, window attention and channel attention alternating, ending in a pixel shuffle.

Two designs share this module. `v1` is the original network exactly as defined: no position information, no skip over the body,
a feed-forward layer in every block, logits scaled by `1 / d**2` and `1 / L**2`. `v2` keeps the idea but replaces the feed-forward
layers with residual 3x3 convolutions, shifts windows and gives them a position bias, makes channel logits independent of image size,
and adds the result to a bicubic upscale. docs/architecture.md gives the reasons.

Shapes: images are `(b, c, h, w)`, RGB in [0, 1]; features inside are `(b, c, h, w)` in channels-last memory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import ChannelAttention, WindowAttention, without_autocast
from .blocks import ChannelBlock, ResidualBlock, WindowBlock, conv3x3

# --- configuration -------------------------------------------------------------------------------

DESIGNS = ("v1", "v2")
BLOCKS = {"R": "residual 3x3 convolutions", "W": "window attention", "C": "channel attention"}
LAYOUT = 2  # of the integers in `as_integers`; a file with a higher number needs a newer version of this package


@dataclass(frozen=True)
class TransformerSRConfig:
    """The complete configuration of a network."""

    design: str = "v2"
    """`v1` (the original) or `v2`."""
    scale: int = 4
    """Scale factor of each side."""
    channels: int = 3
    """Channels of the image."""
    embed_dim: int = 64
    """Width of the network in channels; a multiple of `num_heads`."""
    num_heads: int = 4
    """Number of heads of both kinds of attention."""
    blocks: str = "RWRC" * 4
    """The blocks of the body as letters: `R` residual 3x3 convolutions, `W` window attention, `C` channel attention. v1 has pairs `WC`."""
    window_size: int = 8
    """Side of an attention window in pixels."""
    mlp_ratio: int = 0
    """Width of the feed-forward layers relative to `embed_dim`; 0 for none."""

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise ValueError(f"design is {self.design!r}; expected one of {', '.join(DESIGNS)}")
        limits = {"scale": 16, "channels": 64, "embed_dim": 4096, "num_heads": 1024, "window_size": 128, "mlp_ratio": 16}
        for name, most in limits.items():
            value, least = getattr(self, name), 0 if name == "mlp_ratio" else 1
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}; expected a whole number from {least} to {most}")
        if not isinstance(self.blocks, str) or not 1 <= len(self.blocks) <= 256 or not set(self.blocks) <= set(BLOCKS):
            raise ValueError(f"blocks is {self.blocks!r:.80}; expected 1 to 256 letters of {', '.join(BLOCKS)}")
        if self.design == "v1" and "R" in self.blocks:
            raise ValueError(f"blocks is {self.blocks!r}; v1 has only window and channel blocks, W and C")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.design == "v2" and self.window_size % 2:
            raise ValueError(f"window_size is {self.window_size}; expected an even number, because v2 shifts windows by half")

    @property
    def unshuffle(self) -> int:
        """Side of the square of image pixels that the body sees as one pixel: 2 at scale 1, which saves three quarters of the work."""
        return 2 if self.design == "v2" and self.scale == 1 else 1

    @property
    def multiple(self) -> int:
        """Images are padded to a multiple of this many pixels."""
        return (self.window_size if "W" in self.blocks else 1) * self.unshuffle

    def to_json(self) -> str:
        """Return the configuration as a JSON object for `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TransformerSRConfig:
        """Parse the result of `to_json`. Raises ValueError for anything else."""
        values = json.loads(text)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not set(values) <= names:
            raise ValueError(f"not a TransformerSR configuration: {text[:200]}")
        return cls(**values)

    def as_integers(self) -> list[int]:
        """Return the configuration as integers for the state dict, because some loaders do not see metadata."""
        numbers = [self.scale, self.channels, self.embed_dim, self.num_heads, self.window_size, self.mlp_ratio]
        return [LAYOUT, DESIGNS.index(self.design) + 1, *numbers, *(list(BLOCKS).index(letter) for letter in self.blocks)]

    @classmethod
    def from_integers(cls, numbers: list[int]) -> TransformerSRConfig:
        """Parse the result of `as_integers`. Raises ValueError for anything else."""
        letters = list(BLOCKS)
        known = len(numbers) >= 9 and numbers[0] == LAYOUT and 1 <= numbers[1] <= len(DESIGNS)
        if not known or not all(0 <= number < len(letters) for number in numbers[8:]):
            raise ValueError(
                f"architecture numbers {numbers[:12]} are not of layout {LAYOUT}; a newer version of transformersr may read them"
            )
        scale, channels, embed_dim, num_heads, window_size, mlp_ratio = numbers[2:8]
        blocks = "".join(letters[number] for number in numbers[8:])
        return cls(DESIGNS[numbers[1] - 1], scale, channels, embed_dim, num_heads, blocks, window_size, mlp_ratio)


VARIANTS = {
    "tiny": TransformerSRConfig(embed_dim=48, num_heads=3, blocks="RWRC" * 3),
    "base": TransformerSRConfig(embed_dim=48, num_heads=3, blocks="RWRC" * 6),
    "large": TransformerSRConfig(embed_dim=160, num_heads=10, blocks="RWRC" * 8),
    "original": TransformerSRConfig("v1", embed_dim=256, num_heads=16, blocks="WC" * 8, window_size=4, mlp_ratio=4),
}
"""Named configurations at x4; `dataclasses.replace(VARIANTS["tiny"], scale=2)` gives another scale."""

# --- network -------------------------------------------------------------------------------------


class TransformerSR(nn.Module):
    """The super-resolution network."""

    def __init__(self, config: TransformerSRConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        """Whether to discard the activations of blocks and recompute them in the backward pass (Chen et al. 2016, arXiv:1604.06174)."""
        dim, v2 = config.embed_dim, config.design == "v2"
        self.register_buffer("architecture", torch.tensor(config.as_integers(), dtype=torch.int32))
        self.conv_first = conv3x3(config.channels * config.unshuffle**2, dim)
        self.body = nn.ModuleList(_make_blocks(config))
        self.conv_after_body = conv3x3(dim, dim) if v2 else None
        self.upsample = conv3x3(dim, config.channels * (config.scale * config.unshuffle) ** 2)
        self.bicubic = BicubicUpscale(config.scale) if v2 else None
        if self.bicubic is not None:
            with torch.no_grad():  # start close to the bicubic result
                for parameter in self.upsample.parameters():
                    parameter.mul_(0.1)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.upsample.weight.device

    @device.setter
    def device(self, device: torch.device) -> None:
        """Ignored. ComfyUI assigns it after moving a network, but the weights already have it."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.upsample.weight.dtype

    def forward(self, image: Tensor) -> Tensor:
        """Upscale `(b, c, h, w)` in [0, 1] to `(b, c, h * scale, w * scale)`, not clamped.

        Processes the whole image at once; `streaming.stream` computes the same result with less memory.
        """
        height, width = image.shape[-2] * self.config.scale, image.shape[-1] * self.config.scale
        padded = self.pad(image)
        pixels = self.to_pixels(padded)
        with without_autocast(pixels):  # keep the residual stream in float32 in mixed precision
            features = self.conv_first(pixels)
        x = features
        for block in self.body:
            x = checkpoint(block, x, use_reentrant=False) if self.gradient_checkpointing else block(x)
        if self.conv_after_body is not None:
            x = self.conv_after_body(x) + features
        x = self.upsample(x)
        return self.to_image(x, padded)[..., :height, :width]

    # both ends are shared with streaming

    def pad(self, image: Tensor) -> Tensor:
        """Pad both sides to a multiple of `config.multiple` by repeating the last row and column."""
        bottom, right = (-size % self.config.multiple for size in image.shape[-2:])
        return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image

    def to_pixels(self, padded: Tensor) -> Tensor:
        """Return the input of `conv_first`: centred, squares of `unshuffle` pixels as channels, in the best layout for the device."""
        pixels = F.pixel_unshuffle(padded - 0.5, self.config.unshuffle)
        return pixels.contiguous(memory_format=self.memory_format(pixels.device))

    @staticmethod
    def memory_format(device: torch.device) -> torch.memory_format:
        """Return the memory layout of features on a device: channels-last, unless its convolutions in this layout are slow or wrong."""
        return torch.channels_last if device.type in ("cpu", "cuda") else torch.contiguous_format

    def to_image(self, x: Tensor, padded: Tensor, start: int = 0) -> Tensor:
        """Convert rows of `upsample` to rows of the result `(b, c, h * scale, w * scale)`, whose first row is `start`."""
        large = F.pixel_shuffle(x, self.config.scale * self.config.unshuffle)
        if self.bicubic is None:
            return large + 0.5
        scale = self.config.scale
        return large + self.bicubic(padded, start // scale, (start + large.shape[-2]) // scale)


class BicubicUpscale(nn.Module):
    """Cubic convolution (Keys 1981, a = -1/2, exact on ramps) by a whole factor, as one filter per position inside an upscaled pixel.

    Implemented as a convolution, which is available on every device, in every precision and in ONNX, with the same coefficients.
    """

    HALO = 2
    filters: Tensor

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale
        positions = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        distance = (torch.arange(-self.HALO, self.HALO + 1) - positions[:, None]).abs()
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        taps = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
        filters = taps[:, None, :, None] * taps[None, :, None, :]
        self.register_buffer("filters", rearrange(filters, "sh sw kh kw -> (sh sw) 1 kh kw").float(), persistent=False)

    def forward(self, image: Tensor, start: int, stop: int) -> Tensor:
        """Upscale rows `start` to `stop` of `(b, c, h, w)`, with the result for the whole image. Pixels beyond the edge repeat the edge."""
        above, below = min(self.HALO, start), min(self.HALO, image.shape[2] - stop)
        rows = image[:, :, start - above : stop + below]
        rows = F.pad(rows, (self.HALO, self.HALO, self.HALO - above, self.HALO - below), mode="replicate")
        with without_autocast(rows):
            rows = F.conv2d(rearrange(rows, "b c h w -> (b c) 1 h w"), self.filters.to(rows.dtype))
        return rearrange(rows, "(b c) (sh sw) h w -> b c (h sh) (w sw)", c=image.shape[1], sh=self.scale, sw=self.scale)


def _make_blocks(config: TransformerSRConfig) -> Iterator[nn.Module]:
    v2, dim, heads = config.design == "v2", config.embed_dim, config.num_heads
    head_dim = dim // heads
    scale = head_dim**-0.5 if v2 else head_dim**-2.0
    windows = 0
    for letter in config.blocks:
        if letter == "R":
            yield ResidualBlock(dim)
        elif letter == "W":
            offset = config.window_size // 2 if v2 and windows % 2 else 0
            yield WindowBlock(dim, WindowAttention(dim, heads, config.window_size, offset, scale, position_bias=v2), config.mlp_ratio)
            windows += 1
        else:
            yield ChannelBlock(dim, ChannelAttention(dim, heads, correlation=v2), config.mlp_ratio)
