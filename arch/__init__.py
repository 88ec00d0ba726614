"""The network: tensors in, tensors out."""

from .model import VARIANTS, TransformerSR, TransformerSRConfig
from .state_dict import recognise
from .streaming import stream

__all__ = ["VARIANTS", "TransformerSR", "TransformerSRConfig", "recognise", "stream"]
