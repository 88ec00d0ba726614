"""Degradations: nothing is shifted, every step has an effect, the same seed gives the same image."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from transformersr.training.data import video_codec
from transformersr.training.data.degradation import FILTERS, PRESETS, Degradation, degrade, downscale
from transformersr.training.data.images import TrainingImage
from transformersr.training.results.validate import make_pair

from synthetic_images import synthetic_image
from training_crops import make_crops

# --- nothing is shifted --------------------------------------------------------------------------
#
# On a ramp the value of a pixel gives its position. A ramp and its mirror image distinguish a shift, which has opposite signs in them,
# from a change of brightness, which does not.

SLOPE = 2


def ramp(side):
    return np.repeat(np.broadcast_to(np.arange(side) * SLOPE, (side, side)).astype(np.uint8)[..., None], 3, 2)


def measure_shift(small_of, side, scale, border):
    """Measure the shift of a downscaling function to the right and down, in high-resolution pixels, on four ramps without their borders."""
    count = side // scale
    value = SLOPE * ((np.arange(count) + 0.5) * scale - 0.5)
    inner = slice(border, count - border)

    def error(turns):
        """Return the mean error on a ramp rotated by this many quarter turns."""
        small = np.asarray(small_of(Image.fromarray(np.ascontiguousarray(np.rot90(ramp(side), turns)))), np.float64)
        return (np.rot90(small, -turns) - value[:, None])[inner, inner].mean()

    return [(error(turns + 2) - error(turns)) / 2 / SLOPE for turns in (0, 1)]


@pytest.mark.parametrize("method", FILTERS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_downscaling_filters_do_not_shift(method, scale):
    side = 120 // scale * scale
    assert np.abs(measure_shift(lambda image: downscale(image, scale, method), side, scale, 4)).max() < 0.01


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_do_not_shift(preset, scale):
    """With blur, sharpening and every filter; noise and codecs are random and have the next test."""
    still = replace(PRESETS[preset], decoder=0.0, noise=0.0, codec=0.0, video=0.0, recompress=0.0)
    side = 120 // scale * scale
    for method in still.filters:
        for step in ({"blur": 0.0, "sharpen": 0.0}, {"blur": 1.0, "sharpen": 0.0}, {"blur": 0.0, "sharpen": 1.0}):
            steps = replace(still, filters=(method,), **step)
            moved = measure_shift(lambda image, steps=steps: degrade(image, scale, steps, np.random.default_rng(4)), side, scale, 6)
            assert np.abs(moved).max() < 0.01, (method, step)


@pytest.mark.parametrize(("step", "limit"), [("recompress", 0.01), ("decoder", 0.01), ("noise", 0.01), ("codec", 0.1)])
def test_random_steps_do_not_shift_on_average(step, limit):
    """Each step alone, averaged over many seeds. A codec rounds all of them alike, so less of its error averages out."""
    steps = Degradation(tuple(FILTERS), quality=(98, 98), **{"formats": ("JPEG",), step: 1.0})

    def mean(image):
        return np.mean([np.asarray(degrade(image, 4, steps, np.random.default_rng(seed)), np.float64) for seed in range(48)], axis=0)

    assert np.abs(measure_shift(mean, 120, 4, 4)).max() < limit


@pytest.mark.parametrize("size", [(120, 120), (121, 122), (122, 123), (123, 121)])
@pytest.mark.parametrize("method", ["bicubic", "bilinear", "area"])
def test_validation_pairs_are_not_shifted_at_any_size(size, method, tmp_path):
    """Sizes that are not a multiple of the scale are cropped, never resized."""
    width, height = size

    def small_of(image):
        image.crop((0, 0, width, height)).save(tmp_path / "ramp.png")
        lq = make_pair(tmp_path / "ramp.png", 4, method).lq
        assert lq.shape[2:] == (30, 30)
        return (lq[0].permute(1, 2, 0) * 255).numpy()

    def padded(image):
        return small_of(Image.fromarray(np.pad(np.asarray(image), ((0, 3), (0, 3), (0, 0)), mode="edge")))

    assert np.abs(measure_shift(padded, 120, 4, 4)).max() < 0.01


@pytest.mark.parametrize("side", [101, 102, 103])
def test_crops_are_not_shifted_at_any_image_size(side):
    """Every low-resolution pixel is the mean of its high-resolution pixels, up to the last complete one."""
    crops = make_crops([TrainingImage("", np.asarray(synthetic_image(2, side)))])
    crops.preset = Degradation(("area",))
    for index in range(20):
        lq, gt = crops[index]
        assert (torch.nn.functional.avg_pool2d(gt.float(), 4) - lq).abs().max() <= 1  # rounded along rows, then columns


# --- degradation ---------------------------------------------------------------------------------


def test_downscaling_requires_a_multiple_of_the_scale():
    with pytest.raises(ValueError, match="crop it first"):
        downscale(Image.new("RGB", (9, 8)), 4, "area")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_reproducible_from_the_seed(preset):
    one, other = (degrade(synthetic_image(1), 4, PRESETS[preset], np.random.default_rng(5)) for _ in range(2))
    assert one.size == (24, 24)
    assert one.tobytes() == other.tobytes()


def test_every_degradation_step_changes_the_image():
    plain = degrade(synthetic_image(1), 4, Degradation(("area",)), np.random.default_rng(0))
    for step in ("blur", "sharpen", "decoder", "noise", "codec", "recompress", "video"):
        changed = degrade(synthetic_image(1), 4, Degradation(("area",), **{step: 1.0}), np.random.default_rng(0))
        assert changed.tobytes() != plain.tobytes()


def test_video_stills_keep_size_and_position_and_lose_quality():
    still, source = video_codec.video_still, synthetic_image(1, 95)
    results = [still(source, strength) for strength in (0.0, 1.0)]
    assert {result.size for result in results} == {(95, 95)}
    errors = [np.abs(np.asarray(result).astype(int) - np.asarray(source)).mean() for result in results]
    assert 0 < errors[0] < errors[1] < 30
    assert still(source, 1.0).tobytes() == results[1].tobytes()
    assert np.abs(measure_shift(lambda image: still(image, 0.0), 120, 1, 4)).max() < 0.05


def test_video_preset_without_pyav_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"preset video needs PyAV.*pip install"):
        make_crops([TrainingImage("", np.asarray(synthetic_image(0)))], "video")
