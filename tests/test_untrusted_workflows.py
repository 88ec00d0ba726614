"""Untrusted workflows: invalid node inputs are rejected in one sentence, and NaN in an image does not spread."""

from __future__ import annotations

import pytest
import torch

from transformersr.upscale.checkpoint import save_model

import comfyui_standin
from plain_v1 import random_state
from random_models import V2, random_model


@pytest.fixture
def node(tmp_path, monkeypatch):
    """The upscale node with a stand-in for ComfyUI."""
    (tmp_path / "models").mkdir()
    save_model(random_model(V2), tmp_path / "models" / "mine.safetensors")
    torch.save(random_state(pairs=1, dim=8, scale=2), tmp_path / "secret.pt")
    return comfyui_standin.install(monkeypatch, tmp_path).TransformerSRUpscale()


IMAGES = torch.full((1, 4, 4, 3), 0.5)
INPUTS = [
    ({"model_name": "../secret.pt"}, "no TransformerSR model of this name"),
    ({"model_name": "/etc/passwd"}, "no TransformerSR model of this name"),
    ({"model_name": "..\\secret.pt"}, "no TransformerSR model of this name"),
    ({"model_name": "a\n" * 9999}, "no TransformerSR model of this name"),
    ({"model_name": None}, "no TransformerSR model of this name"),
    ({"image": IMAGES[0]}, "of shape"),
    ({"image": None}, "NoneType"),
    ({"image": IMAGES[..., :2]}, "c = 1, 3 or 4"),
    ({"image": IMAGES[:0]}, "at least 1x1"),
    ({"image": IMAGES[:, :0]}, "at least 1x1"),
    ({"image": (255 * IMAGES).byte()}, "a float type"),
    ({"size_by": "factor", "factor": float("nan")}, "factor is nan"),
    ({"size_by": "factor", "factor": -1.0}, "above 0"),
    ({"size_by": "factor", "factor": 1e300}, "below 1000"),
    ({"size_by": "width and height", "width": -5}, "at least 1x1"),
    ({"size_by": "width and height"}, "both 0"),
    ({"mask": torch.ones(3, 4, 4)}, "mask has 3 frames"),
    ({"size_by": "width and height", "width": 10**9, "height": 10**9}, "more than is free"),
    ({"size_by": "longest side", "longest_side": -3}, "at least 1x1"),
    ({"memory_gb": float("nan")}, "memory_gb is nan"),
    ({"memory_gb": -1.0}, "memory_gb is -1"),
    ({"memory_gb": 1e-9}, "budget"),
    ({"precision": "fp4"}, "fp4"),
]


def test_invalid_inputs_are_rejected_in_one_sentence(node):
    for changed, words in INPUTS:
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            node.upscale(**{"image": IMAGES, "model_name": "mine.safetensors", **changed})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert "no TransformerSR model" in node.VALIDATE_INPUTS("../secret.pt")


def test_nan_in_an_image_does_not_spread(node):
    for value in (float("nan"), float("inf"), -1e30):
        assert node.upscale(IMAGES * value, "mine.safetensors")["result"][0].isfinite().all()
