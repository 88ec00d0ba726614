"""The engine: the same result with any memory budget, exact sizes, handled failures."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from transformersr.arch import VARIANTS, TransformerSR
from transformersr.arch.streaming import stream, total_rows
from transformersr.upscale import engine
from transformersr.upscale.engine import MemoryBudgetError, upscale, upscale_to
from transformersr.upscale.planning import Plan, Workload, make_plan, proportional_size, target_size

from random_models import V1, V2, random_model


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_smallest_budget_changes_only_the_band_height(config, monkeypatch):
    monkeypatch.setattr("transformersr.upscale.planning.CPU_BAND_BYTES", 2**40)
    model, image = random_model(config), torch.rand(2, 3, 96, 40)
    bands = []
    monkeypatch.setattr(
        engine, "stream", lambda model, image, band_rows, **options: bands.append(band_rows) or stream(model, image, band_rows, **options)
    )
    expected = upscale(model, image)
    least = Workload(config, 96, 40, 4).bytes_for(4)
    assert (upscale(model, image, memory=least) - expected).abs().max() <= 1e-5
    assert bands == [96, 4, 4]  # both images together, then one by one because they do not fit
    with pytest.raises(MemoryBudgetError, match=r"40x96.*raise the budget"):
        upscale(model, image, memory=least - 1)


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_batched_frames_match_single_frames(config):
    model, images, shapes = random_model(config), torch.rand(5, 3, 21, 13), []
    together = upscale(model, images, on_progress=lambda done, total: shapes.append((done, total)))
    alone = torch.cat([upscale(model, image[None]) for image in images])
    assert (together - alone).abs().max() <= 1e-5
    assert shapes[-1] == (5 * total_rows(model, 21),) * 2


def test_frames_run_one_by_one_if_a_batch_does_not_fit(monkeypatch):
    model, counts = random_model(V2), []

    def full(model, image, band_rows, **options):
        counts.append(len(image))
        if len(image) > 1:
            raise RuntimeError("CUDA out of memory")
        return stream(model, image, band_rows, **options)

    expected = upscale(model, images := torch.rand(3, 3, 8, 8))
    monkeypatch.setattr(engine, "stream", full)
    assert (upscale(model, images) - expected).abs().max() <= 1e-5
    assert counts[0] == 3
    assert counts[-3:] == [1, 1, 1]


def test_omitted_side_keeps_the_aspect_ratio():
    assert proportional_size(100, 200, 50) == (50, 100)
    assert proportional_size(100, 200, 0, 300) == (150, 300)
    assert proportional_size(1, 1000, 0, 10) == (1, 10)
    assert proportional_size(100, 200, 7, 9) == (7, 9)


class LivePeak(TorchDispatchMode):
    """Record the peak memory of the tensors created while it is active."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        return result

    def forget(self, key: int, size: int):
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize(
    "config",
    [
        VARIANTS["tiny"],
        VARIANTS["base"],
        dataclasses.replace(VARIANTS["original"], embed_dim=64, blocks="WCWCWC"),
        dataclasses.replace(VARIANTS["tiny"], scale=1),
    ],
    ids=["tiny", "base", "v1", "x1"],
)
@pytest.mark.parametrize("band_rows", [8, 32, 192])
def test_peak_memory_stays_below_the_estimate(config, band_rows):
    with LivePeak() as probe:
        torch.ones(8)
    if probe.live:
        pytest.skip("PyTorch 2.1 does not report when a tensor's memory is freed")
    model, image = TransformerSR(config).eval(), torch.rand(1, 3, 192, 64)
    with torch.inference_mode(), LivePeak() as memory:
        stream(model, image, band_rows, out=torch.empty(1, 3, 192 * config.scale, 64 * config.scale))
    estimate = Workload(config, 192, 64, 4).bytes_for(band_rows)
    assert memory.peak <= estimate
    assert memory.peak > estimate / 4  # the estimate is not far too high


def test_band_height_is_a_multiple_of_the_window_within_the_limit():
    config = VARIANTS["base"]
    work = Workload(config, 1001, 1000, 4)
    assert Workload(config, 1000, 1000, 4).band_rows(None) == 1000
    assert work.band_rows(None, max_rows=37) == 32
    assert work.band_rows(None, max_rows=1) == 8
    assert work.band_rows(work.bytes_for(72)) == 72
    assert work.band_rows(work.bytes_for(72) - 1) == 64


