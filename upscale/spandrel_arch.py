"""TransformerSR as an architecture of spandrel, the library that most programs use to load upscalers.

Such a program runs the network in its own overlapping tiles, whereas `Upscaler` gives the exact full-frame result. It also passes tensors
without their file's name, so a file of the original author's is assumed to have a window size of 4 and 16 heads, like the newer ones.
"""

from __future__ import annotations

import torch
from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling, SizeRequirements
from spandrel.util import KeyCondition

from ..arch import TransformerSR, TransformerSRConfig
from ..arch.state_dict import SIGNATURES, StateDict, recognise

ID = "TransformerSR"


class TransformerSRArch(Architecture[TransformerSR]):
    """Recognises our files, and both formats of the original author's, by their keys."""

    def __init__(self) -> None:
        super().__init__(id=ID, name=ID, detect=KeyCondition.has_any(*(KeyCondition.has_all(*names) for names in SIGNATURES)))

    def load(self, state_dict: dict[str, torch.Tensor]) -> ImageModelDescriptor[TransformerSR]:
        """Build the network from a state dict. Raises ValueError with a one-sentence message."""
        checkpoint = recognise(state_dict, {})
        return describe(checkpoint.config, checkpoint.weights, self)


def describe(
    config: TransformerSRConfig, weights: StateDict, architecture: Architecture[TransformerSR] | None = None
) -> ImageModelDescriptor[TransformerSR]:
    """Wrap a network in spandrel's model descriptor, ready to run."""
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
    """Let spandrel's loaders open our files in this process. Safe to call more than once."""
    if ID not in MAIN_REGISTRY:
        MAIN_REGISTRY.add(ArchSupport.from_architecture(TransformerSRArch()))
