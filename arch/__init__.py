"""The network: tensors in, tensors out."""

from .checkpoint import CheckpointError, load_model, save_model
from .model import VARIANTS, TransformerSR, TransformerSRConfig
from .streaming import stream

__all__ = ["VARIANTS", "CheckpointError", "TransformerSR", "TransformerSRConfig", "load_model", "save_model", "stream"]
