"""TransformerSR: window attention and channel attention in turn, ending in a pixel shuffle.

Two designs share this module. `v1` is the original network exactly as defined: no position information, no skip over the body,
logits scaled by `1 / d**2` and `1 / L**2`. `v2` keeps the idea and mends what held it back: depthwise convolutions and shifted
windows let neighbours exchange, windows know positions, channel logits do not depend on the picture's size, and the network adds
to a bicubic enlargement. docs/architecture.md says what each change is based on.

Shapes: images are `(b, c, h, w)`, RGB in [0, 1]; inside, rows are `(b, h, w, c)` (see `bands`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import ChannelAttention, WindowAttention, without_autocast
from .bands import Band, Bands, map_slabs, split, with_halo
from .blocks import ChannelBlock, Conv3x3, ResidualGroup, WindowBlock

# --- configuration -------------------------------------------------------------------------------

DESIGNS = ("v1", "v2")
LAYOUT = 1  # of the integers in `as_integers`; a file with a higher number needs a newer version of this package


@dataclass(frozen=True)
class TransformerSRConfig:
    """Everything that decides the network's shape."""

    design: str = "v2"
    """`v1` (the original) or `v2`."""
    scale: int = 4
    """Output pixels per input pixel along a side."""
    channels: int = 3
    """Channels of the image."""
    embed_dim: int = 64
    """Channels inside the network; a multiple of `num_heads`."""
    num_heads: int = 4
    """Heads of both attentions."""
    depths: tuple[int, ...] = (4, 4, 4, 4)
    """Pairs of window and channel block in each residual group."""
    window_size: int = 8
    """Side of an attention window in pixels."""
    mlp_ratio: int = 2
    """Width of the feed-forward layer over `embed_dim`."""

    def __post_init__(self) -> None:
        if not isinstance(self.depths, (list, tuple)):
            raise ValueError(f"depths is {self.depths!r}; expected whole numbers, one a group")
        object.__setattr__(self, "depths", tuple(self.depths))
        if self.design not in DESIGNS:
            raise ValueError(f"design is {self.design!r}; expected one of {', '.join(DESIGNS)}")
        limits = {"scale": 16, "channels": 64, "embed_dim": 4096, "num_heads": 1024, "window_size": 128, "mlp_ratio": 16}
        for name, most in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; expected a whole number from 1 to {most}")
        if not all(type(depth) is int and depth >= 1 for depth in self.depths) or not 1 <= sum(self.depths) <= 256:
            raise ValueError(f"depths is {self.depths!r}; expected whole numbers of at least 1, at most 256 together")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.design == "v2" and self.window_size % 2:
            raise ValueError(f"window_size is {self.window_size}; v2 shifts its windows by half and needs an even number")

    @property
    def unshuffle(self) -> int:
        """Side of the square of image pixels that the body sees as one: 2 where nothing is enlarged, to save three quarters of the work."""
        return 2 if self.design == "v2" and self.scale == 1 else 1

    @property
    def multiple(self) -> int:
        """Images are padded to a multiple of this many pixels."""
        return self.window_size * self.unshuffle

    def to_json(self) -> str:
        """The configuration as a JSON object, for `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TransformerSRConfig:
        """Read what `to_json` wrote. Raises ValueError for anything else."""
        values = json.loads(text)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not set(values) <= names:
            raise ValueError(f"not a TransformerSR configuration: {text[:200]}")
        return cls(**values)

    def as_integers(self) -> list[int]:
        """The configuration as the numbers kept in the state dict, for loaders that see no metadata."""
        numbers = [self.scale, self.channels, self.embed_dim, self.num_heads, self.window_size, self.mlp_ratio]
        return [LAYOUT, DESIGNS.index(self.design) + 1, *numbers, *self.depths]

    @classmethod
    def from_integers(cls, numbers: list[int]) -> TransformerSRConfig:
        """Read what `as_integers` wrote. Raises ValueError for anything else."""
        if len(numbers) < 9 or numbers[0] != LAYOUT or not 1 <= numbers[1] <= len(DESIGNS):
            raise ValueError(
                f"architecture numbers {numbers[:12]} are not of layout {LAYOUT}; a newer version of transformersr may read them"
            )
        scale, channels, embed_dim, num_heads, window_size, mlp_ratio = numbers[2:8]
        design = DESIGNS[numbers[1] - 1]
        return cls(design, scale, channels, embed_dim, num_heads, tuple(numbers[8:]), window_size, mlp_ratio)


VARIANTS = {
    "tiny": TransformerSRConfig(embed_dim=48, num_heads=3, depths=(4, 4)),
    "base": TransformerSRConfig(embed_dim=64, num_heads=4, depths=(4, 4, 4, 4)),
    "large": TransformerSRConfig(embed_dim=160, num_heads=10, depths=(4, 4, 4, 4, 4)),
    "original": TransformerSRConfig("v1", embed_dim=256, num_heads=16, depths=(8,), window_size=4, mlp_ratio=4),
}
"""Named configurations at x4; `dataclasses.replace(VARIANTS["tiny"], scale=2)` gives another scale."""

# --- network -------------------------------------------------------------------------------------


class TransformerSR(nn.Module):
    """The super-resolution network of a configuration."""

    def __init__(self, config: TransformerSRConfig):
        super().__init__()
        self.config = config
        dim, out_channels = config.embed_dim, config.channels * (config.scale * config.unshuffle) ** 2
        self.register_buffer("architecture", torch.tensor(config.as_integers(), dtype=torch.int32))
        self.conv_first = Conv3x3(config.channels * config.unshuffle**2, dim)
        self.body = nn.ModuleList(_group(config, depth) for depth in config.depths)
        self.upsample = Conv3x3(dim, out_channels)
        self.residual = BicubicEnlargement(config.scale) if config.design == "v2" else None
        if self.residual is not None:
            with torch.no_grad():  # start close to the bicubic enlargement
                for parameter in self.upsample.parameters():
                    parameter.mul_(0.1)

    def forward(
        self,
        image: Tensor,
        band_rows: int | None = None,
        on_rows: Callable[[int], None] | None = None,
        out: Tensor | None = None,
        store: torch.device | None = None,
    ) -> Tensor:
        """Enlarge `(b, c, h, w)` in [0, 1] to `(b, c, h * scale, w * scale)`, not clamped.

        Args:
            band_rows: rows of the body that are worked on at a time; the result is the same for all up to rounding. None: all rows.
            on_rows: called with a number of rows as they pass each channel block and the end; the numbers add up to `total_rows(h)`.
                It may raise to stop the run.
            out: where to write the result, on any device; the returned tensor is then `out`.
            store: device that keeps the rows that wait for others, where the network's own has no room for them; None keeps them there.
        """
        height, width = image.shape[-2:]
        image = self._pad(image)
        whole = image.shape[-2] // self.config.unshuffle
        band_rows = band_rows or whole
        on_rows = on_rows or (lambda count: None)

        pixels = rearrange(image, "b c (h uh) (w uw) -> b h w (c uh uw)", uh=self.config.unshuffle, uw=self.config.unshuffle)
        x = map_slabs(self._embed, split(pixels - 0.5, band_rows))
        for group in self.body:
            x = group(x, band_rows, on_rows, store)
        bands = self._enlarge(x, image, on_rows)

        scale = self.config.scale
        if out is None and band_rows >= whole:
            return next(bands)[..., : height * scale, : width * scale]
        if out is None:
            out = image.new_empty(*image.shape[:2], height * scale, width * scale)
        start = 0
        for rows in bands:
            stop = min(start + rows.shape[2], height * scale)
            out[:, :, start:stop] = rows[:, :, : stop - start, : width * scale]
            start = stop
        return out

    def total_rows(self, height: int) -> int:
        """What the calls of `on_rows` add up to for an image of this height."""
        rows = -(-height // self.config.multiple) * self.config.window_size
        return rows * (sum(self.config.depths) + 1)

    def _pad(self, image: Tensor) -> Tensor:
        """Repeat the last row and column until both sides are a multiple of what the windows need."""
        bottom, right = (-size % self.config.multiple for size in image.shape[-2:])
        return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image

    def _embed(self, slab: Band) -> Tensor:
        """The first convolution, never autocast: everything is added to its result, which so stays in float32 in mixed precision."""
        with without_autocast(slab.rows):
            return self.conv_first(slab)

    def _enlarge(self, bands: Bands, image: Tensor, on_rows: Callable[[int], None]) -> Iterator[Tensor]:
        """From the body's last rows to rows of the enlarged image `(b, c, h * scale, w * scale)`."""
        step, start = self.config.scale * self.config.unshuffle, 0
        for slab in with_halo(bands):
            rows = rearrange(self.upsample(slab), "b h w (c sh sw) -> b c (h sh) (w sw)", sh=step, sw=step)
            stop = start + rows.shape[2] // self.config.scale
            rows = rows + (0.5 if self.residual is None else self.residual(image, start, stop))
            on_rows(rows.shape[2] // step)
            start = stop
            yield rows


class BicubicEnlargement(nn.Module):
    """Cubic convolution (Keys 1981, a = -1/2, exact on ramps) by a whole factor, as one filter per position inside an enlarged pixel.

    Written as a convolution because that exists on every device, in every precision and in ONNX, with the same coefficients everywhere.
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
        """Rows `start` to `stop` of `(b, c, h, w)`, enlarged as if the whole image had been; its edge continues beyond."""
        above, below = min(self.HALO, start), min(self.HALO, image.shape[2] - stop)
        rows = image[:, :, start - above : stop + below]
        rows = F.pad(rows, (self.HALO, self.HALO, self.HALO - above, self.HALO - below), mode="replicate")
        with without_autocast(rows):
            rows = F.conv2d(rearrange(rows, "b c h w -> (b c) 1 h w"), self.filters.to(rows.dtype))
        return rearrange(rows, "(b c) (sh sw) h w -> b c (h sh) (w sw)", c=image.shape[1], sh=self.scale, sw=self.scale)


def _group(config: TransformerSRConfig, depth: int) -> ResidualGroup:
    v2 = config.design == "v2"
    dim, heads, window = config.embed_dim, config.num_heads, config.window_size
    head_dim = dim // heads
    scale = head_dim**-0.5 if v2 else head_dim**-2.0
    blocks: list[nn.Module] = []
    for pair in range(depth):
        offset = window // 2 if v2 and pair % 2 else 0
        window_attention = WindowAttention(dim, heads, window, offset, scale, position_bias=v2)
        blocks.append(WindowBlock(window_attention, dim, config.mlp_ratio, local=v2))
        blocks.append(ChannelBlock(ChannelAttention(dim, heads, correlation=v2), dim, config.mlp_ratio, local=v2))
    return ResidualGroup(blocks, dim, residual=v2)
