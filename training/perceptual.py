"""Losses on patterns instead of pixels. Images are `(b, 3, h, w)` in [0, 1]; losses are scalars in float32."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arch.attention import without_autocast
from ..upscale.checkpoint import CheckpointError, read_tensors

FILTER_SETS, FILTERS_PER_SET, TAPS = 32, 48, 4

VGG19_LAYERS = {0: 0.0, 2: 0.1, 5: 0.0, 7: 0.1, 10: 0.0, 12: 0.0, 14: 0.0, 16: 1.0, 19: 0.0, 21: 0.0, 23: 0.0, 25: 1.0}
VGG19_LAYERS |= {28: 0.0, 30: 0.0, 32: 0.0, 34: 1.0}
"""Index of each convolution in torchvision's VGG19, with the weight of its features before the ReLU (as in Real-ESRGAN: conv1_2, 2_2, 3_4,
4_4 and 5_4); with weight 0, a layer is only passed through."""
VGG19_POOLS = (4, 9, 18, 27)
EXPECTED = "expected the state dict of torchvision's VGG19"


class RandomFilterLoss(nn.Module):
    """Charbonnier distance between the responses of both images to fixed random sparse filters.

    Each filter adds and subtracts a few pixels of a 3x3 or 5x5 neighbourhood, within or across channels, and sums to 0, so it responds to
    patterns and not to colour. The step number selects one of 32 sets. The idea is nunif's, after local binary convolutions (Juefei-Xu et
    al. 2017, arXiv:1608.06049); nothing is learnt or downloaded.
    """

    filters: Tensor

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sets = [self._random_filters(3 if index % 2 else 5, generator) for index in range(FILTER_SETS)]
        padded = [F.pad(filters, [(5 - filters.shape[-1]) // 2] * 4) for filters in sets]
        self.register_buffer("filters", torch.stack(padded), persistent=False)

    def forward(self, sr: Tensor, gt: Tensor, step: int) -> Tensor:
        """Mean distance with the filters of a step."""
        filters = self.filters[step * 7919 % FILTER_SETS]  # a prime, so that consecutive steps use sets far apart
        with without_autocast(sr):
            difference = F.conv2d(sr.float() - gt.float(), filters)  # the filters are linear: one pass for both images
        return (difference.square() + 1e-6).sqrt().mean()

    @staticmethod
    def _random_filters(side: int, generator: torch.Generator) -> Tensor:
        """`(filters, 3, side, side)`, each with two taps of +1/2 and two of -1/2."""
        positions = torch.rand(FILTERS_PER_SET, 3 * side * side, generator=generator).argsort(1)[:, :TAPS]
        values = torch.tensor([0.5, -0.5]).repeat(TAPS // 2).expand(FILTERS_PER_SET, -1)
        return torch.zeros(FILTERS_PER_SET, 3 * side * side).scatter_(1, positions, values).view(-1, 3, side, side)


class FeatureLoss(nn.Module):
    """L1 distance between VGG19 features (Johnson et al. 2016, arXiv:1603.08155), with a weights file that the user provides.

    Raises OSError, and CheckpointError if the file is not a state dict of torchvision's VGG19.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        weights, _ = read_tensors(Path(path))
        self.convs, channels = nn.ModuleDict(), 3
        for index in VGG19_LAYERS:
            weight, bias = (weights.get(f"features.{index}.{name}") for name in ("weight", "bias"))
            if weight is None or bias is None or bias.ndim != 1 or weight.shape != (len(bias), channels, 3, 3):
                raise CheckpointError(f"{path}: features.{index} is missing or has the wrong shape; {EXPECTED}")
            if not all(values.is_floating_point() and values.float().isfinite().all() for values in (weight, bias)):
                raise CheckpointError(f"{path}: features.{index} has values that are not finite numbers; {EXPECTED}")
            conv = nn.Conv2d(channels, len(bias), 3, padding=1)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.convs[str(index)], channels = conv, len(bias)
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        """Weighted sum of the layers' mean distances."""
        loss = sr.new_zeros(())
        x = (torch.cat([sr, gt.detach()]).float() - self.mean) / self.std
        for index, weight in VGG19_LAYERS.items():
            if index - 1 in VGG19_POOLS:
                x = F.max_pool2d(x, 2)
            x = self.convs[str(index)](x)
            if weight:
                loss = loss + weight * F.l1_loss(*x.float().chunk(2))
            x = x.relu()
        return loss
