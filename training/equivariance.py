"""Equivariant weights: rotating or mirroring an image rotates or mirrors the network's result, exactly.

The features of the network are taken as groups of eight channels, one for each element of the symmetry group of the square (the regular
representation of D4: Cohen & Welling 2016, arXiv:1602.07576). Rotating an image then rotates each channel and permutes those of a group.
Weights for which this holds form a linear subspace, and the projection onto it is the mean over eight permutations of a parameter's
values. The network itself does not change: the weights are ordinary ones that obey a constraint.

The projected gradient of a batch is the mean gradient over the batch in all eight orientations, at the price of one. Orthogonalising it
(Muon) or dividing it by elementwise statistics (AdamW) keeps it in the subspace.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..arch import TransformerSR, TransformerSRConfig

ORDER = 8
"""Elements of the group: `index % 4` quarter turns after mirroring if `index >= 4`."""
TOLERANCE = 0.01
"""Deviation from the subspace, relative to the largest value of a parameter, up to which weights count as equivariant (float16 rounds)."""

Moves = Callable[[int], Tensor]
"""For an element of the group: the positions to which it moves the channels of one side of a parameter."""


def apply(element: int, x: Tensor) -> Tensor:
    """Mirror and rotate the last two dimensions, which are equal."""
    return torch.rot90(x.flip(-1) if element >= 4 else x, element % 4, (-2, -1))


def _find(x: Tensor) -> int:
    """Return the element that turns `SQUARE` into `x`."""
    return next(element for element in range(ORDER) if torch.equal(apply(element, SQUARE), x))


SQUARE = torch.arange(4).view(2, 2)
PRODUCTS = torch.tensor([[_find(apply(a, apply(b, SQUARE))) for b in range(ORDER)] for a in range(ORDER)])
INVERSES = [PRODUCTS[element].tolist().index(0) for element in range(ORDER)]


def can_be_equivariant(config: TransformerSRConfig) -> bool:
    """Whether the channels of a head form whole groups."""
    return config.embed_dim % (config.num_heads * ORDER) == 0


def is_equivariant(net: TransformerSR) -> bool:
    """Whether the weights of a network are equivariant, up to `TOLERANCE`."""
    return can_be_equivariant(net.config) and Symmetry(net).deviation() <= TOLERANCE


class Symmetry:
    """The projection of a network's parameters onto the subspace of equivariant ones.

    Raises ValueError if the channels of a head do not form whole groups.
    """

    def __init__(self, net: TransformerSR):
        if not can_be_equivariant(net.config):
            raise ValueError(f"equivariant weights need heads of a multiple of {ORDER} channels; this network has {net.config}")
        self.net = net
        self._indices: dict[str, Tensor] = {}
        shared: dict[tuple[str, torch.Size], Tensor] = {}  # eight integers per value, so parameters of one kind and shape share them
        for name, parameter in net.named_parameters():
            if name.endswith("temperature"):  # one value per head, without channels
                continue
            kind = next((kind for kind in ("conv_first.weight", "upsample", "position_bias") if kind in name), "features")
            key = kind, parameter.shape
            if key not in shared:
                shared[key] = self._index(kind, parameter.shape).to(net.device)
            self._indices[name] = shared[key]

    def project(self, keep_scale: bool = False) -> None:
        """Project the parameters. `keep_scale` gives matrices back their standard deviation, as random ones lose most of it."""
        for name, index in self._indices.items():
            parameter = self.net.get_parameter(name).data
            mean = _mean(parameter, index)
            if keep_scale and parameter.ndim > 1:
                mean *= parameter.std() / mean.std().clamp_min(1e-12)
            parameter.copy_(mean)

    def project_gradients(self) -> None:
        """Project the gradients."""
        for name, index in self._indices.items():
            gradient = self.net.get_parameter(name).grad
            if gradient is not None:
                gradient.copy_(_mean(gradient, index))

    def deviation(self) -> float:
        """Return the largest distance of a parameter from its projection, relative to its largest value."""
        distances = [0.0]
        for name, index in self._indices.items():
            parameter = self.net.get_parameter(name).data
            distances.append(float((parameter - _mean(parameter, index)).abs().max() / parameter.abs().max().clamp_min(1e-12)))
        return max(distances)

    def _index(self, kind: str, shape: torch.Size) -> Tensor:
        """Return `(8, n)`: where the mean of each of the `n` values of a parameter finds its eight terms."""
        config, positions = self.net.config, torch.arange(shape.numel()).view(shape)
        if kind == "position_bias":  # a square of offsets for each head
            side = 2 * config.window_size - 1
            square = positions.view(side, side, -1).permute(2, 0, 1)
            return torch.stack([apply(INVERSES[element], square).permute(1, 2, 0).flatten() for element in range(ORDER)])
        moves_out = _pixels(shape[0], config.scale * config.unshuffle) if kind == "upsample" else _features(shape[0])
        rows = []
        for element in range(ORDER):
            moved = positions[moves_out(element)]
            if len(shape) > 1:
                moves_in = _pixels(shape[1], config.unshuffle) if kind == "conv_first.weight" else _features(shape[1])
                moved = moved[:, moves_in(element)]
            if len(shape) == 4:
                moved = apply(INVERSES[element], moved)
            rows.append(moved.flatten())
        return torch.stack(rows)


def _mean(values: Tensor, index: Tensor) -> Tensor:
    return values.flatten()[index].mean(0).view_as(values)


def _features(channels: int) -> Moves:
    """Groups of eight channels."""
    groups = torch.arange(0, channels, ORDER)[:, None]
    return lambda element: (groups + PRODUCTS[element]).flatten()


def _pixels(channels: int, side: int) -> Moves:
    """Squares of `side` x `side` pixels as channels, as `pixel_shuffle` takes them."""

    def moves(element: int) -> Tensor:
        square = torch.arange(side**2)
        positions = torch.empty_like(square)
        positions[apply(element, square.view(side, side)).flatten()] = square
        return (torch.arange(0, channels, side**2)[:, None] + positions).flatten()

    return moves
