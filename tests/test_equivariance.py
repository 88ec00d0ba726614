"""Equivariant training: rotating or mirroring an image rotates or mirrors the result."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from transformersr.arch import VARIANTS, TransformerSR
from transformersr.training import networks
from transformersr.training.config import from_values
from transformersr.training.equivariance import ORDER, Symmetry, apply, is_equivariant
from transformersr.training.run_state import RunState
from transformersr.training.train import train
from transformersr.upscale.checkpoint import load_model, save_model

from random_models import V1, random_model
from short_runs import SETTINGS
from synthetic_images import synthetic_image

CONFIGS = {
    "tiny x4": VARIANTS["tiny"],
    "tiny x2": dataclasses.replace(VARIANTS["tiny"], scale=2),
    "tiny x3": dataclasses.replace(VARIANTS["tiny"], scale=3),
    "restoration": dataclasses.replace(VARIANTS["tiny"], scale=1),
    "v1": dataclasses.replace(VARIANTS["original"], embed_dim=32, num_heads=2, blocks="WCWC"),
}


def largest_difference(net: TransformerSR, image: torch.Tensor) -> float:
    """Between turned results and results of turned images, relative to the spread of the results."""
    with torch.inference_mode():
        result = net(image)
        return max(float((net(apply(element, image)) - apply(element, result)).abs().max() / result.std()) for element in range(ORDER))


def randomized(config) -> TransformerSR:
    """A network all of whose parameters are random and matter, norms, biases and position tables included."""
    net = TransformerSR(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / (parameter[0].numel() if parameter.ndim > 1 else 4) ** 0.5)
    return net


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_projected_weights_turn_and_mirror_results_exactly(config):
    net, image = randomized(config), torch.rand(1, 3, 32, 32)
    assert largest_difference(net, image) > 0.1
    assert not is_equivariant(net)
    symmetry = Symmetry(net)
    symmetry.project(keep_scale=True)
    assert largest_difference(net, image) < 1e-4
    assert is_equivariant(net)
    once = [parameter.clone() for parameter in net.parameters()]
    symmetry.project()
    assert all(torch.allclose(parameter, before, atol=1e-6) for parameter, before in zip(net.parameters(), once, strict=True))


def test_projected_gradient_is_the_mean_over_all_orientations():
    net, image = randomized(VARIANTS["tiny"]), torch.rand(1, 3, 16, 16)
    target = torch.rand(1, 3, 64, 64)
    symmetry = Symmetry(net)
    symmetry.project(keep_scale=True)

    def gradients(turns) -> list[torch.Tensor]:
        net.zero_grad()
        for element in turns:
            ((net(apply(element, image)) - apply(element, target)).square().mean() / len(turns)).backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    mean = gradients(range(ORDER))
    gradients([0])
    symmetry.project_gradients()
    for parameter, expected in zip(net.parameters(), mean, strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-3 * float(expected.abs().max()) + 1e-9)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_keeps_weights_equivariant(tmp_path, optimizer):
    for index in range(4):
        synthetic_image(index).save(tmp_path / f"{index}.png")
    settings = {**SETTINGS, "init": "none", "equivariant": "auto", "optimizer": optimizer, "steps": 4, "learning_rate": 1e-2}
    trained = load_model(train(from_values(settings), tmp_path, tmp_path / "run").with_name("last.safetensors"))
    assert largest_difference(trained, torch.rand(1, 3, 16, 16)) < 1e-4
    resumed = train(from_values({**settings, "equivariant": "on", "steps": 8}), tmp_path, tmp_path / "run", resume=True)
    assert largest_difference(load_model(resumed.with_name("last.safetensors")), torch.rand(1, 3, 16, 16)) < 1e-4


def test_given_weights_decide_whether_a_run_is_equivariant(tmp_path):
    save_model(random_model(VARIANTS["tiny"]), tmp_path / "plain.safetensors")
    Symmetry(given := randomized(VARIANTS["tiny"])).project()
    save_model(given, tmp_path / "equivariant.safetensors", torch.float16)
    values = {"device": "cpu", "size": "tiny"}
    for init, expected in (("none", True), ("plain", False), ("equivariant", True)):
        file = init if init == "none" else str(tmp_path / f"{init}.safetensors")
        run = RunState.start(from_values({**values, "init": file}), torch.device("cpu"))
        assert (run.symmetry is not None) == expected
    with pytest.raises(ValueError, match="is not; set equivariant to off"):
        networks.initial_network(from_values({**values, "equivariant": "on", "init": str(tmp_path / "plain.safetensors")}))
    deeper = networks.initial_network(from_values({"size": "base", "equivariant": "on", "init": str(tmp_path / "equivariant.safetensors")}))
    assert is_equivariant(deeper)
    assert largest_difference(deeper.eval(), torch.rand(1, 3, 16, 16)) < 1e-2  # float16 weights


def test_odd_heads_cannot_be_equivariant():
    net = random_model(dataclasses.replace(V1, embed_dim=12, num_heads=1))
    assert not is_equivariant(net)
    with pytest.raises(ValueError, match="multiple of 8"):
        Symmetry(net)
