"""The network of a run and its moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..arch import TransformerSR
from ..arch.blocks import ChannelBlock, ResidualBlock, WindowBlock
from ..upscale.checkpoint import load_model
from ..upscale.upscaler import find_model
from .config import TrainConfig
from .equivariance import Symmetry, can_be_equivariant, is_equivariant


def initial_network(config: TrainConfig) -> TransformerSR:
    """Build the network of a run, with the weights of `config.init` if given.

    From another scale, all layers but the last are used. A network with more blocks than the given one first computes exactly the same,
    because its additional blocks start as the identity (Net2DeeperNet: Chen et al. 2016, arXiv:1511.05641).

    Random weights are equivariant unless `config.equivariant` is off or the given ones are not.

    Raises ValueError if the given network differs in anything else, or is not equivariant although `config.equivariant` is on.
    """
    net_g = TransformerSR(config.network())
    if config.equivariant != "off" and can_be_equivariant(net_g.config):
        Symmetry(net_g).project(keep_scale=True)
    if config.init != "none":
        given = load_model(find_model(config.init))
        comparable = dataclasses.replace(given.config, scale=config.scale, blocks=net_g.config.blocks)
        if comparable != net_g.config or not net_g.config.blocks.startswith(given.config.blocks):
            raise ValueError(
                f"init: {config.init} is a network of {given.config}; expected {net_g.config}, or its first blocks, at any scale"
            )
        if config.equivariant == "on" and not is_equivariant(given):
            raise ValueError(f"equivariant is on, but {config.init} is not; set equivariant to off, or init to none")
        for block in net_g.body[len(given.config.blocks) :]:
            _make_identity(block)
        shapes = {name: tensor.shape for name, tensor in net_g.state_dict().items()}
        weights = {name: tensor for name, tensor in given.state_dict().items() if name != "architecture" and tensor.shape == shapes[name]}
        net_g.load_state_dict(weights, strict=False)
    return net_g


def _make_identity(block: nn.Module) -> None:
    """Zero the last layer of each residual branch."""
    last: list[nn.Module] = []
    if isinstance(block, ResidualBlock):
        last = [block.conv2]
    elif isinstance(block, WindowBlock | ChannelBlock):
        last = [block.attention.proj, *([block.mlp.fc2] if block.mlp is not None else [])]
    for layer in last:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


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
