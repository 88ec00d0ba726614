"""How much memory a network takes for an image, and how large its bands may be. Integer arithmetic only, without PyTorch.

The network streams the image through its layers in bands of rows (`arch/streaming.py`), so the height of a band changes memory and
speed and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..arch.model import TransformerSRConfig

PASS_PIXELS = 2**20
"""Pixels that frames run together have at most; a larger image alone keeps any device busy."""

CPU_PASS_PIXELS = 2**13
"""The same on a CPU, where batching frames of 24x24 is a quarter faster, of 64x64 hardly, and larger ones are slower."""

CPU_BAND_BYTES = 24 * 2**20
"""`Workload.row_bytes` of a band on a CPU where memory allows more. Larger ones gain little or nothing (benchmarks/bench_bands.py
measures it), and tensors of 32 MiB are not kept for the next layer (`memory.keep_freed_memory`)."""


class MemoryBudgetError(ValueError):
    """An image does not fit the given memory even in the smallest bands; the message says what to change."""


@dataclass(frozen=True)
class Workload:
    """A network and the size of an image for it."""

    config: TransformerSRConfig
    height: int
    width: int
    """Of all frames together where several run at once: they cost what one as wide as all of them does."""
    element_size: int
    """Bytes of a number in the network's precision."""
    offloaded: bool = False
    """The features that wait and the result are kept on another device, which does not count."""

    @property
    def step(self) -> int:
        """Rows of the body that bands are a multiple of."""
        return self.config.multiple // self.config.unshuffle

    @property
    def rows(self) -> int:
        """Rows of the body, those of the padding included."""
        return -(-self.height // self.config.multiple) * self.step

    @property
    def held_rows(self) -> int:
        """Rows that the layers between two channel blocks hold back together, at most; the last band is larger by them.

        A residual block holds back two, and keeps its input until they are added, which costs about as much as one more.
        """
        held = 1  # of the first convolution
        most = 0
        for letter in self.config.blocks:
            held += {"R": 3, "W": self.config.window_size, "C": 0}[letter]
            most = max(most, held)
            held = 0 if letter == "C" else held
        return max(most, held + 2)  # the last two convolutions

    @property
    def image_bytes(self) -> int:
        """The cost of the image whatever the band: the features of all pixels twice, the image twice, and its result in float32."""
        config, pixels = self.config, self.height * self.width
        if self.offloaded:
            return 2 * config.channels * pixels * self.element_size
        features = config.embed_dim * pixels // config.unshuffle**2
        return 2 * features * self.element_size + config.channels * pixels * (2 * self.element_size + 4 * config.scale**2)

    @property
    def row_bytes(self) -> int:
        """Cost of each row in work: queries, keys and values, or the hidden layer, or the tail."""
        config = self.config
        body = (8 + 2 * config.mlp_ratio) * config.embed_dim
        tail = 4 * config.channels * (config.scale * config.unshuffle) ** 2
        return max(body, tail) * self.width // config.unshuffle * self.element_size

    def bytes_for(self, band_rows: int) -> int:
        """Memory of a run with bands of this height."""
        return self.image_bytes + (min(band_rows, self.rows) + self.held_rows) * self.row_bytes

    def band_rows(self, budget: int | None, most: int | None = None) -> int:
        """Rows of a band: as many as `budget` bytes and `most` rows allow. A budget of None does not limit.

        Raises MemoryBudgetError where not even the smallest band fits.
        """
        rows = self.rows if most is None else max(self.step, min(most, self.rows) // self.step * self.step)
        if budget is None:
            return rows
        if budget < (least := self.bytes_for(self.step)):
            raise MemoryBudgetError(
                f"an image of {self.width}x{self.height} needs at least {readable(least)} with this model and precision, "
                f"and the budget is {readable(budget)}; raise the budget, use half precision or a smaller model, or split the image"
            )
        affordable = (budget - self.image_bytes) // self.row_bytes - self.held_rows
        return min(rows, max(self.step, affordable // self.step * self.step))


@dataclass(frozen=True)
class Plan:
    """How to run: the height of a band, and whether the features that wait are kept on the host."""

    band_rows: int
    offload: bool

    def smaller(self, step: int, can_offload: bool) -> Plan | None:
        """The next plan to try when the device is full: half the band, finally offloading; None if nothing is left to try."""
        if self.band_rows > step:
            return replace(self, band_rows=max(step, self.band_rows // 2 // step * step))
        return Plan(step, True) if can_offload and not self.offload else None


def make_plan(work: Workload, budget: int | None, most: int | None, can_offload: bool, estimated: bool) -> Plan:
    """The fastest plan within a budget.

    Args:
        most: rows of a band at most.
        can_offload: the network runs on a device other than the host.
        estimated: the budget is only what seems to be free; where nothing fits it, the least is tried.

    Raises:
        MemoryBudgetError: where nothing fits a budget that was given.
    """
    for offload in (False, True) if can_offload else (False,):
        try:
            return Plan(replace(work, offloaded=offload).band_rows(budget, most), offload)
        except MemoryBudgetError as error:
            reason = error
    if not estimated:
        raise reason
    return Plan(work.step, can_offload)


def frames_together(work: Workload, count: int, budget: int | None, most_pixels: int) -> int:
    """Frames of a batch to run at once: as many whole ones as `budget` bytes (None: any) and `most_pixels` allow, at least one."""
    frames = max(1, min(count, most_pixels // (work.height * work.width)))
    return frames if budget is None else max(1, min(frames, budget // memory_required(work, 1)))


def memory_required(work: Workload, count: int) -> int:
    """Memory for a batch without a limit, in bands and frames of `PASS_PIXELS`; more would not make it faster."""
    work = replace(work, width=work.width * max(1, min(count, PASS_PIXELS // (work.height * work.width))))
    return work.bytes_for(max(work.step, PASS_PIXELS // work.width))


def readable(count: int) -> str:
    """Bytes, for a message."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


# --- sizes ---------------------------------------------------------------------------------------


def target_size(height: int, width: int, scale: int, factor: float | None = None, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width asked for: `size` as given, else each side times `factor` rounded, else times the network's scale.

    Raises ValueError for both at once, or a side below 1.
    """
    if min(height, width) < 1:
        raise ValueError(f"image of {width}x{height}; expected at least 1x1")
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
    """Height and width to make of an image, where one of 0 follows from the other so that the proportions stay."""
    return (
        to_height or max(1, round(height * to_width / width)),
        to_width or max(1, round(width * to_height / height)),
    )


def count_passes(height: int, width: int, scale: int, target_height: int, target_width: int) -> int:
    """Number of network passes until both sides are long enough, at least 1."""
    passes = 1
    while scale > 1 and (height * scale**passes < target_height or width * scale**passes < target_width):
        passes += 1
    return passes


def sizes_of_passes(height: int, width: int, scale: int, target_height: int, target_width: int) -> Iterator[tuple[int, int]]:
    """Height and width of the input of each pass; later ones are no longer than one more pass needs."""
    for index in range(count_passes(height, width, scale, target_height, target_width)):
        if index:
            height, width = min(height * scale, -(-target_height // scale)), min(width * scale, -(-target_width // scale))
        yield height, width
