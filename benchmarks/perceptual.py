"""Distances that try to see as people do, from packages that need no download: images are `(1, 3, h, w)`, RGB in [0, 1].

GMSD and MS-SSIM (piq) are formulas on gradients and structure. ST-LPIPS (stlpips-pytorch, network "alex") is learned and has its weights
in the package. None of them is a person's judgement: ST-LPIPS punishes blur more than jaggies, and none of the three knows line art.
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
"""Of larger images a learned distance sees the middle only: its first layer works at full size and costs more than most upscalers."""


@dataclass(frozen=True)
class Distance:
    """Something to measure a result with."""

    name: str
    text: str
    """How it is printed."""
    lower_is_better: bool
    measure: Callable[[Tensor, Tensor], float]
    """From the result and the true image, both of 256 levels; NaN for images too small for it."""


def load_distances() -> tuple[list[Distance], list[str]]:
    """Those that are installed, and a line for each package that is not."""
    declare_torchvision_operators()
    found: list[Distance] = []
    missing = []
    for load, line in (
        (_formulas, "GMSD and MS-SSIM are left out: piq is not installed"),
        (_learned, "ST-LPIPS is left out: no stlpips-pytorch"),
    ):
        try:
            found += load()
        except ImportError:
            missing.append(line)
    return found, missing


def _formulas() -> list[Distance]:
    from piq import gmsd, multi_scale_ssim

    def ms_ssim(sr: Tensor, gt: Tensor) -> float:
        return (
            float(multi_scale_ssim(sr, gt)) if min(gt.shape[2:]) > 160 else float("nan")
        )  # its smallest of five sizes has to hold a window

    return [
        Distance("GMSD", "{:.4f}", True, lambda sr, gt: float(gmsd(sr, gt))),
        Distance("MS-SSIM", "{:.4f}", False, ms_ssim),
    ]


def _learned() -> list[Distance]:
    for name, attribute in ("IPython", "embed"), ("torchsummary", "summary"):  # imported by stlpips-pytorch and never used
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
