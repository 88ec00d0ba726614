"""Time and peak memory of a picture over its size and over the memory budget.

    python benchmarks/bench_scaling.py --plot docs/images/scaling.svg

Each line is a process of its own, because a process's peak memory never falls. Times are for each pixel of the small picture, as multiples
of the first line's; memory is what the process grew by while it worked, its result included. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from transformersr.arch.atomic import write_aside

from machine import command_line, describe_machine, read_status, write_report


def measure(model: str, side: int, memory: str | None) -> tuple[float, int]:
    """Seconds and peak bytes of a picture of side x side, in this process."""
    import torch

    from transformersr import Upscaler

    upscaler = Upscaler.from_pretrained(model, "cpu", memory=memory)
    upscaler(torch.rand(1, 3, 64, 64))
    image = torch.rand(1, 3, side, side)
    before = read_status("VmRSS")
    repeats = max(1, min(8, 512 // side))
    start = time.perf_counter()
    for _ in range(repeats):
        upscaler(image)
    return (time.perf_counter() - start) / repeats, read_status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="x4-tiny")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--budgets", nargs="+", default=["700M", "1G", "2G", "4G"], help="for a picture of --budget-side")
    parser.add_argument("--budget-side", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "BUDGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(*measure(options.model, int(options.child[0]), None if options.child[1] == "-" else options.child[1]))
        return
    sizes = [(side, None, *in_a_process(options.model, side, None)) for side in options.sides]
    budgets = [(options.budget_side, budget, *in_a_process(options.model, options.budget_side, budget)) for budget in options.budgets]
    head = f"# Scaling, {time.strftime('%Y-%m-%d')}\n\n    {command_line(sys.argv[1:])}\n\n{describe_machine()}."
    explained = (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip()
    write_report("\n\n".join([head, explained, table(sizes), table(budgets)]) + "\n", "scaling", options.out)
    if options.plot:
        with write_aside(options.plot) as aside:
            Path(aside).write_text(plot(sizes), encoding="utf-8")


Line = tuple[int, "str | None", float, int]
"""Side, budget, seconds and peak bytes."""


def in_a_process(model: str, side: int, budget: str | None) -> tuple[float, int]:
    command = [sys.executable, __file__, "--model", model, "--child", str(side), budget or "-"]
    seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(peak)


def table(lines: list[Line]) -> str:
    first = lines[0][2] / lines[0][0] ** 2
    rows = ["| picture | budget | time a pixel | peak MiB | bytes a pixel |", "| --- " * 5 + "|"]
    for side, budget, seconds, peak in lines:
        rows.append(f"| {side}x{side} | {budget or 'none'} | {seconds / side**2 / first:.2f} | {peak / 2**20:.0f} | {peak / side**2:.0f} |")
    return "\n".join(rows)


def plot(lines: list[Line]) -> str:
    """Time and memory over pixels, both axes logarithmic, as SVG."""
    import math

    pixels = [side**2 for side, *_ in lines]
    width, height, margin = 640, 300, 48
    left, right = math.log(pixels[0]), math.log(pixels[-1])
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{width}" height="{height}" fill="#fff"/>')
    for index, side in enumerate(side for side, *_ in lines):
        x = margin + (width - 2 * margin) * (math.log(pixels[index]) - left) / (right - left)
        parts.append(f'<text x="{x:.0f}" y="{height - 12}" text-anchor="middle" fill="#444">{side}²</text>')
    for values, colour, name, place in (
        ([seconds for _, _, seconds, _ in lines], "#2a6fdb", "time", 0),
        ([float(peak) for *_, peak in lines], "#d9480f", "peak memory", 1),
    ):
        top, bottom = math.log(max(values)), math.log(min(values))
        points = [
            (
                margin + (width - 2 * margin) * (math.log(count) - left) / (right - left),
                height - margin - (height - 2 * margin) * (math.log(value) - bottom) / (top - bottom),
            )
            for count, value in zip(pixels, values, strict=True)
        ]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{margin}" y="{24 + 18 * place}" fill="{colour}">{name} (logarithmic)</text>')
    return "".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main()
