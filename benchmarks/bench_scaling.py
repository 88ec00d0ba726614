"""Measure time and peak memory of an image for several sizes and memory budgets.

    python benchmarks/bench_scaling.py --plot docs/images/scaling.svg

Each line is measured in its own process, because the peak memory of a process never falls. Times are CPU seconds per input pixel relative
to the first line. Memory is the growth of the process during the work, including its result. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from transformersr.training.results.charts import Chart, as_svg
from transformersr.training.results.evaluate import markdown_table
from transformersr.upscale.atomic import write_aside

from machine import command_line, describe_machine, read_status, write_report


def measure(model: str, side: int, memory: str | None) -> tuple[float, int]:
    """Return seconds and peak bytes of a side x side image, in this process."""
    import torch

    from transformersr import Upscaler

    upscaler = Upscaler.from_pretrained(model, "cpu", memory=memory)
    upscaler(torch.rand(1, 3, 64, 64))
    image = torch.rand(1, 3, side, side)
    before = read_status("VmRSS")
    repeats = max(1, min(8, 512 // side))
    start = time.process_time()
    for _ in range(repeats):
        upscaler(image)
    return (time.process_time() - start) / repeats, read_status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="x4-tiny")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument(
        "--budgets", nargs="+", default=["700M", "1G", "2G", "4G"], help="memory budgets to try on an image of --budget-side"
    )
    parser.add_argument("--budget-side", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "BUDGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(*measure(options.model, int(options.child[0]), None if options.child[1] == "-" else options.child[1]))
        return
    sizes = [(side, None, *measure_in_process(options.model, side, None)) for side in options.sides]
    budgets = [(options.budget_side, budget, *measure_in_process(options.model, options.budget_side, budget)) for budget in options.budgets]
    head = f"# Scaling, {time.strftime('%Y-%m-%d')}\n\n    {command_line(sys.argv[1:])}\n\n{describe_machine()}."
    explained = (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip()
    write_report("\n\n".join([head, explained, table(sizes), table(budgets)]) + "\n", "scaling", options.out)
    if options.plot:
        with write_aside(options.plot) as aside:
            Path(aside).write_text(plot(sizes), encoding="utf-8")


Line = tuple[int, "str | None", float, int]
"""Side, budget, seconds and peak bytes."""


def measure_in_process(model: str, side: int, budget: str | None) -> tuple[float, int]:
    command = [sys.executable, __file__, "--model", model, "--child", str(side), budget or "-"]
    seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(peak)


def table(lines: list[Line]) -> str:
    first = lines[0][2] / lines[0][0] ** 2
    rows = [
        [f"{side}x{side}", budget or "none", f"{seconds / side**2 / first:.2f}", f"{peak / 2**20:.0f}", f"{peak / side**2:.0f}"]
        for side, budget, seconds, peak in lines
    ]
    return markdown_table(["image", "budget", "time per pixel", "peak MiB", "bytes per pixel"], rows)


def plot(lines: list[Line]) -> str:
    """Plot time and memory over input megapixels as SVG."""
    megapixels = [side**2 / 1e6 for side, *_ in lines]
    longest = max(seconds for _, _, seconds, _ in lines)
    times = [(count, seconds / longest) for count, (_, _, seconds, _) in zip(megapixels, lines, strict=True)]
    peaks = [(count, peak / 2**30) for count, (*_, peak) in zip(megapixels, lines, strict=True)]
    return as_svg(
        [
            Chart("Time relative to the largest image, over input megapixels", {"time": times}),
            Chart("Peak memory in GiB over input megapixels", {"memory": peaks}),
        ]
    )


if __name__ == "__main__":
    main()