class DeviceRows(TorchFunctionMode):
    """Count the rows allocated on and moved to each device that a call names."""

    def __init__(self):
        super().__init__()
        self.allocated, self.moved = Counter(), Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.empty:
            self.allocated[kwargs["device"]] += result.shape[2]
        if function is torch.Tensor.to and isinstance(args[1], torch.device):
            self.moved[args[1]] += result.shape[2]
        return result


@pytest.mark.parametrize("config", [V1, V2])
def test_features_can_be_offloaded_to_another_device(config):
    model, image, host = random_model(config), torch.rand(1, 3, 40, 24), torch.device("cpu", 0)
    with torch.inference_mode(), DeviceRows() as rows:
        kept = stream(model, image, 8, offload_device=host)
    assert rows.allocated[host] >= 40
    assert rows.moved[image.device] >= 40  # and back
    with torch.inference_mode(), DeviceRows() as rows:
        assert torch.equal(kept, stream(model, image, 8))
    assert rows.allocated[host] == 0


def test_plan_offloads_features_that_do_not_fit_on_the_device():
    work = Workload(VARIANTS["tiny"], 1000, 1000, 4)
    offloaded = dataclasses.replace(work, offloaded=True)
    assert make_plan(work, work.bytes_for(16), None, can_offload=True, estimated=False) == Plan(16, False)
    assert make_plan(work, offloaded.bytes_for(24), None, can_offload=True, estimated=False) == Plan(24, True)
    with pytest.raises(MemoryBudgetError):
        make_plan(work, offloaded.bytes_for(24), None, can_offload=False, estimated=False)
    assert make_plan(work, 1000, None, can_offload=True, estimated=True) == Plan(8, True)


def test_smaller_plans_halve_the_band_then_offload_features():
    plans = [Plan(40, False)]
    while plan := plans[-1].smaller(8, can_offload=True):
        plans.append(plan)
    assert plans == [Plan(40, False), Plan(16, False), Plan(8, False), Plan(8, True)]
    assert Plan(8, False).smaller(8, can_offload=False) is None


def test_out_of_memory_halves_the_band_and_warns_once(monkeypatch, caplog):
    monkeypatch.setattr("transformersr.upscale.planning.CPU_BAND_BYTES", 2**40)
    model, image = random_model(V2), torch.rand(1, 3, 64, 16)
    expected, tried = upscale(model, image), []

    def full(model, image, band_rows, **options):
        tried.append(band_rows)
        if band_rows > 16:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return stream(model, image, band_rows, **options)

    monkeypatch.setattr(engine, "stream", full)
    assert (upscale(model, image) - expected).abs().max() <= 1e-5
    assert tried == [64, 32, 16]
    assert len([record for record in caplog.records if "out of memory" in record.message]) == 1


