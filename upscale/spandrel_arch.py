"""TransformerSR as an architecture of spandrel, the library with which most programs load upscalers.

Such a program runs the network in overlapping tiles of its own, where `Upscaler` gives the exact full-frame result. And it shows us tensors
without their file's name: an original author's file is taken to have windows of 4 and 16 heads, as its newer ones have.
"""

from __future__ import annotations

import torch
from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling, SizeRequirements
from spandrel.util import KeyCondition

from ..arch import TransformerSR, TransformerSRConfig
from ..arch.checkpoint import StateDict, recognise
from .models import NAMES

ID = "TransformerSR"


class TransformerSRArch(Architecture[TransformerSR]):
    """Recognises our files and both generations of the original author's by their keys."""

    def __init__(self) -> None:
        super().__init__(id=ID, name=ID, detect=KeyCondition.has_any(*(KeyCondition.has_all(*names) for names in NAMES)))

    def load(self, state_dict: dict[str, torch.Tensor]) -> ImageModelDescriptor[TransformerSR]:
        """Build the network of a state dict. Raises ValueError with one sentence."""
        checkpoint = recognise(state_dict, {})
        return describe(checkpoint.config, checkpoint.weights, self)


def describe(
    config: TransformerSRConfig, weights: StateDict, architecture: Architecture[TransformerSR] | None = None
) -> ImageModelDescriptor[TransformerSR]:
    """A network as spandrel's users expect it, ready to run."""
    return ImageModelDescriptor(
        TransformerSR(config),
        weights,
        architecture=architecture or TransformerSRArch(),
        purpose="SR" if config.scale > 1 else "Restoration",
        tags=[config.design, f"{config.embed_dim}dim"],
        supports_half=True,
        supports_bfloat16=True,
        scale=config.scale,
        input_channels=config.channels,
        output_channels=config.channels,
        size_requirements=SizeRequirements(),
        tiling=ModelTiling.SUPPORTED,
    ).eval()


def register() -> None:
    """Let spandrel's loaders open our files, in this process. Once is enough, more do no harm."""
    if ID not in MAIN_REGISTRY:
        MAIN_REGISTRY.add(ArchSupport.from_architecture(TransformerSRArch()))
