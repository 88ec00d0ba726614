"""Compare our models with other upscalers on downscaled images: scores, times and crops.

    pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/quality.py FOLDER --scale 4 2 --name holdout
    python benchmarks/quality.py FOLDER --jpeg 50 --name holdout-jpeg
    python benchmarks/quality.py FOLDER --sheet docs/images/peers.png --show "girl.png:120,80,96" "page.png:300,40,96"

All upscalers get the same low-resolution images and run on the CPU in one process, with the same number of threads, one image at a time,
after a warm-up. Upscalers that are not installed are skipped with a note. The report is a Markdown file in benchmarks/results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from transformersr.training.config import load_recipe
from transformersr.training.data.degradation import FILTERS as DOWNSCALING_FILTERS
from transformersr.training.data.degradation import downscale
from transformersr.training.data.folders import find_images, matches_any
from transformersr.training.data.video_codec import compress_roundtrip
from transformersr.training.results.evaluate import COLUMNS, markdown_table
from transformersr.training.results.metrics import psnr
from transformersr.training.results.strips import contact_sheet, save_image
from transformersr.training.results.validate import METHODS, Pair, Scores, make_pair, mean_scores, score_pair, to_image, to_tensor
from transformersr.upscale.upscaler import available_models

from machine import command_line, describe_machine, write_report
from peers import PEERS, Peer, load_ours, load_peers
from perceptual import LEARNED_SIDE, Distance, load_distances

SHEET_COLUMNS = 4
"""Crops side by side in a sheet; with more of them, labels are too small to read on a phone."""
SHIFT = "shift y, x"
SHARPNESS, COLOR = "sharpness", "colour"
NOTES = f"""\
PSNR and SSIM are computed on luma unless named otherwise, without a border of one low-resolution pixel. Edges, flat areas and sharpness
are based on the Sobel magnitude of the ground truth; sharpness 1 means as sharp as the ground truth. Colour is the mean error of 16x16
squares, in levels of 255. GMSD, MS-SSIM and ST-LPIPS are perceptual metrics; ST-LPIPS sees the central {LEARNED_SIDE} pixels square.
LR PSNR compares the downscaled result with the input. Shift is the median offset of the result from the ground truth, down and right, in
its pixels. Times are seconds per megapixel of input, on the CPU in float32, one upscaler after another in one process. How: a network
without weights for a scale is used as its own tools use it."""


@dataclass(frozen=True)
class Case:
    """An image downscaled with one filter."""

    method: str
    pair: Pair


@dataclass(frozen=True)
class Window:
    """A square to show, in pixels of the ground truth after its centre crop."""

    image: str
    x: int
    y: int
    side: int

    def cut(self, image: Image.Image) -> Image.Image:
        return image.crop((self.x, self.y, self.x + self.side, self.y + self.side))


@dataclass(frozen=True)
class Figures:
    """Scores of one result, or means over several; times and megapixels are sums."""

    scores: Scores
    lr_psnr: float
    """RGB PSNR of the downscaled result against the input: consistency with the input."""
    distances: dict[str, float]
    seconds: float
    cpu_seconds: float
    megapixels: float
    """Size of the input."""


@dataclass
class Entry:
    """Results of an upscaler."""

    peer: Peer
    figures: list[tuple[str, Figures]] = field(default_factory=list)
    """Downscaling filter and scores of each case."""
    crops: dict[Window, Image.Image] = field(default_factory=dict)

    def mean(self, method: str | None = None) -> Figures:
        """Return the mean over one downscaling filter, or over all."""
        return mean_figures([figures for filter_name, figures in self.figures if method in (None, filter_name)])


# --- measuring -----------------------------------------------------------------------------------


def make_cases(paths: Sequence[Path], scale: int, methods: Sequence[str], side: int, jpeg: int = 0) -> tuple[list[Case], list[str]]:
    """Downscale the centre of every image to `side` x `side` with every filter; also return a note for each unusable image.

    With `jpeg`, the small images are compressed as JPEG of this quality, with chroma subsampling.
    """
    cases, missing = [], []
    for path in paths:
        try:
            pairs = [make_pair(path, scale, method, side * scale) for method in methods]
            cases += [Case(method, compress_input(pair, jpeg) if jpeg else pair) for method, pair in zip(methods, pairs, strict=True)]
        except (OSError, ValueError) as error:
            missing.append(f"{path.name} is skipped: {error}")
    if not cases:
        raise ValueError(f"none of {len(paths)} images can be used: {missing[0] if missing else 'the list is empty'}")
    return cases, missing


def compress_input(pair: Pair, quality: int) -> Pair:
    """Compress the small image of a pair as JPEG, with chroma subsampling."""
    return replace(pair, lq=to_tensor(compress_roundtrip(to_image(pair.lq), "JPEG", quality=quality, subsampling=2)))


def measure_peer(peer: Peer, cases: Sequence[Case], distances: Sequence[Distance], windows: Sequence[Window], progress: tqdm) -> Entry:
    """Run an upscaler on every case after an untimed warm-up. Crops are taken from the first downscaling filter."""
    entry = Entry(peer)
    peer.upscale(cases[0].pair.lq)
    for case in cases:
        progress.set_postfix_str(peer.name)
        figures, sr = measure_case(peer, case, distances)
        entry.figures.append((case.method, figures))
        if case.method == cases[0].method:
            entry.crops.update({window: window.cut(to_image(sr)) for window in windows if fnmatch(case.pair.name, window.image)})
        progress.update()
    return entry


def measure_case(peer: Peer, case: Case, distances: Sequence[Distance]) -> tuple[Figures, Tensor]:
    """Return the scores of an upscaler on a case, and its result rounded to 256 levels."""
    lq, gt = case.pair.lq, case.pair.gt
    start, cpu_start = time.perf_counter(), time.process_time()
    sr = peer.upscale(lq)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if sr.shape != gt.shape:
        raise ValueError(f"{peer.name} gave {tuple(sr.shape)} for {case.pair.name}; expected {tuple(gt.shape)}")
    image = to_image(sr)
    sr = to_tensor(image)
    downscaled = to_tensor(downscale(image, peer.scale, case.method))
    inner = (..., slice(peer.scale, -peer.scale), slice(peer.scale, -peer.scale))
    figures = Figures(
        score_pair(case.pair, sr, peer.scale),
        psnr(downscaled, lq),
        {distance.name: distance.measure(sr[inner], gt[inner]) for distance in distances},
        seconds,
        cpu_seconds,
        lq.shape[2] * lq.shape[3] / 1e6,
    )
    return figures, sr


def mean_figures(figures: Sequence[Figures]) -> Figures:
    """Average over results, ignoring NaN distances. Times and megapixels are sums."""
    return Figures(
        mean_scores([one.scores for one in figures]),
        fmean(one.lr_psnr for one in figures),
        {name: _mean(one.distances[name] for one in figures) for name in figures[0].distances},
        sum(one.seconds for one in figures),
        sum(one.cpu_seconds for one in figures),
        sum(one.megapixels for one in figures),
    )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]
    return fmean(known) if known else float("nan")


# --- writing -------------------------------------------------------------------------------------


def format_entries(entries: Sequence[Entry], distances: Sequence[Distance], method: str | None = None) -> str:
    """Format the scores for one downscaling filter, or means over all, as a Markdown table: best PSNR-Y first, best of each column bold."""
    entries = sorted(entries, key=lambda entry: -entry.mean(method).scores.psnr_y)
    figures = [entry.mean(method) for entry in entries]
    columns = {
        "upscaler": [entry.peer.name + " (ours)" * entry.peer.ours for entry in entries],
        "how": [entry.peer.how for entry in entries],
        "parameters": [f"{entry.peer.parameters:,}" if entry.peer.parameters else "-" for entry in entries],
    }
    for title, text in COLUMNS.items():
        cells = [text.format(one.scores) for one in figures]
        if title == SHARPNESS:  # best at 1, so neither higher nor lower is better
            columns[title] = cells
        elif title != SHIFT:
            lower_is_better = title == COLOR
            columns[f"{title} {'↓' if lower_is_better else '↑'}"] = bold_best(cells, lower_is_better)
    for distance in distances:
        cells = [distance.text.format(one.distances[distance.name]) for one in figures]
        columns[f"{distance.name} {'↓' if distance.lower_is_better else '↑'}"] = bold_best(cells, distance.lower_is_better)
    columns["LR PSNR ↑"] = bold_best([f"{one.lr_psnr:.2f}" for one in figures])
    columns[SHIFT] = [COLUMNS[SHIFT].format(one.scores) for one in figures]
    columns["s / LR MP"] = [format_time(one.seconds / one.megapixels) for one in figures]
    columns["CPU s / LR MP"] = [format_time(one.cpu_seconds / one.megapixels) for one in figures]
    return markdown_table(list(columns), zip(*columns.values(), strict=True))


def bold_best(cells: Sequence[str], lower_is_better: bool = False) -> list[str]:
    """Mark the best of some formatted numbers in bold, all of them if several are equal."""
    known = [float(cell) for cell in cells if cell != "nan"]
    if not known:
        return list(cells)
    best = min(known) if lower_is_better else max(known)
    return [f"**{cell}**" if cell != "nan" and float(cell) == best else cell for cell in cells]


def format_time(seconds: float) -> str:
    """Format with three significant digits, or as a whole number from 1000."""
    return f"{seconds:.3g}" if seconds < 999.5 else f"{seconds:.0f}"


def format_section(entries: Sequence[Entry], distances: Sequence[Distance], scale: int, methods: Sequence[str]) -> str:
    """Format all tables of a scale: the mean over the downscaling filters, then each filter."""
    parts = [f"## x{scale}"]
    if len(methods) > 1:
        parts += [f"### Mean over downscaling with {', '.join(methods)}", format_entries(entries, distances)]
    for method in methods:
        parts += [f"### Downscaled with {method}", format_entries(entries, distances, method)]
    return "\n\n".join(parts)


def find_pair(window: Window, cases: Sequence[Case]) -> Pair:
    """Find the image of a window. Raise ValueError if there is none or the window does not fit into it."""
    pairs = [case.pair for case in cases if fnmatch(case.pair.name, window.image)]
    if not pairs:
        raise ValueError(f"{window.image}: none of the images has this name")
    height, width = pairs[0].gt.shape[2:]
    if min(window.x, window.y) < 0 or window.x + window.side > width or window.y + window.side > height:
        raise ValueError(f"{window.image}:{window.x},{window.y},{window.side} does not fit into the measured {width}x{height} pixels")
    return pairs[0]


def make_sheet(entries: Sequence[Entry], cases: Sequence[Case], windows: Sequence[Window], cell: int) -> Image.Image:
    """Draw the input, each upscaler's result and the ground truth for each window, in lines of `SHEET_COLUMNS` crops."""
    labels = ["input", *(entry.peer.name for entry in entries), "original"]
    lines = []
    for window in windows:
        pair = find_pair(window, cases)
        gt = to_image(pair.gt)
        small = to_image(pair.lq).resize(gt.size, Image.Resampling.NEAREST)
        crops = [window.cut(small), *(entry.crops[window] for entry in entries), window.cut(gt)]
        for start in range(0, len(crops), SHEET_COLUMNS):
            columns = slice(start, start + SHEET_COLUMNS)
            lines.append(contact_sheet([crops[columns]], labels[columns], cell, label_size=cell // 8))
    sheet = Image.new("RGB", (lines[0].width, sum(line.height for line in lines)), "white")
    for index, line in enumerate(lines):
        sheet.paste(line, (0, index * line.height))
    return sheet


def check_sheet(windows: Sequence[Window], cases: Sequence[Case], columns: Sequence[str] | None, upscalers: Sequence[Peer]) -> None:
    """Raise ValueError for a sheet that cannot be drawn, before measuring."""
    for window in windows:
        find_pair(window, cases)
    if unknown := set(columns or ()) - {peer.name for peer in upscalers}:
        raise ValueError(
            f"column {', '.join(sorted(unknown))} is not measured; expected any of {', '.join(peer.name for peer in upscalers)}"
        )


def choose_images(folder: Path, patterns: Sequence[str], count: int) -> list[Path]:
    """Return images that match any pattern relative to the folder (all without patterns), at most `count`, evenly spread."""
    paths = [path for path in find_images(folder) if not patterns or matches_any(path, folder, patterns)]
    if not paths:
        raise ValueError(f"{folder}: no images match {', '.join(patterns)}")
    return paths if not 0 < count < len(paths) else [paths[index * len(paths) // count] for index in range(count)]


def choose_upscalers(models: Sequence[str], peers: Sequence[str], scale: int) -> tuple[list[Peer], list[str]]:
    """Load other upscalers and our models for a scale; also return a note for each that is unavailable."""
    chosen, missing = load_peers(peers, scale)
    for model in models:
        try:
            chosen.append(load_ours(model, scale))
        except (OSError, ValueError) as error:
            missing.append(f"{Path(model).stem} is skipped: {error}")
    return chosen, missing


def parse_window(text: str) -> Window:
    """Parse a window written as "NAME:x,y,side"."""
    image, _, box = text.rpartition(":")
    try:
        x, y, side = map(int, box.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME:x,y,side") from None
    return Window(image, x, y, side)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images, searched at any depth")
    parser.add_argument(
        "--files", nargs="+", default=[], metavar="PATTERN", help="only files that match these patterns, relative to the folder"
    )
    parser.add_argument("--recipe", type=Path, help="only the validation files of this training recipe")
    parser.add_argument("--count", type=int, default=0, help="maximum number of images, evenly spread; 0 for all")
    parser.add_argument("--side", type=int, default=160, help="side of the centre crop in low-resolution pixels; 0 for the whole image")
    parser.add_argument("--scale", type=int, nargs="+", default=[4], choices=[2, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(DOWNSCALING_FILTERS), help="downscaling filters")
    parser.add_argument("--jpeg", type=int, default=0, metavar="QUALITY", help="compress the small images as JPEG; 0: do not")
    parser.add_argument(
        "--models",
        nargs="*",
        default=list(available_models()),
        help="our models: names or files, x4-tiny@0.5 for a crispness, x4-tiny+ensemble; default: all",
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads, the same for all upscalers")
    parser.add_argument("--name", default="images", help="name of the image set in the report")
    parser.add_argument("--out", type=Path, help="report; default: benchmarks/results/quality-NAME-DATE.md")
    parser.add_argument("--sheet", type=Path, help="image of crops to write, for the first scale")
    parser.add_argument("--show", type=parse_window, nargs="+", default=[], metavar="NAME:x,y,side", help="crops for the sheet")
    parser.add_argument("--columns", nargs="+", help="upscalers in the sheet; default: all")
    parser.add_argument("--cell", type=int, default=320, help="side of a crop in the sheet")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_arguments(sys.argv[1:])
    torch.set_num_threads(options.threads)
    try:
        report = run(options, command_line(sys.argv[1:], options.folder))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    write_report(report, f"quality-{options.name}", options.out)


def run(options: argparse.Namespace, command: str) -> str:
    """Measure all upscalers at every scale, write the sheet if requested, and return the report."""
    patterns = [*options.files, *(load_recipe(options.recipe).validation if options.recipe else ())]
    paths = choose_images(options.folder, patterns, options.count)
    machine = describe_machine()
    distances, missing = load_distances()
    sections = []
    for scale in options.scale:
        upscalers, unavailable = choose_upscalers(options.models, options.peers, scale)
        cases, unusable = make_cases(paths, scale, options.methods, options.side, options.jpeg)
        missing += [*unavailable, *unusable]
        windows = options.show if scale == options.scale[0] else []
        check_sheet(windows, cases, options.columns, upscalers)
        with tqdm(total=len(upscalers) * len(cases), unit="result", disable=None) as progress:
            entries = [measure_peer(peer, cases, distances, windows, progress) for peer in upscalers]
        sections.append(format_section(entries, distances, scale, options.methods))
        if options.sheet and windows:
            shown = [entry for entry in entries if entry.peer.name in (options.columns or [entry.peer.name])]
            save_image(make_sheet(shown, cases, windows, options.cell), options.sheet)
    head = f"# Quality: {options.name}, {time.strftime('%Y-%m-%d')}\n\n    {command}"
    images = (
        f"{len(paths)} images, each cropped to its central {options.side}x{options.side} low-resolution pixels."
        if options.side
        else f"{len(paths)} images."
    )
    if options.jpeg:
        images += f" After downscaling, they were compressed as JPEG of quality {options.jpeg}."
    return "\n\n".join([head, f"{images} {machine}.", NOTES, *dict.fromkeys(missing), *sections]) + "\n"


if __name__ == "__main__":
    main()
