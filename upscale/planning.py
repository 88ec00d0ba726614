"""Compute how much memory a network needs for an image, and the height of its bands. Integer arithmetic, without PyTorch.

The network processes the image in bands of rows (`arch/streaming.py`). Their height affects only memory and speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..arch.model import TransformerSRConfig

PASS_PIXELS = 2**20
"""Maximum number of pixels of frames that run together. A larger image keeps any device busy on its own."""

CPU_PASS_PIXELS = 2**13
"""The same on a CPU, where batching makes frames of 24x24 25 % faster, frames of 64x64 hardly faster, and larger ones slower."""

CPU_BAND_BYTES = 24 * 2**20
"""Maximum size of a band on a CPU, in terms of `Workload.row_bytes`. Larger bands are hardly faster (see benchmarks/bench_bands.py), and
memory of 32 MiB and more is not reused for the next layer (`memory.keep_freed_memory`)."""


class MemoryBudgetError(ValueError):
    """An image does not fit into memory even with the smallest bands. The message says what to change."""


@dataclass(frozen=True)
class Workload:
    """A network and the size of its input."""

    config: TransformerSRConfig
    height: int
    width: int
    """If several frames run at once, their total width; they cost as much as one image of that width."""
    element_size: int
    """Bytes of a number in the network's precision."""
    offloaded: bool = False
    """Whether waiting features and the result are kept on another device, whose memory is not counted."""

    @property
    def step(self) -> int:
        """Band heights are a multiple of this number of rows of the body."""
        return self.config.multiple // self.config.unshuffle

    @property
    def rows(self) -> int:
        """Rows of the body, including padding."""
        return -(-self.height // self.config.multiple) * self.step

    @property
    def held_rows(self) -> int:
        """Maximum number of rows that the layers between two channel blocks hold back together; the last band is larger by this number.

        A residual block holds back two rows and keeps its input for the addition, which costs about as much as a third row.
        """
        held = 1  # the first convolution
        most = 0
        for letter in self.config.blocks:
            held += {"R": 3, "W": self.config.window_size, "C": 0}[letter]
            most = max(most, held)
            held = 0 if letter == "C" else held
        return max(most, held + 2)  # the last two convolutions

    @property
    def image_bytes(self) -> int:
        """Memory that does not depend on the band: the features of all pixels twice, the image twice, and the result in float32."""
        config, pixels = self.config, self.height * self.width
        if self.offloaded:
            return 2 * config.channels * pixels * self.element_size
        features = config.embed_dim * pixels // config.unshuffle**2
        return 2 * features * self.element_size + config.channels * pixels * (2 * self.element_size + 4 * config.scale**2)

    @property
    def row_bytes(self) -> int:
        """Memory of each row of a band: for queries, keys and values, for the hidden layer, or for the last layer."""
        config = self.config
        body = (8 + 2 * config.mlp_ratio) * config.embed_dim
        tail = 4 * config.channels * (config.scale * config.unshuffle) ** 2
        return max(body, tail) * self.width // config.unshuffle * self.element_size

    def bytes_for(self, band_rows: int) -> int:
        """Memory needed with bands of this height."""
        return self.image_bytes + (min(band_rows, self.rows) + self.held_rows) * self.row_bytes

    def band_rows(self, budget: int | None, max_rows: int | None = None) -> int:
        """Return the height of a band within `budget` bytes (None: unlimited) and `max_rows` rows.

        Raises MemoryBudgetError if even the smallest band does not fit.
        """
        rows = self.rows if max_rows is None else max(self.step, min(max_rows, self.rows) // self.step * self.step)
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
    """The height of a band, and whether waiting features are kept on the host."""

    band_rows: int
    offload: bool

    def smaller(self, step: int, can_offload: bool) -> Plan | None:
        """Return the next plan to try when the device is out of memory: half the band, then offloading, then None."""
        if self.band_rows > step:
            return replace(self, band_rows=max(step, self.band_rows // 2 // step * step))
        return Plan(step, True) if can_offload and not self.offload else None


def make_plan(work: Workload, budget: int | None, max_rows: int | None, can_offload: bool, estimated: bool) -> Plan:
    """Return the fastest plan within a budget.

    Args:
        max_rows: maximum height of a band.
        can_offload: whether the network runs on a device other than the host.
        estimated: whether the budget is an estimate of free memory. If nothing fits an estimate, the smallest plan is returned.

    Raises:
        MemoryBudgetError: if nothing fits a budget that is not an estimate.
    """
    for offload in (False, True) if can_offload else (False,):
        try:
            return Plan(replace(work, offloaded=offload).band_rows(budget, max_rows), offload)
        except MemoryBudgetError as error:
            reason = error
    if not estimated:
        raise reason
    return Plan(work.step, can_offload)


def pass_pixels(on_cpu: bool) -> int:
    """Return the maximum number of pixels of frames that run together."""
    return CPU_PASS_PIXELS if on_cpu else PASS_PIXELS


def frames_within(work: Workload, count: int, budget: int | None, max_pixels: int) -> int:
    """Return how many frames of a batch to run at once within `budget` bytes (None: unlimited) and `max_pixels`, at least one."""
    frames = max(1, min(count, max_pixels // (work.height * work.width)))
    return frames if budget is None else max(1, min(frames, budget // memory_required(work, 1)))


def memory_required(work: Workload, count: int) -> int:
    """Return the memory needed to run a batch at full speed, with bands and frames of `PASS_PIXELS`."""
    work = replace(work, width=work.width * max(1, min(count, PASS_PIXELS // (work.height * work.width))))
    return work.bytes_for(max(work.step, PASS_PIXELS // work.width))


def readable(count: int) -> str:
    """Format a number of bytes for a message."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.{2 if unit == 'GiB' else 0}f} {unit}"
    return f"{count / 2**10:.0f} KiB"


# --- sizes ---------------------------------------------------------------------------------------


def target_size(height: int, width: int, scale: int, factor: float | None = None, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the target height and width: `size`, or each side times `factor` (rounded), or times the network's scale.

    Raises ValueError if both are given or a side is below 1.
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
    """Return the target height and width. If one is 0, it follows from the other and the image's proportions."""
    return (
        to_height or max(1, round(height * to_width / width)),
        to_width or max(1, round(width * to_height / height)),
    )


def count_passes(height: int, width: int, scale: int, target_height: int, target_width: int) -> int:
    """Return how many network passes make both sides long enough, at least 1."""
    passes = 1
    while scale > 1 and (height * scale**passes < target_height or width * scale**passes < target_width):
        passes += 1
    return passes


def sizes_of_passes(height: int, width: int, scale: int, target_height: int, target_width: int) -> Iterator[tuple[int, int]]:
    """Yield the height and width of each pass's input. Later inputs are no larger than the next pass needs."""
    for index in range(count_passes(height, width, scale, target_height, target_width)):
        if index:
            height, width = min(height * scale, -(-target_height // scale)), min(width * scale, -(-target_width // scale))
        yield height, width
