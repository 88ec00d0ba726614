"""Read invalid files and check that they are rejected with one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save

from transformersr.upscale.checkpoint import CheckpointError, load_model

FEW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""Hypothesis settings: few, reproducible examples."""


def assert_rejected(path: Path, error: type[Exception] = CheckpointError, read=load_model) -> str:
    """Assert that a file is rejected with one sentence that names it, and return the sentence."""
    with pytest.raises(error) as caught:
        read(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 1500
    return text


def read_or_reject(path: Path, error: type[Exception], read) -> None:
    try:
        read(path)
    except error:
        assert_rejected(path, error, read)


def save_pickle(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    return path


def save_any(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Save as safetensors, or pickled if there are complex numbers, which older safetensors do not support."""
    if any(value.is_complex() for value in state.values()):
        return save_pickle(path, state)
    path.write_bytes(save(state))
    return path
