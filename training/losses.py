"""Losses. Images are `(b, c, h, w)` in [0, 1]; every loss is a scalar in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])


def sobel_magnitude(image: Tensor) -> Tensor:
    """Length of the Sobel gradient of each channel, the picture's edge repeated outwards: same shape, float32, no gradient.

    (Zero padding, as the original has it, would make the border of every crop the strongest edge.)
    """
    image = image.detach().float()
    channels = image.shape[1]
    kernels = torch.stack([SOBEL, SOBEL.T])[:, None].to(image.device).repeat(channels, 1, 1, 1)
    gradients = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernels, groups=channels)
    horizontal, vertical = gradients.unflatten(1, (channels, 2)).unbind(2)
    return torch.hypot(horizontal, vertical)


def edge_weights(gt: Tensor, flat_weight: float, eps: float = 1e-3) -> Tensor:
    """Weights `a + (1 - a) * e / mean(e)` with `a = flat_weight` and `e` the Sobel magnitude of the true picture.

    Their mean is 1 in every sample (where there is any edge), so the learning rate means the same for every `a`.
    """
    edge = sobel_magnitude(gt)
    mean = edge.mean(dim=(1, 2, 3), keepdim=True).clamp_min(eps)
    return flat_weight + (1 - flat_weight) * edge / mean


def edge_weighted_l1(sr: Tensor, gt: Tensor, flat_weight: float) -> Tensor:
    """Mean absolute error weighted by the true picture's edges: `flat_weight` 1 is plain L1, 0 the original's Sobel-weighted L1."""
    error = (sr.float() - gt.float()).abs()
    if flat_weight < 1:
        error = error * edge_weights(gt, flat_weight)
    return error.mean()


def color_loss(sr: Tensor, gt: Tensor, side: int = 8) -> Tensor:
    """Mean absolute difference of the colours of `side` x `side` squares: blind to detail, and so to what a discriminator is to change."""
    return F.avg_pool2d(sr.float() - gt.float(), side).abs().mean()
