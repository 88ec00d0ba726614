"""Draw quality over time from a report of `quality.py`: who is both better and faster than whom.

    pip install matplotlib
    python benchmarks/plot_quality.py benchmarks/results/quality-holdout-2026-11-23.md --out docs/images/quality.png

Times and PSNR-Y are those of the report's tables over all ways of making small, so all of one machine and one run.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from transformersr.arch.atomic import write_aside

from reports import Row, is_ours, read_report

matplotlib.use("agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Point:
    """An upscaler in a table."""

    name: str
    ours: bool
    psnr: float
    seconds: float


def read_points(report: str) -> dict[str, list[Point]]:
    """Upscalers of each scale ("x4")."""
    return {scale: [point_of(row) for row in rows] for scale, rows in read_report(report).items()}


def point_of(row: Row) -> Point:
    """A row of a report, with its seconds on the clock."""
    return Point(row["upscaler"].removesuffix(" (ours)"), is_ours(row), float(row["PSNR-Y ↑"]), float(row["s / LR MP"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    scales = read_points(options.report.read_text(encoding="utf-8"))
    figure, axes = pyplot.subplots(1, len(scales), figsize=(5.2 * len(scales), 4), squeeze=False)
    for axis, (scale, points) in zip(axes[0], scales.items(), strict=True):
        for point in points:
            axis.scatter(point.seconds, point.psnr, color="#d9480f" if point.ours else "#868e96", s=36, zorder=3)
            axis.annotate(point.name, (point.seconds, point.psnr), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axis.set(xscale="log", title=scale, xlabel="seconds for a megapixel of small picture, one CPU thread", ylabel="PSNR-Y in dB")
        axis.margins(x=0.25)
        axis.grid(color="#e9ecef")
    figure.tight_layout()
    with write_aside(options.out) as aside:
        figure.savefig(aside, format="png", dpi=110)


if __name__ == "__main__":
    main()
