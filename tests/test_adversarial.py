"""The discriminator, the adversarial losses and the pattern losses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from transformersr.training import steps
from transformersr.training.adversarial import UNetDiscriminator, discriminator_loss, generator_loss, r1_penalty
from transformersr.training.perceptual import VGG19_LAYERS, FeatureLoss, RandomFilterLoss
from transformersr.training.run_state import Progress


def test_discriminator_scores_every_pixel_and_has_4_38_million_parameters():
    assert UNetDiscriminator(4)(torch.rand(2, 3, 24, 32)).shape == (2, 1, 24, 32)
    assert sum(parameter.numel() for parameter in UNetDiscriminator(64).parameters()) == pytest.approx(4.38e6, rel=0.01)


def test_discriminator_learns_to_tell_noise_from_flat_images():
    torch.manual_seed(0)
    net_d = UNetDiscriminator(4)
    optimizer = torch.optim.AdamW(net_d.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss, figures = discriminator_loss(net_d, torch.rand(2, 3, 16, 16), torch.rand(2, 1, 1, 1).expand(-1, 3, 16, 16))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert figures["d_real"] > figures["d_fake"]


@pytest.mark.parametrize("relativistic", [False, True])
def test_generator_loss_reaches_the_generator_and_discriminator_loss_does_not(relativistic):
    net_d = UNetDiscriminator(4).requires_grad_(False)
    sr = torch.rand(1, 3, 16, 16, requires_grad=True)
    generator_loss(net_d, sr, torch.rand(1, 3, 16, 16), relativistic).backward()
    assert sr.grad.abs().sum() > 0
    net_d.requires_grad_(True)
    loss, _ = discriminator_loss(net_d, sr, torch.rand(1, 3, 16, 16), relativistic)
    sr.grad = None
    loss.backward()
    assert sr.grad is None
    assert all(parameter.grad is not None for parameter in net_d.parameters())


def test_r1_is_half_the_squared_gradient():
    def linear(image):
        return (image * 0.5).sum(dim=(1, 2, 3))

    assert r1_penalty(linear, torch.rand(2, 3, 4, 4)).item() == pytest.approx(0.25 * 48 / 2)


def test_filter_loss_measures_patterns_and_ignores_colours():
    loss, gt = RandomFilterLoss(), torch.rand(1, 3, 16, 16)
    floor = loss(gt, gt, 0)
    assert floor == pytest.approx(1e-3, rel=1e-3)
    grey = 0.1 * torch.ones_like(gt)
    assert loss(gt + grey, gt, 0) == pytest.approx(floor.item(), rel=1e-2)
    assert loss(gt.roll(1, 3), gt, 0) > 10 * floor
    assert loss(gt.roll(1, 3), gt, 0) != loss(gt.roll(1, 3), gt, 1)
    assert torch.equal(RandomFilterLoss().filters, loss.filters)


def test_feature_loss_accepts_vgg19_weights_and_rejects_others(tmp_path):
    widths, channels, weights = {0: 4, 2: 4, 5: 6, 7: 6}, 3, {}
    for index in VGG19_LAYERS:
        width = widths.get(index, 8)
        weights[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * 0.1
        weights[f"features.{index}.bias"] = torch.zeros(width)
        channels = width
    torch.save(weights, tmp_path / "vgg.pth")
    loss = FeatureLoss(tmp_path / "vgg.pth")
    gt, sr = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32, requires_grad=True)
    assert loss(gt, gt) == 0
    loss(sr, gt).backward()
    assert sr.grad.abs().sum() > 0
    del weights["features.34.weight"]
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"features.34.*VGG19"):
        FeatureLoss(tmp_path / "other.pth")


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this PyTorch has a scaler for CUDA alone")
def test_nan_discriminator_gradient_skips_the_fp16_step_of_both_networks():
    net_g, net_d = nn.Linear(1, 1), nn.Linear(1, 1)
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(net_g.parameters(), lr=1.0)
    run = SimpleNamespace(net_d=net_d, optimizer_d=torch.optim.SGD(net_d.parameters(), lr=1.0), scaler=scaler, progress=Progress())
    nets = SimpleNamespace(optimizer=SimpleNamespace(step=lambda: (scaler.step(optimizer), scaler.update()), zero_grad=optimizer.zero_grad))
    for bad, taken in ((1.0, True), (float("nan"), False), (1.0, True)):
        before = net_g.weight.item(), net_d.weight.item()
        scaler.scale(net_g(torch.ones(1))).sum().backward()
        (net_d(torch.ones(1)) * bad).sum().backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(net_g.parameters(), 1.0)
        assert steps.optimizer_step(run, nets, norm) == taken
        assert (net_g.weight.item() != before[0], net_d.weight.item() != before[1]) == (taken, taken)
