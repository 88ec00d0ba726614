"""The optimisers: Muon and AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig


def make_optimizer(net_g: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Create the optimiser named by `config.optimizer`. Norms, biases, temperatures and position tables have no weight decay."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in net_g.named_parameters():
        if parameter.ndim < 2 or "position_bias" in name:
            no_decay.append(parameter)
        elif parameter.ndim == 2 or name.startswith("body."):
            matrices.append(parameter)
        else:
            others.append(parameter)  # the first and last convolutions, with pixels on one side
    decay = config.weight_decay
    if config.optimizer == "muon":
        return MuonAdamW(matrices, _param_groups(others, no_decay, decay), config.learning_rate, decay)
    return _adamw(_param_groups(matrices + others, no_decay, decay), config.learning_rate)


def _param_groups(decayed: list[nn.Parameter], no_decay: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    return [{"params": decayed, "weight_decay": decay}, {"params": no_decay, "weight_decay": 0.0}]


def _adamw(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices of `(n, rows, columns)`: all singular values become about 1 (0.7 to 1.2).

    Five Newton-Schulz iterations with the coefficients of Jordan et al. 2024 (kellerjordan.github.io/posts/muon).
    """
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        squares = x @ x.mT
        x = 3.4445 * x + (-4.7750 * squares + 2.0315 * squares @ squares) @ x
    return x if x.shape == matrices.shape else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum steps, orthogonalized so that all directions of a matrix move equally (Jordan et al. 2024).

    They are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so the same learning rates work for both. Convolution
    filters are treated as matrices `(out, in * height * width)`; queries, keys and values that share a matrix are split. `torch.optim.Muon`
    takes one matrix at a time, in bfloat16, which costs a sixth of a training step on a CPU.
    """

    def __init__(self, matrices: list[nn.Parameter], rate: float, decay: float):
        super().__init__(matrices, {"lr": rate, "weight_decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parts = 3 if parameter.ndim == 2 and parameter.shape[0] == 3 * parameter.shape[1] else 1
                    directions = self._nesterov(parameter, parameter.grad).chunk(parts)
                    for matrix, direction in zip(parameter.chunk(parts), directions, strict=True):
                        by_shape.setdefault((len(matrix), matrix[0].numel()), []).append((matrix, direction))
            for shape, pairs in by_shape.items():
                orthogonal = orthogonalize(torch.stack([direction.reshape(shape) for _, direction in pairs]))
                steps = [step.view_as(matrix) for step, (matrix, _) in zip(orthogonal, pairs, strict=True)]
                torch._foreach_add_([matrix for matrix, _ in pairs], steps, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _nesterov(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Update the momentum and return the Nesterov direction."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 0.05)
        return torch.lerp(gradient, momentum, 0.95)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for everything else, as one optimiser."""

    def __init__(self, matrices: list[nn.Parameter], others: list[dict[str, Any]], rate: float, decay: float):
        self.parts = Muon(matrices, rate, decay), _adamw(others, rate)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
