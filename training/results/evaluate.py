"""Evaluate weights on a folder of images (`transformersr evaluate`)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from ...upscale.engine import upscale
from ...upscale.upscaler import Upscaler
from ..data.degradation import FILTERS, PRESETS
from ..data.folders import find_images, find_partners, matches_any
from ..data.video_codec import require_codec
from .validate import METHODS, Scores, make_pair, mean_scores, resize_with, score_pair

logger = logging.getLogger(__name__)

COLUMNS = {
    "PSNR-Y": "{0.psnr_y:.2f}",
    "SSIM-Y": "{0.ssim_y:.4f}",
    "PSNR-RGB": "{0.psnr_rgb:.2f}",
    "edge PSNR": "{0.edge_psnr:.2f}",
    "flat PSNR": "{0.flat_psnr:.2f}",
    "sharpness": "{0.sharpness:.3f}",
    "colour": "{0.color_shift:.2f}",
    "shift y, x": "{0.shift_y:+.3f}, {0.shift_x:+.3f}",
}


def evaluate_weights(
    weights: str, folder: Path, files: tuple[str, ...], methods: tuple[str, ...], device: str, preset: str = "author", crop: int = 0
) -> dict[tuple[str, str], Scores]:
    """Mean scores by downscaling method and upscaler, at the scale of the weights; paired folders are measured on their pairs.

    `preset` also damages the small images, always in the same way; `crop` measures only the middle square of that side, in pixels.
    Images that cannot be used are logged and skipped. Raises ValueError if nothing can be measured.
    """
    upscaler = Upscaler.from_pretrained(weights, device, "fp32")
    scale = upscaler.scale
    if unknown := set(methods) - set(FILTERS):
        raise ValueError(f"method {', '.join(sorted(unknown))} is unknown; expected {', '.join(FILTERS)}")
    if preset not in PRESETS:
        raise ValueError(f"preset {preset} is unknown; expected {', '.join(PRESETS)}")
    if PRESETS[preset].video:
        require_codec()
    everything = find_images(folder)
    partners = find_partners(folder, everything, scale)
    sharp = [path for path in everything if path not in set(partners.values())]
    paths = [path for path in sharp if not files or matches_any(path, folder, files)]
    if not paths:
        raise ValueError(f"{folder}: no image matches {', '.join(files)}")
    upscalers = {
        "bicubic": resize_with("bicubic", scale),
        "lanczos": resize_with("lanczos", scale),
        Path(weights).stem: lambda lq: upscale(upscaler.model, lq),
    }
    scores: dict[tuple[str, str], list[Scores]] = {}
    methods = methods or METHODS
    with tqdm(total=len(paths) * len(methods), unit="image", disable=None) as bar:
        for seed, path in enumerate(paths):
            for method in methods:
                bar.update()
                try:
                    pair = make_pair(path, scale, method, crop, partners, preset=preset, seed=seed)
                except ValueError as error:
                    logger.warning("%s", error)
                    break
                for name, upscale_with in upscalers.items():
                    scores.setdefault((method, name), []).append(score_pair(pair, upscale_with(pair.lq), scale))
    if not scores:
        raise ValueError(f"{folder}: none of {len(paths)} images can be used; expected at least one")
    for name in upscalers:
        scores["all", name] = [image_scores for method in methods for image_scores in scores[method, name]]
    return {key: mean_scores(group) for key, group in scores.items()}


def format_table(scores: dict[tuple[str, str], Scores]) -> str:
    """Format scores as a Markdown table."""
    rows = [[method, name, *(text.format(means) for text in COLUMNS.values())] for (method, name), means in scores.items()]
    return markdown_table(["downscaled with", "upscaled with", *COLUMNS], rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a heading and rows of text as a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
