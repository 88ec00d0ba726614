"""Compare our networks with other upscalers on images that are made small and upscaled again: figures, times and crops to look at.

    pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/quality.py FOLDER --scale 4 2 --name holdout
    python benchmarks/quality.py FOLDER --sheet docs/images/peers.png --show "girl.png:120,80,96" "page.png:300,40,96"

Everybody gets the same small images, runs on the CPU in one process with the same number of threads, one image at a time, after a
warm-up. What is not installed is left out, with a line that says so. The report is a Markdown file under benchmarks/results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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
from transformersr.training.data.folders import find_images
from transformersr.training.results.evaluate import COLUMNS
from transformersr.training.results.metrics import psnr
from transformersr.training.results.strips import contact_sheet, save_image, to_image
from transformersr.training.results.validate import METHODS, Pair, Scores, make_pair, mean_scores, score_pair, to_tensor
from transformersr.upscale.upscaler import available_models

from machine import command_line, describe_machine, write_report
from peers import PEERS, Peer, load_ours, load_peers
from perceptual import LEARNED_SIDE, Distance, load_distances

SHIFT = "shift y, x"
SHARPNESS, COLOR = "sharpness", "colour"
NOTES = f"""\
PSNR and SSIM are on the luma unless named otherwise, with a border of one small pixel left out; edges and flats go by the Sobel magnitude
of the true image, and so does sharpness (1: as sharp as the truth); colour is how far 16x16 squares are off, in levels of 255. GMSD,
MS-SSIM and ST-LPIPS are distances that try to see as people do; ST-LPIPS gets the middle {LEARNED_SIDE} pixels
square. LR PSNR: the result made small again, against the input. Shift: how far the result lies below and right of the true image, in its
pixels (median). Times: seconds for a megapixel of small image, on the CPU in float32, everybody in turn in one process. How: a network
without weights for a scale is used as its own tools use it."""


@dataclass(frozen=True)
class Case:
    """An image made small in one way."""

    method: str
    pair: Pair


@dataclass(frozen=True)
class Window:
    """A square of an image to look at, in pixels of the true image (after it was cut to its middle)."""

    image: str
    x: int
    y: int
    side: int

    def cut(self, image: Image.Image) -> Image.Image:
        return image.crop((self.x, self.y, self.x + self.side, self.y + self.side))


@dataclass(frozen=True)
class Figures:
    """Of one result, or means over many; times are of all of them together."""

    scores: Scores
    lr_psnr: float
    """The result made small again as the input was, against the input, in RGB: how far it keeps what it was given."""
    distances: dict[str, float]
    seconds: float
    cpu_seconds: float
    megapixels: float
    """Of the small images."""


@dataclass
class Entry:
    """What came of a peer."""

    peer: Peer
    figures: list[tuple[str, Figures]] = field(default_factory=list)
    """Way of downscaling and figures, one for each case."""
    crops: dict[Window, Image.Image] = field(default_factory=dict)

    def mean(self, method: str | None = None) -> Figures:
        """Over one way of downscaling, or all."""
        return mean_figures([one for way, one in self.figures if method in (None, way)])


# --- measuring -----------------------------------------------------------------------------------


def make_cases(paths: Sequence[Path], scale: int, methods: Sequence[str], side: int) -> tuple[list[Case], list[str]]:
    """Every image made small in every way, cut to its middle of `side` small pixels; and a line for each that cannot be used."""
    cases, missing = [], []
    for path in paths:
        try:
            cases += [Case(method, make_pair(path, scale, method, side * scale)) for method in methods]
        except (OSError, ValueError) as error:
            missing.append(f"{path.name} is left out: {error}")
    if not cases:
        raise ValueError(f"none of {len(paths)} images can be used: {missing[0] if missing else 'there are none'}")
    return cases, missing


def measure_peer(peer: Peer, cases: Sequence[Case], distances: Sequence[Distance], windows: Sequence[Window], progress: tqdm) -> Entry:
    """Run a peer on every case, after a warm-up that does not count. Crops are kept of the first way of downscaling."""
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
    """Figures and the result itself, rounded to 256 levels."""
    lq, gt = case.pair.lq, case.pair.gt
    start, cpu_start = time.perf_counter(), time.process_time()
    sr = peer.upscale(lq)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if sr.shape != gt.shape:
        raise ValueError(f"{peer.name} gave {tuple(sr.shape)} for {case.pair.name}; expected {tuple(gt.shape)}")
    image = to_image(sr)
    sr = to_tensor(image)
    again = to_tensor(downscale(image, peer.scale, case.method))
    inner = (..., slice(peer.scale, -peer.scale), slice(peer.scale, -peer.scale))
    figures = Figures(
        score_pair(case.pair, sr, peer.scale),
        psnr(again, lq),
        {one.name: one.measure(sr[inner], gt[inner]) for one in distances},
        seconds,
        cpu_seconds,
        lq.shape[2] * lq.shape[3] / 1e6,
    )
    return figures, sr


def mean_figures(figures: Sequence[Figures]) -> Figures:
    """Means over results; a distance that one of them does not have is left out of it. Times and megapixels are sums."""
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
    """One way of downscaling, or the mean over all, as a Markdown table: the best PSNR-Y first, the best of each column bold."""
    entries = sorted(entries, key=lambda entry: -entry.mean(method).scores.psnr_y)
    figures = [entry.mean(method) for entry in entries]
    columns = {
        "upscaler": [entry.peer.name + " (ours)" * entry.peer.ours for entry in entries],
        "how": [entry.peer.how for entry in entries],
        "parameters": [f"{entry.peer.parameters:,}" if entry.peer.parameters else "-" for entry in entries],
    }
    for title, text in COLUMNS.items():
        cells = [text.format(one.scores) for one in figures]
        if title == SHARPNESS:  # best at 1, and no merit of its own
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
    rows = [list(columns), ["---"] * len(columns), *map(list, zip(*columns.values(), strict=True))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def bold_best(cells: Sequence[str], lower_is_better: bool = False) -> list[str]:
    """Numbers as text, the best of them bold; those that look the same are equal."""
    known = [float(cell) for cell in cells if cell != "nan"]
    if not known:
        return list(cells)
    best = min(known) if lower_is_better else max(known)
    return [f"**{cell}**" if cell != "nan" and float(cell) == best else cell for cell in cells]


def format_time(seconds: float) -> str:
    """Three digits, or all before the point."""
    return f"{seconds:.3g}" if seconds < 999.5 else f"{seconds:.0f}"


def format_section(entries: Sequence[Entry], distances: Sequence[Distance], scale: int, methods: Sequence[str]) -> str:
    """All tables of a scale: the mean over the ways of downscaling, then each of them."""
    parts = [f"## x{scale}"]
    if len(methods) > 1:
        parts += [f"### Downscaled with {', '.join(methods)} in turn: means over all", format_entries(entries, distances)]
    for method in methods:
        parts += [f"### Downscaled with {method}", format_entries(entries, distances, method)]
    return "\n\n".join(parts)


def pair_of(window: Window, cases: Sequence[Case]) -> Pair:
    """The image that a window looks at. Raises ValueError where there is none or the window reaches out of it."""
    pairs = [case.pair for case in cases if fnmatch(case.pair.name, window.image)]
    if not pairs:
        raise ValueError(f"{window.image}: none of the images has this name")
    height, width = pairs[0].gt.shape[2:]
    if min(window.x, window.y) < 0 or window.x + window.side > width or window.y + window.side > height:
        raise ValueError(f"{window.image}:{window.x},{window.y},{window.side} reaches out of the {width}x{height} pixels that are measured")
    return pairs[0]


def sheet_of(entries: Sequence[Entry], cases: Sequence[Case], windows: Sequence[Window], cell: int) -> Image.Image:
    """Crops side by side: the small image, each upscaler with its mean PSNR-Y, the true image."""
    method, scale = cases[0].method, entries[0].peer.scale
    rows = []
    for window in windows:
        pair = pair_of(window, cases)
        gt = to_image(pair.gt)
        small = to_image(pair.lq).resize(gt.size, Image.Resampling.NEAREST)
        rows.append([window.cut(small), *(entry.crops[window] for entry in entries), window.cut(gt)])
    names = [f"{entry.peer.name} {entry.mean(method).scores.psnr_y:.2f} dB" for entry in entries]
    return contact_sheet(rows, [f"small (x{scale}, {method})", *names, "true image"], cell)


def check_sheet(windows: Sequence[Window], cases: Sequence[Case], columns: Sequence[str] | None, upscalers: Sequence[Peer]) -> None:
    """Raise ValueError for a sheet that could not be drawn, before anything is measured."""
    for window in windows:
        pair_of(window, cases)
    if unknown := set(columns or ()) - {peer.name for peer in upscalers}:
        raise ValueError(f"column {', '.join(sorted(unknown))} is not measured; there are {', '.join(peer.name for peer in upscalers)}")


def choose_images(folder: Path, patterns: Sequence[str], count: int) -> list[Path]:
    """Images that match any pattern relative to the folder (all without patterns), at most `count` of them, evenly spread."""
    paths = [
        path for path in find_images(folder) if not patterns or any(fnmatch(path.relative_to(folder).as_posix(), one) for one in patterns)
    ]
    if not paths:
        raise ValueError(f"{folder}: no images match {', '.join(patterns)}")
    return paths if not 0 < count < len(paths) else [paths[index * len(paths) // count] for index in range(count)]


def choose_upscalers(models: Sequence[str], peers: Sequence[str], scale: int) -> tuple[list[Peer], list[str]]:
    """Peers and ours for a scale, and a line for each that cannot be had."""
    chosen, missing = load_peers(peers, scale)
    for model in models:
        try:
            chosen.append(load_ours(model, scale))
        except (OSError, ValueError) as error:
            missing.append(f"{Path(model).stem} is left out: {error}")
    return chosen, missing


def parse_window(text: str) -> Window:
    """A window from "NAME:x,y,side"."""
    image, _, box = text.rpartition(":")
    try:
        x, y, side = map(int, box.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME:x,y,side") from None
    return Window(image, x, y, side)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images, searched at any depth")
    parser.add_argument("--files", nargs="+", default=[], metavar="PATTERN", help="only these, as patterns relative to the folder")
    parser.add_argument("--recipe", type=Path, help="only the validation files of this training recipe")
    parser.add_argument("--count", type=int, default=0, help="at most so many images, evenly spread; 0 takes all")
    parser.add_argument("--side", type=int, default=160, help="the middle of each image, in small pixels; 0 takes all of it")
    parser.add_argument("--scale", type=int, nargs="+", default=[4], choices=[2, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(DOWNSCALING_FILTERS), help="ways of making small")
    parser.add_argument(
        "--models",
        nargs="*",
        default=list(available_models()),
        help="ours: names or files, x4-tiny@0.5 for a crispness, x4-tiny+ensemble; default: all",
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for everybody alike")
    parser.add_argument("--name", default="images", help="what the set of images is called in the report")
    parser.add_argument("--out", type=Path, help="report; default: benchmarks/results/quality-NAME-DATE.md")
    parser.add_argument("--sheet", type=Path, help="image of crops to write (of the first scale)")
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
    """Measure everybody at every scale, write the sheet if one is asked for, and return the report."""
    patterns = [*options.files, *(load_recipe(options.recipe).validation if options.recipe else ())]
    paths = choose_images(options.folder, patterns, options.count)
    machine = describe_machine()
    distances, missing = load_distances()
    sections = []
    for scale in options.scale:
        upscalers, absent = choose_upscalers(options.models, options.peers, scale)
        cases, unusable = make_cases(paths, scale, options.methods, options.side)
        missing += [*absent, *unusable]
        windows = options.show if scale == options.scale[0] else []
        check_sheet(windows, cases, options.columns, upscalers)
        with tqdm(total=len(upscalers) * len(cases), unit="result", disable=None) as progress:
            entries = [measure_peer(peer, cases, distances, windows, progress) for peer in upscalers]
        sections.append(format_section(entries, distances, scale, options.methods))
        if options.sheet and windows:
            shown = [entry for entry in entries if entry.peer.name in (options.columns or [entry.peer.name])]
            save_image(sheet_of(shown, cases, windows, options.cell), options.sheet)
    head = f"# Quality: {options.name}, {time.strftime('%Y-%m-%d')}\n\n    {command}"
    images = (
        f"{len(paths)} images, of each the middle {options.side}x{options.side} small pixels." if options.side else f"{len(paths)} images."
    )
    return "\n\n".join([head, f"{images} {machine}.", NOTES, *dict.fromkeys(missing), *sections]) + "\n"


if __name__ == "__main__":
    main()
