"""Plot quality over time from a report of `quality.py`.

    pip install matplotlib
    python benchmarks/plot_quality.py --out docs/images/quality.png

Times and PSNR-Y come from the report's mean over all downscaling filters, measured in one run on one machine. By default it is the newest
report of the holdout images at x4.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

from transformersr.upscale.atomic import write_aside

from reports import NAMES, RESULTS, Row, is_ours, newest_reports, read_report

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

POSITIONS = [
    ("left", "bottom", 6, 4),
    ("left", "top", 6, -4),
    ("right", "bottom", -6, 4),
    ("right", "top", -6, -4),
    ("center", "bottom", 0, 7),
    ("center", "top", 0, -7),
    ("left", "center", 9, 0),
    ("right", "center", -9, 0),
]
"""Possible positions of a label: alignments and offset from the point."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?", default=newest_reports(RESULTS)["quality-holdout-x4"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=int, default=4)
    options = parser.parse_args()
    rows = read_report(options.report.read_text(encoding="utf-8"))[f"x{options.scale}"]
    rows = [row for row in rows if "@" not in row["upscaler"]]  # crispness is not about PSNR
    figure, axis = pyplot.subplots(figsize=(4.8, 3.9), layout="constrained")  # small, so that its text is readable on a phone
    plot(axis, rows)
    with write_aside(options.out) as aside:
        figure.savefig(aside, format="png", dpi=200)


def plot(axis: Axes, rows: list[Row]) -> None:
    """Draw a point and a label for each upscaler."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.margins(x=0.12, y=0.1)
    axis.grid(color="#e9ecef")
    axis.tick_params(labelsize=10)
    axis.set_xlabel("CPU seconds per megapixel of input (faster ←)", fontsize=10)
    axis.set_ylabel("PSNR-Y in dB (better ↑)", fontsize=10)
    points = [(float(row["CPU s / LR MP"]), float(row["PSNR-Y ↑"])) for row in rows]
    for row, point in zip(rows, points, strict=True):
        axis.scatter(*point, color="#d9480f" if is_ours(row) else "#868e96", s=44, zorder=3)
    axis.figure.draw_without_rendering()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in map(axis.transData.transform, points)]
    for row, point in zip(rows, points, strict=True):
        add_label(axis, row, point, taken)


def add_label(axis: Axes, row: Row, point: tuple[float, float], taken: list[Bbox]) -> None:
    """Write an upscaler's name where it overlaps the boxes in `taken` least, and add its own box to them."""
    name = row["upscaler"].removesuffix(" (ours)")
    text = NAMES.get(name, name).replace("+ensemble", " ensemble").replace(" ", "\n", 1)
    style = {"fontsize": 10, "color": "#d9480f" if is_ours(row) else "#495057", "weight": "bold" if is_ours(row) else "normal"}

    def cost(position: tuple[str, str, int, int]) -> float:
        label = annotate(position)
        box = label.get_window_extent()
        label.remove()
        inside = axis.get_window_extent()
        out = box.width * box.height - area(Bbox.intersection(box, inside))
        return out * 10 + sum(area(Bbox.intersection(box, other)) for other in taken)

    def annotate(position: tuple[str, str, int, int]):
        align, vertical, x, y = position
        return axis.annotate(text, point, xytext=(x, y), textcoords="offset points", ha=align, va=vertical, linespacing=1, **style)

    taken.append(annotate(min(POSITIONS, key=cost)).get_window_extent().padded(5))


def area(box: Bbox | None) -> float:
    return 0.0 if box is None else box.width * box.height


if __name__ == "__main__":
    main()
