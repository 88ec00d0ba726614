"""Measure how long a training step takes for several OpenMP spin counts, alone and next to a busy process (Linux, GNU OpenMP).

    python benchmarks/bench_threads.py

`transformersr.upscale.cores` sets the spin count. Each measurement runs in its own process, because OpenMP reads its settings when loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys

SPINS = ("", "3000", "10000", "30000")
STEP = """
import time, torch
from transformersr.arch import VARIANTS, TransformerSR
net, image = TransformerSR(VARIANTS["tiny"]), torch.rand(8, 3, 32, 32)
def step():
    start = time.perf_counter()
    net(image).abs().mean().backward()
    return time.perf_counter() - start
step()
print(min(step() for _ in range(3)))
"""


def seconds(spin: str) -> float:
    """Return the seconds of a training step of `tiny` in a new process, best of three."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    }
    environment |= {"GOMP_SPINCOUNT": spin} if spin else {}
    return float(subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    alone = {spin: seconds(spin) for spin in SPINS}
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            contended = {spin: seconds(spin) for spin in SPINS}
        finally:
            busy.kill()
    print(f"{os.cpu_count()} cores; times relative to the default alone")
    print("\n| GOMP_SPINCOUNT | alone | next to a busy process |\n| --- | --- | --- |")
    for spin in SPINS:
        print(f"| {spin or '(default)'} | {alone[spin] / alone['']:.2f} | {contended[spin] / alone['']:.2f} |")


if __name__ == "__main__":
    main()
