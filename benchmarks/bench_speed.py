"""How close the networks come to what the machine can do: time beside the time of their multiply-adds alone.

    python benchmarks/bench_speed.py
    python benchmarks/bench_speed.py --device cuda --dtypes fp32 fp16 bf16 --sides 512 1024

The floor of a network is its multiply-adds (PyTorch's own count of the forward pass) over the rate that matrix products of the
shapes of its linear layers reach in the same run and number format; a share of 1 is a network without any other cost. `plain` is the first
author's network written down as it is defined (tests/plain_v1.py), on the same weights. Everybody takes turns, after a warm-up; medians.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformersr.arch import VARIANTS, TransformerSR
from transformersr.arch.checkpoint import recognise
from transformersr.upscale.engine import enlarge
from transformersr.upscale.upscaler import DTYPES

from machine import command_line, describe_machine, write_report

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from plain_v1 import plain_v1, random_state

AUTHORS = {"pairs": 8, "dim": 256, "scale": 4}
HEADS, WINDOW = 16, 4


@dataclass
class Subject:
    """Something to time: `run()` is a forward pass."""

    name: str
    run: Callable[[], Tensor]
    net: TransformerSR | None = None
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[128], help="sides of the small picture")
    parser.add_argument("--sizes", nargs="+", default=["original", "tiny", "base"], choices=list(VARIANTS))
    parser.add_argument("--dtypes", nargs="+", default=["fp32"], choices=list(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        "| side | dtype | network | Mpx/s | time / floor's | share of the floor | GFLOP/s of its matrices | beside plain |",
        "| --- " * 8 + "|",
    ]
    with torch.inference_mode():
        for side in options.sides:
            for dtype in options.dtypes:
                lines += [line for size in options.sizes for line in measure(size, side, dtype, options)]
    head = f"# Speed, {time.strftime('%Y-%m-%d')}\n\n    {command_line(sys.argv[1:])}\n\n{describe_machine()}."
    device = f" On {torch.cuda.get_device_name()}." if options.device.startswith("cuda") else ""
    explained = (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip()
    write_report(
        "\n\n".join([head + device, explained, "\n".join(lines)]) + "\n", f"speed-{torch.device(options.device).type}", options.out
    )


def measure(size: str, side: int, dtype: str, options: argparse.Namespace) -> list[str]:
    """Table rows of one network at one size and number format."""
    device = torch.device(options.device)
    image = torch.rand(1, 3, side, side, device=device, dtype=DTYPES[dtype])
    subjects = make_subjects(size, image)
    net = subjects[0].net
    assert net is not None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # of the other kernels it does not count all
        net(image)
    flops = counter.get_total_flops()
    matrices = Subject("matrices", lambda: None)  # type: ignore[arg-type, return-value]
    products = matrix_products(net, side * side, image)
    work = sum(2 * len(x) * weight.numel() for x, weight in products)
    matrices.run = lambda: [F.linear(x, weight) for x, weight in products][-1]
    take_turns([*subjects, matrices], options.repeats, device)
    rate = work / matrices.seconds
    floor = flops / rate
    plain = next((subject.seconds for subject in subjects if subject.name == "plain"), None)
    rows = []
    for subject in subjects:
        beside = f"x{plain / subject.seconds:.2f}" if plain else ""
        cells = [
            f"{side**2 / subject.seconds / 1e6:.3f}",
            f"{subject.seconds / floor:.2f}",
            f"{floor / subject.seconds:.2f}",
            f"{rate / 1e9:.0f}",
        ]
        rows.append(f"| {' | '.join([str(side), dtype, subject.name, *cells, beside])} |")
    return rows


def make_subjects(size: str, image: Tensor) -> list[Subject]:
    """The network as the engine runs it, and for the first author's size the plain definition."""
    state = random_state(**AUTHORS) if size == "original" else None

    net = TransformerSR(VARIANTS[size])
    if state is not None:
        net.load_state_dict(recognise(state, {}, window_size=WINDOW, num_heads=HEADS).weights)
    net = net.to(image.device, image.dtype).eval()
    subjects = [Subject(size, lambda: enlarge(net, image), net)]
    if state is not None:
        state = {name: value.to(image.device, image.dtype) for name, value in state.items()}
        subjects.append(Subject("plain", lambda: plain_v1(state, image, HEADS, WINDOW)))
    return subjects


def matrix_products(net: TransformerSR, pixels: int, image: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Inputs and weights of the linear layers of one pair of blocks, over all pixels."""
    layers = {tuple(module.weight.shape): module for module in net.modules() if isinstance(module, nn.Linear)}
    return [(torch.randn(pixels, module.in_features).to(image), module.weight) for module in layers.values()]


def take_turns(subjects: list[Subject], repeats: int, device: torch.device) -> None:
    """Time everybody in turn and keep the medians."""
    seconds: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for turn in range(repeats + 1):
        for subject in subjects:
            start = time.perf_counter()
            subject.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first turn warms up
                seconds[subject.name].append(time.perf_counter() - start)
    for subject in subjects:
        subject.seconds = median(seconds[subject.name])


if __name__ == "__main__":
    main()
