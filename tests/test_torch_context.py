"""Results do not depend on the PyTorch settings of the calling program, and a forked process does not hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from transformersr import Upscaler
from transformersr.upscale.checkpoint import load_model, save_model

from random_models import V2, random_model

PROGRAM = Path(__file__).parent / "programs" / "fork_after_upscaling.py"
CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "default device": lambda: torch.device("meta"),
}


@pytest.fixture
def path(tmp_path):
    save_model(random_model(V2), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def results(upscaler):
    rng = np.random.default_rng(0)
    grey, alpha = rng.random((9, 12), np.float32), rng.random((9, 12, 4), np.float32)
    return [upscaler(grey), upscaler(alpha), upscaler(alpha, factor=1.5), upscaler(torch.from_numpy(alpha).movedim(2, 0)).numpy()]


@pytest.mark.parametrize("context", CONTEXTS)
def test_results_do_not_depend_on_torch_contexts(path, context):
    upscaler = Upscaler.from_pretrained(path, device="cpu", dtype="fp32")
    expected = results(upscaler)
    with CONTEXTS[context]():
        loaded = Upscaler.from_pretrained(path, device="cpu", dtype="fp32")
        inside = results(upscaler), results(loaded)
    for result in inside:
        assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_do_not_depend_on_the_default_dtype(path, default_dtype, dtype):
    upscaler = Upscaler.from_pretrained(path, device="cpu", dtype="fp32")
    expected = results(upscaler)
    default_dtype(dtype)
    loaded = Upscaler.from_pretrained(path, device="cpu", dtype="fp32")
    for result in (results(upscaler), results(loaded)):
        assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))
    assert torch.get_default_dtype() is dtype


def test_network_loaded_in_inference_mode_can_be_trained(path):
    with torch.inference_mode():
        model = load_model(path)
    model(torch.rand(1, 3, 8, 8)).mean().backward()
    assert model.conv_first.weight.grad is not None


def test_autocast_of_the_caller_is_restored(path):
    with torch.autocast("cpu", torch.bfloat16):
        Upscaler.from_pretrained(path, device="cpu")(np.zeros((4, 4, 3), np.uint8))
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system does not fork")
def test_forked_process_can_upscale(path):
    """As gunicorn does with --preload, and multiprocessing on Linux up to Python 3.13."""
    subprocess.run([sys.executable, PROGRAM, path], check=True, timeout=120)
