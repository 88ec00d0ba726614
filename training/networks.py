"""The network of a run and its moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..arch import TransformerSR
from ..upscale.checkpoint import load_model
from ..upscale.upscaler import find_model
from .config import TrainConfig


def initial_network(config: TrainConfig) -> TransformerSR:
    """Build the network of a run, with the weights of `config.init` if given; from another scale, all layers but the last are used."""
    net_g = TransformerSR(config.network())
    if config.init != "none":
        given = load_model(find_model(config.init))
        if dataclasses.replace(given.config, scale=config.scale) != net_g.config:
            raise ValueError(f"init: {config.init} is a network of {given.config}; expected {net_g.config} at any scale")
        shapes = {name: tensor.shape for name, tensor in net_g.state_dict().items()}
        weights = {name: tensor for name, tensor in given.state_dict().items() if name != "architecture" and tensor.shape == shapes[name]}
        net_g.load_state_dict(weights, strict=False)
    return net_g


@torch.no_grad()
def update_average(ema: nn.Module, net_g: nn.Module, decay: float, step: int) -> None:
    """Update the moving average of the weights; the first steps have more weight, so that the initial weights are forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(net_g.parameters()), weight)


def saved_bytes(forward: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Run a forward pass and count the bytes that it saves for the backward pass, including parameters."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(image)
    return sum(storages.values())
