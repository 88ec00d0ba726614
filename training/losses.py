"""Losses. Images are `(b, c, h, w)` in [0, 1]; every loss is a scalar in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adversarial import generator_loss
from .config import TrainConfig
from .perceptual import FeatureLoss, RandomFilterLoss
from .run_state import RunState

SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])


def sobel_magnitude(image: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient of each channel, with replicate padding: same shape, float32, detached.

    Zero padding, as in the original, would make the border of every crop its strongest edge.
    """
    image = image.detach().float()
    channels = image.shape[1]
    kernels = torch.stack([SOBEL, SOBEL.T])[:, None].to(image.device).repeat(channels, 1, 1, 1)
    gradients = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernels, groups=channels)
    horizontal, vertical = gradients.unflatten(1, (channels, 2)).unbind(2)
    return torch.hypot(horizontal, vertical)


def edge_weights(gt: Tensor, flat_weight: float, eps: float = 1e-3) -> Tensor:
    """Weights `a + (1 - a) * e / mean(e)` with `a = flat_weight` and `e` the Sobel magnitude of the true image.

    Their mean is 1 in every sample (if it has any edge), so the same learning rate works for every `a`.
    """
    edge = sobel_magnitude(gt)
    mean = edge.mean(dim=(1, 2, 3), keepdim=True).clamp_min(eps)
    return flat_weight + (1 - flat_weight) * edge / mean


def pixel_loss(sr: Tensor, gt: Tensor, flat_weight: float, kind: str = "l1") -> Tensor:
    """Compare pixels, weighted by the true image's edges: `flat_weight` 1 is unweighted, 0 the original's Sobel weighting.

    `l1` is the mean absolute error. `log` is the mean over the crops of

        0.005 * (log(1 + MSE / 1e-5) + log(1 + L1 / 1e-3))

    with the errors of each crop. Like a mean PSNR, it counts relative improvements, so a clean crop matters as much as a difficult one
    (the PSNR loss of HINet, arXiv:2105.06086, is its first half). The factor makes its gradient about as large as that of `l1`.
    """
    error = (sr.float() - gt.float()).abs()
    weights = edge_weights(gt, flat_weight) if flat_weight < 1 else 1.0
    absolute = (weights * error).mean(dim=(1, 2, 3))
    if kind == "l1":
        return absolute.mean()
    squared = (weights * error.square()).mean(dim=(1, 2, 3))
    return 0.005 * (torch.log1p(squared / 1e-5) + torch.log1p(absolute / 1e-3)).mean()


def frequency_loss(sr: Tensor, gt: Tensor) -> Tensor:
    """Mean absolute error of the unnormalised 2D Fourier transform's real and imaginary parts (MIMO-UNet, arXiv:2108.05054)."""
    return torch.view_as_real(torch.fft.rfft2(sr.float() - gt.float())).abs().mean()


def color_loss(sr: Tensor, gt: Tensor, side: int = 8) -> Tensor:
    """Mean absolute difference of the mean colours of `side` x `side` squares. Detail, which a discriminator may change, is ignored."""
    return F.avg_pool2d(sr.float() - gt.float(), side).abs().mean()


class Losses(nn.Module):
    """The losses of a run."""

    def __init__(self, config: TrainConfig):
        super().__init__()
        self.config = config
        self.filters = RandomFilterLoss(config.seed) if config.filter_weight else None
        self.features = FeatureLoss(config.feature_file) if config.feature_weight else None

    def forward(self, sr: Tensor, gt: Tensor, run: RunState, done: float) -> dict[str, Tensor]:
        """Weighted losses by name; training minimizes their sum. `done` is the fraction of the run that is done."""
        config = self.config
        flat_weight = 1.0 if done < config.edge_start else config.flat_weight
        terms = {"loss": pixel_loss(sr, gt, flat_weight, config.pixel_loss)}
        if config.frequency_weight:
            terms["loss_frequency"] = config.frequency_weight * frequency_loss(sr, gt)
        if self.filters is not None:
            terms["loss_filters"] = config.filter_weight * self.filters(sr, gt, run.progress.step)
        if config.color_weight:
            terms["loss_color"] = config.color_weight * color_loss(sr, gt)
        if self.features is not None:
            terms["loss_features"] = config.feature_weight * self.features(sr, gt)
        if run.net_d is not None and run.progress.gan_steps:
            weight = config.gan_weight * min(1.0, run.progress.gan_steps / config.gan_ramp)
            terms["loss_gan"] = weight * generator_loss(run.net_d.requires_grad_(False), sr, gt, config.gan_relativistic)
            run.net_d.requires_grad_(True)
        return terms
