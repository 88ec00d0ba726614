"""TransformerSR: an upscaler for anime-style images.

    from transformersr import Upscaler
    large = Upscaler.from_pretrained()(image)

Names are loaded when they are first used, so that importing the package costs nothing. When ComfyUI imports it, its nodes are here too.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arch import TransformerSR, TransformerSRConfig, load_model
    from .upscale.upscaler import Upscaler, available_models

_HOMES = {
    "Upscaler": ".upscale.upscaler",
    "available_models": ".upscale.upscaler",
    "TransformerSR": ".arch",
    "TransformerSRConfig": ".arch",
    "load_model": ".arch",
}

__all__ = ["TransformerSR", "TransformerSRConfig", "Upscaler", "available_models", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


if {"comfy", "folder_paths"} <= sys.modules.keys():  # ComfyUI runs; that it could be imported would not be enough
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "web"
    __all__ += ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