def test_device_too_small_for_one_band_gets_advice(monkeypatch):
    model = random_model(V2)

    def full(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes.")

    monkeypatch.setattr(engine, "stream", full)
    with pytest.raises(MemoryBudgetError, match="smaller model"):
        upscale(model, torch.rand(1, 3, 16, 16))


def test_other_errors_are_not_caught(monkeypatch):
    model = random_model(V2)
    monkeypatch.setattr(engine, "stream", lambda *args, **options: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        upscale(model, torch.rand(1, 3, 16, 16))


def test_progress_counts_every_band_up_to_the_total():
    model, calls = random_model(V2), []
    upscale(
        model,
        torch.rand(2, 3, 40, 16),
        on_progress=lambda done, total: calls.append((done, total)),
        memory=Workload(V2, 40, 16, 4).bytes_for(8),
    )
    done = [one for one, _ in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1] == 2 * total_rows(model, 40)
    assert len(calls) >= 2 * (V2.blocks.count("C") + 1)


def test_progress_callback_can_cancel():
    class Cancelled(Exception):
        pass

    def cancel(done, total):
        raise Cancelled

    with pytest.raises(Cancelled):
        upscale(random_model(V2), torch.rand(1, 3, 40, 16), on_progress=cancel)


def test_half_precision_overflow_is_retried_in_float32(caplog):
    model = random_model(V2)
    with torch.no_grad():
        model.conv_first.weight.mul_(1e5)
        model.upsample.weight.mul_(1e-3)
    image = torch.rand(1, 3, 16, 16)
    expected = upscale(model, image)
    result = upscale(model.half(), image)
    assert result.isfinite().all()
    assert "float32" in caplog.text
    assert model.dtype == torch.float16
    assert expected.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_close_to_float32(dtype, tolerance):
    image = torch.rand(1, 3, 24, 24)
    expected = upscale(random_model(V2), image)
    assert (upscale(random_model(V2).to(dtype), image) - expected).abs().max() < tolerance


def test_nan_pixels_become_black_with_a_warning(caplog):
    model, image = random_model(V2), torch.rand(1, 3, 16, 16)
    black = image.clone()
    black[0, :, 3, 4] = 0
    image[0, :, 3, 4] = float("nan")
    assert torch.equal(upscale(model, image), upscale(model, black))
    assert "not finite" in caplog.text


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_invalid_shapes_are_rejected(shape):
    with pytest.raises(ValueError, match="expected"):
        upscale(random_model(V2), torch.zeros(shape))


@pytest.mark.parametrize(
    ("factor", "expected"), [(1, (7, 13)), (1.5, (10, 20)), (2, (14, 26)), (3, (21, 39)), (4, (28, 52)), (7.3, (51, 95))]
)
def test_any_factor_gives_the_rounded_size(factor, expected):
    height, width = target_size(7, 13, 2, factor)
    assert (height, width) == expected
    calls = []
    result = upscale_to(random_model(V2), torch.rand(1, 3, 7, 13), height, width, on_progress=lambda *call: calls.append(call))
    assert result.shape == (1, 3, *expected)
    assert result.min() >= 0
    assert result.max() <= 1
    assert calls[-1] == (1000, 1000)


def test_untrained_bicubic_network_does_not_shift():
    model = TransformerSR(dataclasses.replace(VARIANTS["tiny"], blocks="RWC")).eval()
    for parameter in model.upsample.parameters():
        torch.nn.init.zeros_(parameter)
    ramp = torch.linspace(0.1, 0.9, 64).expand(1, 3, 48, 64)
    result = upscale(model, ramp)[0, 0, 8:-8, 16:-16]
    centres = (torch.arange(64 * 4) + 0.5) / 4 - 0.5
    expected = (0.1 + 0.8 * centres / 63)[16:-16]
    slope = 0.8 / 63 / 4  # change of the ramp per result pixel
    assert ((result - expected).abs().max() / slope) < 0.01


def test_a_pass_that_cannot_fit_is_named_and_refused_before_the_first_one():
    model, image, progress = random_model(V2), torch.rand(1, 3, 16, 16), []
    with pytest.raises(MemoryBudgetError, match=r"^pass 2 of 2: an image of 32x32 needs"):
        upscale_to(model, image, 64, 64, memory=300_000, on_progress=lambda *rows: progress.append(rows))
    assert progress == []
    with pytest.raises(MemoryBudgetError, match=r"^an image of 16x16 needs"):
        upscale_to(model, image, 64, 64, memory=10_000)


def test_result_that_cannot_fit_is_refused_before_the_first_pass():
    progress: list = []
    with pytest.raises(MemoryBudgetError, match="out of memory for a result of 16777216x16777216"):
        upscale_to(random_model(V2), torch.rand(1, 3, 8, 8), 2**24, 2**24, on_progress=lambda *done: progress.append(done))
    assert not progress


def test_float_resize_keeps_more_than_8_bits():
    model = random_model(V2)
    result = upscale_to(model, torch.linspace(0.4, 0.41, 64).expand(1, 3, 64, 64), 96, 96)
    assert len(np.unique(result.numpy())) > 256


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tests how glibc reuses freed memory")
def test_freed_memory_is_reused_by_the_next_layer():
    program = Path(__file__).parent / "programs" / "count_page_faults.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_240  # new pages from the system; every one of the eight rounds uses as many
