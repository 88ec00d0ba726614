"""Names and inputs of the ComfyUI nodes, and the workflows shipped with them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
UPSCALE, VIDEO, LOADER = "TransformerSRUpscale", "TransformerSRUpscaleVideo", "TransformerSRModelLoader"
SIZE = ["size_by", "factor", "width", "height", "longest_side"]
INPUTS = {
    UPSCALE: ["image", "model_name", *SIZE, "precision", "memory_gb", "mask", "crispness", "ensemble"],
    VIDEO: ["video", "model_name", *SIZE, "quality", "precision", "memory_gb", "crispness", "ensemble"],
    LOADER: ["model_name", "crispness"],
}
"""In the order of the values in saved workflows; new inputs go at the end."""
WIDGETS = {node: [name for name in names if name not in ("image", "video", "mask")] for node, names in INPUTS.items()}
