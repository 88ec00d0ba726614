"""Perceptual metrics from packages that include their weights. Images are `(1, 3, h, w)`, RGB in [0, 1].

GMSD and MS-SSIM (piq) are formulas based on gradients and structure. ST-LPIPS (stlpips-pytorch, network "alex") is learned. None of them
replaces human judgement: ST-LPIPS penalises blur more than jagged edges, and none of the three was designed for line art.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from peers import declare_torchvision_operators

LEARNED_SIDE = 256
"""Larger images are cropped to their centre for the learned metric, whose first layer costs more than most upscalers."""


@dataclass(frozen=True)
class Distance:
    """A metric that compares a result with the ground truth."""

    name: str
    text: str
    """Format string for the value."""
    lower_is_better: bool
    measure: Callable[[Tensor, Tensor], float]
    """Takes the result and the ground truth, both with 256 levels; NaN if they are too small."""


def load_distances() -> tuple[list[Distance], list[str]]:
    """Load the installed metrics; also return a note for each missing package."""
    declare_torchvision_operators()
    found: list[Distance] = []
    missing = []
    for load, line in (
        (_formulas, "GMSD and MS-SSIM are skipped: piq is not installed"),
        (_learned, "ST-LPIPS is skipped: stlpips-pytorch is not installed"),
    ):
        try:
            found += load()
        except ImportError:
            missing.append(line)
    return found, missing


def _formulas() -> list[Distance]:
    from piq import gmsd, multi_scale_ssim

    def ms_ssim(sr: Tensor, gt: Tensor) -> float:
        large_enough = min(gt.shape[2:]) > 160  # the smallest of five scales must hold a window
        return float(multi_scale_ssim(sr, gt)) if large_enough else float("nan")

    return [
        Distance("GMSD", "{:.4f}", True, lambda sr, gt: float(gmsd(sr, gt))),
        Distance("MS-SSIM", "{:.4f}", False, ms_ssim),
    ]


def _learned() -> list[Distance]:
    for name, attribute in ("IPython", "embed"), ("torchsummary", "summary"):  # imported by stlpips-pytorch but never used
        if name not in sys.modules:
            sys.modules[name] = ModuleType(name)
            setattr(sys.modules[name], attribute, None)
    from stlpips_pytorch import stlpips

    network = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)

    @torch.inference_mode()
    def measure(sr: Tensor, gt: Tensor) -> float:
        top, left = (max(0, (side - LEARNED_SIDE) // 2) for side in gt.shape[2:])
        sr, gt = (image[..., top : top + LEARNED_SIDE, left : left + LEARNED_SIDE] for image in (sr, gt))
        return float(network(sr, gt, normalize=True))

    return [Distance("ST-LPIPS", "{:.4f}", True, measure)]
