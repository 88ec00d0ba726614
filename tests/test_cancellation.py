"""Cancelling from a progress callback leaves no file, no tensor and no changed model behind."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

from transformersr import Upscaler
from transformersr.upscale.batch import Job, run_jobs
from transformersr.upscale.engine import upscale

from random_models import V2, random_model
from synthetic_images import synthetic_image


class Cancelled(Exception):
    pass


def cancel_at(number):
    """Return a progress callback that cancels at its call with this number."""
    numbers = itertools.count()

    def progress(*call):
        if next(numbers) == number:
            raise Cancelled

    return progress


def live_tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_cancelling_leaves_no_files_or_tensors(folder, tmp_path):
    upscaler, calls = Upscaler(random_model(V2)), []
    job = Job(tmp_path / "in.png", tmp_path / "out.png")
    synthetic_image(0, 12).convert("RGBA").resize((9, 14)).save(job.source)
    options = {"factor": 3}  # two passes of the network, then a resize
    run_jobs([job], upscaler, **options, on_progress=lambda *call: calls.append(call))
    expected, before = job.target.read_bytes(), live_tensors()
    job.target.unlink()
    for number in range(len(calls)):
        with pytest.raises(Cancelled):
            run_jobs([job], upscaler, **options, on_progress=cancel_at(number))
        assert {path.name for path in tmp_path.iterdir()} == {"in.png", "out.png"} if number == len(calls) - 1 else {"in.png"}
        job.target.unlink(missing_ok=True)
    assert live_tensors() == before
    run_jobs([job], upscaler, **options)
    assert job.target.read_bytes() == expected
    assert len(calls) > 5


def test_cancelling_a_float32_retry_restores_half_precision(caplog):
    model, calls = random_model(V2), []
    with torch.no_grad():
        model.conv_first.weight.mul_(1e5)  # overflows in half precision, so the image is retried in float32
        model.upsample.weight.mul_(1e-3)
    image = torch.rand(1, 3, 16, 16)
    expected = upscale(model.half(), image, on_progress=lambda *call: calls.append(call))
    for number in range(len(calls)):
        with pytest.raises(Cancelled):
            upscale(model, image, on_progress=cancel_at(number))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert torch.equal(upscale(model, image), expected)
