"""Measure time and peak memory of one image for several band heights, and compare with the engine's estimate.

    python benchmarks/bench_bands.py --model x4-tiny --size 1024x1024 --bands 8 32 128 0

Each line is measured in its own process, because the peak memory of a process never falls. 0 band rows mean the whole image at once.
Times are relative to the first line. Linux only (peak memory is read from the kernel).
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time

from machine import read_status


def measure(model: str, width: int, height: int, band_rows: int, repeats: int) -> tuple[float, int]:
    """Return seconds (best of `repeats`) and peak bytes on top of the loaded network and the image, in this process."""
    import torch

    from transformersr import Upscaler
    from transformersr.arch import stream

    upscaler = Upscaler.from_pretrained(model, "cpu")
    image = torch.rand(1, 3, height, width)
    out = image.new_zeros(1, 3, height * upscaler.scale, width * upscaler.scale)
    with torch.inference_mode():
        upscaler.model(image[..., :64, :64])
        before = read_status("VmRSS")
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            stream(upscaler.model, image, band_rows or height, out=out)
            seconds.append(time.perf_counter() - start)
    return min(seconds), read_status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="x4-tiny")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--bands", type=int, nargs="+", default=[8, 32, 128, 0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    if options.child is not None:
        print(*measure(options.model, width, height, options.child, options.repeats))
        return

    import torch

    from transformersr import Upscaler
    from transformersr.upscale.planning import Workload

    config = Upscaler.from_pretrained(options.model, "cpu").model.config
    print(
        f"{options.model}, {width}x{height}, fp32, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    print("| band rows | time / first | peak MiB | predicted MiB |\n| --- | --- | --- | --- |")
    first = None
    for band_rows in options.bands:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", str(band_rows)]
        seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        first = first or float(seconds)
        predicted = Workload(config, height, width, 4).bytes_for(band_rows or height)
        print(f"| {band_rows or 'all'} | {float(seconds) / first:.2f} | {int(peak) / 2**20:.0f} | {predicted / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main()
