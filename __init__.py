"""TransformerSR: an upscaler for anime-style images.

    from transformersr import Upscaler
    large = Upscaler.from_pretrained()(image)

Names are loaded on first use, which keeps the import of the package fast. When ComfyUI imports it, the package also exports its nodes.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arch import TransformerSR, TransformerSRConfig
    from .upscale.checkpoint import load_model
    from .upscale.upscaler import Upscaler, available_models

_MODULES = {
    "Upscaler": ".upscale.upscaler",
    "available_models": ".upscale.upscaler",
    "TransformerSR": ".arch",
    "TransformerSRConfig": ".arch",
    "load_model": ".upscale.checkpoint",
}

__all__ = ["TransformerSR", "TransformerSRConfig", "Upscaler", "available_models", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


if {"comfy", "folder_paths"} <= sys.modules.keys():  # inside a running ComfyUI; merely having it installed is not enough
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "web"
    __all__ += ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
