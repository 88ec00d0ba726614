"""Tiny random networks."""

from __future__ import annotations

import torch

from transformersr.arch import TransformerSR, TransformerSRConfig

V1 = TransformerSRConfig("v1", scale=2, embed_dim=16, num_heads=2, blocks="WCWC", window_size=4, mlp_ratio=4)
V2 = TransformerSRConfig("v2", scale=2, embed_dim=16, num_heads=2, blocks="RWRCRWRC", window_size=4)


def random_model(config: TransformerSRConfig, seed: int = 0, size: float = 0.05) -> TransformerSR:
    """Return a network in which every parameter has an effect, including those initialised to zero."""
    torch.manual_seed(seed)
    model = TransformerSR(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return model.eval()
