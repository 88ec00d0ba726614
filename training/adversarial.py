"""The discriminator and its losses. Images are `(b, 3, h, w)` in [0, 1]; losses are scalars in float32.

The stage follows Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833): a U-Net with spectral normalisation that judges every pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..arch import TransformerSR
from ..arch.attention import without_autocast

R1_EVERY = 16
"""Steps between R1 penalties, which are weighted by this number (lazy regularisation: Karras et al. 2020, arXiv:1912.04958)."""


class UNetDiscriminator(nn.Module):
    """One logit per pixel, from three downsampling and three upsampling stages with skips. Always in float32 for spectral normalisation.

    `width` is the number of channels at full size; 32 costs almost twice as much as a base network at x4, 64 seven times. `accuracy` is a
    moving average of its accuracy, which the training loop updates.
    """

    accuracy: Tensor

    def __init__(self, width: int = 32):
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            spectral_norm(nn.Conv2d(width * 2**level, width * 2 ** (level + 1), 4, stride=2, padding=1, bias=False)) for level in range(3)
        )
        self.up = nn.ModuleList(
            spectral_norm(nn.Conv2d(width * 2 ** (level + 1), width * 2**level, 3, padding=1, bias=False)) for level in (2, 1, 0)
        )
        self.tail = nn.ModuleList(spectral_norm(nn.Conv2d(width, width, 3, padding=1, bias=False)) for _ in range(2))
        self.conv_last = nn.Conv2d(width, 1, 3, padding=1)
        self.register_buffer("accuracy", torch.tensor(0.5))

    def forward(self, image: Tensor) -> Tensor:
        """Map `(b, 3, h, w)` to logits `(b, 1, h, w)`, high for real; sides must be multiples of 8."""
        with without_autocast(image):
            x = (image.float() - 0.5).contiguous(memory_format=TransformerSR.memory_format(image.device))  # a third faster on CPUs
            x = self._activate(self.conv_first(x))
            skips = []
            for conv in self.down:
                skips.append(x)
                x = self._activate(conv(x))
            for conv in self.up:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
                x = self._activate(conv(x)) + skips.pop()
            for conv in self.tail:
                x = self._activate(conv(x))
            return self.conv_last(x)

    @staticmethod
    def _activate(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2)


def discriminator_loss(net_d: nn.Module, sr: Tensor, gt: Tensor, relativistic: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Non-saturating logistic loss of the discriminator, and its metrics: mean logits of real and fake images, and its accuracy.

    `softplus(-D(gt)) + softplus(D(sr))`; relativistic (paired, as in Huang et al. 2024, arXiv:2501.05441): `softplus(D(sr) - D(gt))`.
    """
    real, fake = net_d(torch.cat([gt, sr.detach()])).chunk(2)  # in one pass, as each pass updates the spectral norm
    loss = F.softplus(fake - real).mean() if relativistic else F.softplus(-real).mean() + F.softplus(fake).mean()
    real, fake = real.detach(), fake.detach()
    accuracy = (real > fake).float().mean() if relativistic else ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    return loss, {"d_real": real.mean(), "d_fake": fake.mean(), "d_accuracy": accuracy}


def generator_loss(net_d: nn.Module, sr: Tensor, gt: Tensor, relativistic: bool = False) -> Tensor:
    """Adversarial loss of the network: `softplus(-D(sr))`, or relativistic `softplus(D(gt) - D(sr))` without a gradient through `D(gt)`."""
    if relativistic:
        real, fake = net_d(torch.cat([gt, sr])).chunk(2)
        return F.softplus(real.detach() - fake).mean()
    return F.softplus(-net_d(sr)).mean()


def r1_penalty(net_d: nn.Module, gt: Tensor) -> Tensor:
    """Half the squared gradient norm of the discriminator at real images, mean over samples (Mescheder et al. 2018, arXiv:1801.04406)."""
    gt = gt.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net_d(gt).sum(), gt, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2
