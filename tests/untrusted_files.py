"""Read files that are not what they say, and check how they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save

from transformersr.arch import CheckpointError, load_model

FEW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For tests with random examples."""


def refused(path: Path, error: type[Exception] = CheckpointError, read=load_model) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(error) as caught:
        read(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 1500
    return text


def read_or_refused(path: Path, error: type[Exception], read) -> None:
    try:
        read(path)
    except error:
        refused(path, error, read)


def save_pickle(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    return path


def save_any(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """As safetensors; pickled where there are complex numbers, which older ones of it do not take."""
    if any(value.is_complex() for value in state.values()):
        return save_pickle(path, state)
    path.write_bytes(save(state))
    return path
