"""Numerical results of the shipped weights: reproducible, finite for extreme input, and without colour shifts.

`tests/long/exactness.py` prints the measurements behind these limits.
"""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from transformersr import Upscaler
from transformersr.arch import stream
from transformersr.training.results.validate import to_tensor
from transformersr.upscale import engine
from transformersr.upscale.engine import upscale
from transformersr.upscale.upscaler import available_models

from synthetic_images import synthetic_image

ROUNDING = 1e-5
"""Largest difference from a different order of additions, in [0, 1]; 1/400 of an 8-bit level."""


MODELS = {**dict.fromkeys(available_models(), 0.0), "x4-base, crisp": 1.0, "x4-tiny, crisp": 1.0}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


def load(name, dtype="fp32"):
    return Upscaler.from_pretrained(name.partition(",")[0], "cpu", dtype, crispness=MODELS[name])


@pytest.fixture(scope="module")
def upscaler(name):
    return load(name)


@pytest.fixture(scope="module")
def image():
    return to_tensor(synthetic_image(0, 48))[..., :37]


@pytest.fixture(scope="module")
def expected(upscaler, image):
    return upscaler(image)


def difference(a, b) -> float:
    return float((a - b).abs().max())


# --- reproducibility -----------------------------------------------------------------------------


def test_repeated_runs_are_bit_identical(upscaler, image, expected):
    assert torch.equal(upscaler(image), expected)


def test_memory_format_does_not_change_the_result(upscaler, image, expected):
    assert torch.equal(upscaler(image.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("rows", [8, 24])
def test_band_height_changes_only_rounding(upscaler, image, expected, rows):
    with torch.inference_mode():
        assert difference(stream(upscaler.model, image, rows).clamp(0, 1), expected) <= ROUNDING


def test_batching_changes_only_rounding(upscaler, image, expected):
    batch = torch.cat([image, 1 - image, image.flip(3)])
    assert difference(upscaler(batch)[:1], expected) <= ROUNDING


def test_thread_count_changes_only_rounding(upscaler, image, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert difference(upscaler(image), expected) <= ROUNDING
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "levels"), [("fp16", 2), ("bf16", 12)])
def test_half_precision_error_is_within_the_documented_limit(name, upscaler, image, dtype, levels):
    corner = image[..., :24, :24]
    assert 255 * difference(load(name, dtype)(corner), upscaler(corner)) < levels


def test_unsupported_precision_falls_back_to_float32_with_a_warning(upscaler, image, expected, monkeypatch, caplog):
    model = copy.deepcopy(upscaler.model).half()

    def refuse(model, rows, band_rows, **options):
        if rows.dtype == torch.float16:
            raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")
        return stream(model, rows, band_rows, **options)

    monkeypatch.setattr(engine, "stream", refuse)
    assert 255 * difference(upscale(model, image), expected) < 0.1  # its bias tables were stored in fp16
    assert "torch.float16 cannot be computed on cpu" in caplog.text


# --- extreme images ----------------------------------------------------------------------------


def extremes(side: int = 16) -> dict[str, torch.Tensor]:
    black, rows = torch.zeros(3, side, side), torch.arange(side)
    dot = black.clone()
    dot[:, side // 2, side // 2] = 1
    noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    checks = ((rows[:, None] + rows) % 2).float().expand(3, -1, -1)
    return {"black": black, "white": black + 1, "dot": dot, "checks": checks, "noise": noise}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_extreme_images_stay_finite_and_keep_their_brightness(name, dtype):
    upscaler, batch = load(name, dtype), torch.stack(list(extremes().values()))
    large = upscaler(batch)
    assert large.isfinite().all()
    shift = 255 * (large.mean((2, 3)) - batch.mean((2, 3))).abs().amax(1)
    for name, levels in zip(extremes(), shift.tolist(), strict=True):
        assert levels < (2 if name in ("checks", "noise") else 1), f"{name} is off by {levels:.2f} levels of 255"


def test_fine_tones_keep_their_brightness(name):
    """Checks, stripes and dots of one pixel."""
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    patterns = [(rows + columns) % 2 == 0, columns % 2 == 0, (rows % 2) * (columns % 2) == 1, (rows % 3 == 0) & (columns % 3 == 0)]
    tones = torch.stack(patterns).float()[:, None].expand(-1, 3, -1, -1)
    inner = load(name, "fp32")(tones)[..., 32:-32, 32:-32]
    assert 255 * (inner.mean((1, 2, 3)) - tones.mean((1, 2, 3))).abs().max() < 4


def test_non_finite_values_become_black_with_a_warning(upscaler, image, caplog):
    broken, black = image.clone(), image.clone()
    for value, column in ((float("nan"), 3), (float("inf"), 4), (float("-inf"), 5)):
        broken[..., 7, column], black[..., 7, column] = value, 0
    assert torch.equal(upscaler(broken), upscaler(black))
    assert "9 of the image's 5328 values are not finite (NaN or infinity) and are replaced with black" in caplog.text
    assert torch.equal(upscale(upscaler.model, torch.full_like(image, float("nan"))), upscaler(torch.zeros_like(image)))


def test_nan_pixel_does_not_damage_transparency(upscaler, image):
    source = torch.cat([image, torch.ones_like(image[:, :1])], 1)
    source[:, 3, :24] = 0
    expected = upscaler(source)
    source[:, :, 0, 0] = float("nan")  # in a transparent corner
    assert torch.equal(upscaler(source)[:, 3], expected[:, 3])
    assert difference(upscaler(source)[:, :, 30 * upscaler.scale :], expected[:, :, 30 * upscaler.scale :]) < 1 / 255


@pytest.mark.parametrize("peak", [255.0, 1e30])
def test_values_far_out_of_range_are_clipped_with_a_warning(upscaler, image, peak, caplog):
    assert torch.equal(upscaler(image * peak), upscaler((image * peak).clamp(0, 1)))
    assert f"to {float((image * peak).max()):g}; expected 0 to 1" in caplog.text


def test_small_overshoot_is_clipped_silently(upscaler, image, caplog):
    caplog.set_level(logging.WARNING)
    overshot = image * 1.2 - 0.1
    assert torch.equal(upscaler(overshot), upscaler(overshot.clamp(0, 1)))
    assert not caplog.records


# --- colours -------------------------------------------------------------------------------------


def test_flat_areas_keep_their_colour(upscaler, name):
    """Within half a level of 255 in every channel of 125 colours, away from the image's edge; within 0.7 for weights that remove damage."""
    levels, edge, limit = torch.linspace(0, 1, 5), 8 * upscaler.scale, 0.7 if "cleanup" in name else 0.5
    colours = torch.cartesian_prod(levels, levels, levels)
    large = upscaler(colours[:, :, None, None].expand(-1, -1, 24, 24))
    shift = 255 * (large[..., edge:-edge, edge:-edge].mean((2, 3)) - colours)
    worst = int(shift.abs().amax(1).argmax())
    assert shift.abs().max() < limit, f"{colours[worst].tolist()} shifts by {shift[worst].tolist()} levels"


def test_mean_colour_of_an_image_is_kept(upscaler, name):
    """Within half a level of 255; within one level for weights that change more than the size of an image."""
    source, limit = to_tensor(synthetic_image(1)), 1 if "crisp" in name or "cleanup" in name else 0.5
    assert 255 * (upscaler(source).mean((2, 3)) - source.mean((2, 3))).abs().max() < limit
