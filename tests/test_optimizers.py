"""Optimisers: Muon's orthogonalized steps, and AdamW for the other parameters."""

import copy

import pytest
import torch

from transformersr.arch import TransformerSR, TransformerSRConfig
from transformersr.training.config import TrainConfig
from transformersr.training.optimizers import Muon, make_optimizer, orthogonalize

SMALL = TransformerSRConfig(scale=2, embed_dim=16, num_heads=2, blocks="RWC")


@pytest.mark.parametrize("shape", [(48, 48), (96, 48), (48, 96)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    sizes = torch.linalg.svdvals(orthogonalize(torch.randn(2, *shape)))
    assert sizes.min() > 0.4
    assert sizes.max() < 1.3


def test_muon_steps_queries_keys_and_values_as_separate_matrices():
    torch.manual_seed(0)
    together, alone = torch.nn.Parameter(torch.zeros(48, 16)), torch.nn.Parameter(torch.zeros(16, 16))
    together.grad = torch.randn(48, 16)
    alone.grad = together.grad[16:32].clone()
    Muon([together, alone], rate=0.1, decay=0.0).step()
    torch.testing.assert_close(together[16:32], alone)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_moves_by_about_the_learning_rate(name):
    torch.manual_seed(0)
    net_g = TransformerSR(SMALL)
    before = {key: parameter.detach().clone() for key, parameter in net_g.named_parameters()}
    optimizer = make_optimizer(net_g, TrainConfig(optimizer=name, learning_rate=1e-2, weight_decay=0.0))
    for parameter in net_g.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for key, parameter in net_g.named_parameters():
        moved = (parameter - before[key]).square().mean().sqrt()
        assert 1e-3 < moved < 1.2e-2, key


def test_restored_optimizer_continues_exactly():
    def steps(net_g, optimizer, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            for parameter in net_g.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    config = TrainConfig(learning_rate=1e-2)
    torch.manual_seed(0)
    original = TransformerSR(SMALL)
    optimizer = make_optimizer(original, config)
    steps(original, optimizer, [1])
    resumed = TransformerSR(SMALL)
    resumed.load_state_dict(original.state_dict())
    restored = make_optimizer(resumed, config)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(original, optimizer, [2])
    steps(resumed, restored, [2])
    for expected, result in zip(original.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, result)
