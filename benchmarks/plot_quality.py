"""Draw quality over time from a report of `quality.py`: who is both better and faster than whom.

    pip install matplotlib
    python benchmarks/plot_quality.py benchmarks/results/quality-holdout-2026-11-23.md --out docs/images/quality.png

Times and PSNR-Y are those of the report's tables over all ways of making small, so all of one machine and one run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

from transformersr.arch.atomic import write_aside

from reports import is_ours, read_report

matplotlib.use("agg")
from matplotlib import pyplot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    scales = read_report(options.report.read_text(encoding="utf-8"))
    figure, axes = pyplot.subplots(1, len(scales), figsize=(5.2 * len(scales), 4), squeeze=False)
    for axis, (scale, rows) in zip(axes[0], scales.items(), strict=True):
        for row in rows:
            place = float(row["s / LR MP"]), float(row["PSNR-Y ↑"])
            axis.scatter(*place, color="#d9480f" if is_ours(row) else "#868e96", s=36, zorder=3)
            axis.annotate(row["upscaler"].removesuffix(" (ours)"), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axis.set(xscale="log", title=scale, xlabel="seconds for a megapixel of small picture, one CPU thread", ylabel="PSNR-Y in dB")
        axis.margins(x=0.25)
        axis.grid(color="#e9ecef")
    figure.tight_layout()
    with write_aside(options.out) as aside:
        figure.savefig(aside, format="png", dpi=110)


if __name__ == "__main__":
    main()
