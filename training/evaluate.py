"""The figures behind `transformersr evaluate`."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from ..upscale.engine import enlarge
from ..upscale.upscaler import Upscaler
from .dataset import find_pictures
from .degradation import FILTERS
from .validate import METHODS, Scores, make_pair, mean_scores, resize_with, score_pair

COLUMNS = {
    "PSNR-Y": "{0.psnr_y:.2f}",
    "SSIM-Y": "{0.ssim_y:.4f}",
    "PSNR-RGB": "{0.psnr_rgb:.2f}",
    "edge PSNR": "{0.edge_psnr:.2f}",
    "flat PSNR": "{0.flat_psnr:.2f}",
    "shift y, x": "{0.shift_y:+.3f}, {0.shift_x:+.3f}",
}


def evaluate_weights(
    weights: str, folder: Path, scale: int, files: tuple[str, ...], methods: tuple[str, ...], device: str
) -> dict[tuple[str, str], Scores]:
    """Mean scores by way of shrinking and way of enlarging. Raises ValueError where nothing can be measured."""
    upscaler = Upscaler.from_pretrained(weights, device, "fp32")
    if upscaler.scale != scale:
        raise ValueError(f"{weights} enlarges {upscaler.scale} times; expected {scale}: give --scale {upscaler.scale}")
    if unknown := set(methods) - set(FILTERS):
        raise ValueError(f"method {', '.join(sorted(unknown))} is unknown; expected {', '.join(FILTERS)}")
    paths = [path for path in find_pictures(folder) if not files or any(fnmatch(path.relative_to(folder).as_posix(), one) for one in files)]
    if not paths:
        raise ValueError(f"{folder}: no pictures match {', '.join(files)}")
    ways = {
        "bicubic": resize_with("bicubic", scale),
        "lanczos": resize_with("lanczos", scale),
        Path(weights).stem: lambda lq: enlarge(upscaler.model, lq),
    }
    scores: dict[tuple[str, str], list[Scores]] = {}
    methods = methods or METHODS
    with tqdm(total=len(paths) * len(methods), unit="picture", disable=None) as bar:
        for path in paths:
            for method in methods:
                pair = make_pair(path, scale, method)
                for name, way in ways.items():
                    scores.setdefault((method, name), []).append(score_pair(pair, way(pair.lq), scale))
                bar.update()
    for name in ways:
        scores["all", name] = [one for method in methods for one in scores[method, name]]
    return {key: mean_scores(ones) for key, ones in scores.items()}


def format_table(scores: dict[tuple[str, str], Scores]) -> str:
    """The scores as a Markdown table."""
    rows = [["made small by", "made large by", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    rows += [[method, name, *(text.format(one) for text in COLUMNS.values())] for (method, name), one in scores.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
