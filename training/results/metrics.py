"""Image quality metrics. Images are `(b, 3, h, w)`, RGB in [0, 1]; borders that should not count are cut off before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import sobel_magnitude


def quantize(image: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to 256 levels, in float32."""
    return (image.float().clamp(0, 1) * 255).round() / 255


def luma(image: Tensor) -> Tensor:
    """BT.601 luma in [16, 235] / 255 `(b, 1, h, w)`, the Y channel of super-resolution papers."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=image.device, dtype=image.dtype) / 255
    return (image * weights[:, None, None]).sum(1, keepdim=True) + 16 / 255


def psnr(sr: Tensor, gt: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, peak 1; only over the pixels of a boolean mask if one is given (NaN if it is empty)."""
    error = (sr - gt).square()
    error = error.mean() if mask is None else error[mask.expand_as(error)].mean()
    return float(-10 * error.clamp_min(1e-12).log10())


def ssim(sr: Tensor, gt: Tensor) -> float:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, range 1, valid windows only."""

    def blur(x: Tensor) -> Tensor:
        return gaussian_blur(x, sigma=1.5, radius=5)

    mu_x, mu_y = blur(sr), blur(gt)
    var_x, var_y = blur(sr * sr) - mu_x**2, blur(gt * gt) - mu_y**2
    covariance = blur(sr * gt) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mu_x * mu_y + c1) * (2 * covariance + c2)) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return float(similarity.mean())


def gaussian_blur(image: Tensor, sigma: float, radius: int) -> Tensor:
    """Gaussian blur without padding: `(b, c, h, w)` loses `radius` pixels on every side."""
    axis = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    window = (-axis.square() / (2 * sigma**2)).exp()
    window = (window / window.sum()).expand(image.shape[1], 1, 1, -1)
    image = F.conv2d(image, window, groups=image.shape[1])
    return F.conv2d(image, window.transpose(2, 3), groups=image.shape[1])


def edge_mask(gt: Tensor) -> Tensor:
    """Mask of edges in the true luma: Sobel magnitude above 0.1."""
    return sobel_magnitude(gt) > 0.1


def flat_mask(gt: Tensor) -> Tensor:
    """Mask of flat areas in the true luma: Sobel magnitude below 0.02."""
    return sobel_magnitude(gt) < 0.02


def sharpness(sr: Tensor, gt: Tensor) -> float:
    """RMS of the Sobel magnitude divided by the true image's: below 1 is softer, above 1 is sharper (NaN if the true image is flat).

    RMS because the plain mean of an edge's slope is its height, however wide the edge is.
    """
    truth = sobel_magnitude(gt).square().mean()
    return float((sobel_magnitude(sr).square().mean() / truth).sqrt()) if truth > 0 else float("nan")


def color_shift(sr: Tensor, gt: Tensor, side: int = 16) -> float:
    """Mean absolute difference of the mean colours of `side` x `side` squares, in levels of 255; differences in detail do not count."""
    return float(255 * (F.avg_pool2d(sr, side) - F.avg_pool2d(gt, side)).abs().mean())


def shift(sr: Tensor, gt: Tensor, scale: int) -> tuple[float, float]:
    """Shift of `sr` against `gt` (y, x) in pixels, positive to the bottom right; accurate for shifts of up to a few pixels.

    Iterated least squares on the luma's gradient (Lucas and Kanade 1981). Both images are blurred first, so that detail in only one of them
    does not bias the estimate. Only the centre of large images is used. NaN for images that are too small or without gradient.
    """
    radius = 3 * scale
    top, left = (max(0, (side - 512) // 2) for side in gt.shape[2:])
    sr, gt = (image[..., top : top + 512, left : left + 512] for image in (sr, gt))
    if min(gt.shape[2:]) < 2 * radius + 16:
        return float("nan"), float("nan")
    a, b = (gaussian_blur(luma(image).double(), sigma=scale, radius=radius) for image in (sr, gt))
    total = torch.zeros(2, dtype=a.dtype, device=a.device)
    inner = (..., slice(4, -4), slice(4, -4))
    for _ in range(5):
        moved = _translate(a, -total)
        gradient = torch.stack([axis[inner].flatten() for axis in torch.gradient((moved + b) / 2, dim=(2, 3))], 1)
        difference = (moved - b)[inner].flatten()
        normal = gradient.T @ gradient
        if torch.linalg.det(normal) < 1e-12:
            return float("nan"), float("nan")
        total = total - torch.linalg.solve(normal, gradient.T @ difference)
    return float(total[0]), float(total[1])


def _translate(image: Tensor, offset: Tensor) -> Tensor:
    """Move an image's content by a fraction of a pixel (y, x); linear, because PyTorch's bicubic filter bends ramps."""
    height, width = image.shape[2:]
    y = torch.arange(height, device=image.device, dtype=image.dtype) - offset[0]
    x = torch.arange(width, device=image.device, dtype=image.dtype) - offset[1]
    grid = torch.stack(torch.meshgrid((2 * x + 1) / width - 1, (2 * y + 1) / height - 1, indexing="xy"), -1)
    return F.grid_sample(image, grid[None].expand(image.shape[0], -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False)
