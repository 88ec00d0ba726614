"""Losses, metrics, validation pairs and the configuration of training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from transformersr.arch import VARIANTS
from transformersr.training.config import TrainConfig, from_values, load_recipe
from transformersr.training.data.degradation import FILTERS
from transformersr.training.losses import color_loss, edge_weights, pixel_loss, sobel_magnitude
from transformersr.training.plan import fill_in
from transformersr.training.results.evaluate import evaluate_weights
from transformersr.training.results.metrics import color_shift, luma, psnr, sharpness, shift, ssim
from transformersr.training.results.validate import make_pair, mean_scores, resize_with, score_pair, to_tensor, validation_pairs
from transformersr.training.schedule import learning_rate

from synthetic_images import synthetic_image

# --- losses --------------------------------------------------------------------------------------


def test_sobel_is_zero_on_flat_images_and_known_on_ramps():
    assert sobel_magnitude(torch.full((1, 3, 8, 8), 0.5)).max() == 0
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert torch.allclose(sobel_magnitude(ramp)[..., 1:-1], torch.tensor(8.0))
    assert torch.allclose(sobel_magnitude(ramp)[..., 0], torch.tensor(4.0))


@pytest.mark.parametrize("flat_weight", [0.0, 0.25, 1.0])
def test_edge_weights_average_to_one_per_sample(flat_weight):
    gt = torch.rand(3, 3, 16, 16) * torch.tensor([1.0, 0.5, 0.1])[:, None, None, None]
    assert torch.allclose(edge_weights(gt, flat_weight).mean(dim=(1, 2, 3)), torch.ones(3))


def test_edge_loss_ranges_from_the_original_loss_to_l1():
    sr, gt = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    error, edge = (sr - gt).abs(), sobel_magnitude(gt)
    assert torch.allclose(pixel_loss(sr, gt, 1.0), error.mean())
    assert torch.allclose(pixel_loss(sr, gt, 0.0), (error * edge).sum() / edge.sum())


def test_log_loss_counts_relative_improvements():
    gt = torch.full((1, 3, 8, 8), 0.5)

    def gain(error):
        return (pixel_loss(gt + error, gt, 1.0, "log") - pixel_loss(gt + error / 2, gt, 1.0, "log")).item()

    assert pixel_loss(gt, gt, 1.0, "log") == 0
    assert gain(0.4) == pytest.approx(0.005 * 3 * math.log(2), rel=0.01)
    assert gain(0.04) == pytest.approx(gain(0.4), rel=0.1)  # the constants hide a little of it


def test_log_loss_is_a_mean_over_the_crops():
    sr, gt = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    each = [pixel_loss(sr[i : i + 1], gt[i : i + 1], 0.25, "log") for i in range(2)]
    assert torch.allclose(pixel_loss(sr, gt, 0.25, "log"), torch.stack(each).mean())


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_log_loss_gradient_is_finite_on_perfect_crops(value):
    gt = torch.full((1, 3, 8, 8), value)
    sr = gt.clone().requires_grad_()
    pixel_loss(sr, gt, 1.0, "log").backward()
    assert sr.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_edge_loss_gradient_is_finite_on_flat_crops(value):
    gt = torch.full((1, 3, 8, 8), value)
    sr = torch.rand(1, 3, 8, 8, requires_grad=True)
    pixel_loss(sr, gt, 0.0).backward()
    assert sr.grad.isfinite().all()


def test_colour_loss_measures_colour_and_ignores_detail():
    gt = torch.rand(1, 3, 16, 16)
    assert color_loss(gt + 0.1, gt).item() == pytest.approx(0.1, abs=1e-6)
    checks = 0.1 * (torch.arange(16) % 2 * 2 - 1.0).expand(1, 3, 16, 16)
    assert color_loss(gt + checks, gt) < 1e-6


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_match_known_values():
    image = to_tensor(synthetic_image(0))
    assert psnr(image, image + 0.1) == pytest.approx(20, abs=1e-3)
    assert ssim(luma(image), luma(image)) == pytest.approx(1)
    assert luma(torch.ones(1, 3, 1, 1)).item() == pytest.approx(235 / 255)
    assert luma(torch.zeros(1, 3, 1, 1)).item() == pytest.approx(16 / 255)


@pytest.mark.parametrize("by", [(0.0, 0.0), (0.5, -0.25), (-1.5, 1.0)])
def test_shift_metric_finds_the_shift(by):
    y, x = np.mgrid[:128, :128]

    def waves(dy, dx):
        value = 0.5 + 0.2 * np.sin((y - dy) / 7) + 0.2 * np.cos((x - dx) / 9 + (y - dy) / 20)
        return torch.from_numpy(value).float().expand(1, 3, -1, -1)

    assert shift(waves(*by), waves(0, 0), 4) == pytest.approx(by, abs=0.02)


def test_sharpness_and_colour_shift_detect_changes():
    image = to_tensor(synthetic_image(0))
    soft = torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    assert sharpness(image, image) == 1
    assert sharpness(soft, image) < 0.9
    assert color_shift(soft, image) < 2  # a blur changes the colour of large areas little
    assert color_shift(image + 10 / 255, image) == pytest.approx(10, abs=1e-3)


def test_shift_of_a_flat_image_is_nan():
    assert np.isnan(shift(torch.zeros(1, 3, 96, 96), torch.zeros(1, 3, 96, 96), 4)).all()


def test_evaluation_compares_weights_with_bicubic_on_each_filter(folder, model):
    table = evaluate_weights(str(model), folder, ("0.png", "1.png"), ("bicubic", "area"), "cpu")
    assert list(table) == [(method, name) for method in ("bicubic", "area") for name in ("bicubic", "lanczos", "model")] + [
        ("all", name) for name in ("bicubic", "lanczos", "model")
    ]
    both = [table[method, "model"].psnr_y for method in ("bicubic", "area")]
    assert table["all", "model"].psnr_y == pytest.approx(sum(both) / 2)


def test_evaluation_of_the_middle_uses_other_pixels(folder, model):
    whole, middle = (evaluate_weights(str(model), folder, ("0.png",), ("area",), "cpu", crop=crop)["all", "bicubic"] for crop in (0, 48))
    assert middle.psnr_y != whole.psnr_y


def test_evaluation_with_a_preset_is_repeatable_and_harder(folder, model):
    plain, web, again = (
        evaluate_weights(str(model), folder, (), ("bicubic",), "cpu", preset)["all", "bicubic"].psnr_y
        for preset in ("author", "web", "web")
    )
    assert web == again < plain
    with pytest.raises(ValueError, match="preset blurry is unknown; expected author, clean, web"):
        evaluate_weights(str(model), folder, (), (), "cpu", "blurry")


def test_evaluation_pairs_are_not_shifted(tmp_path):
    """Sizes that are not a multiple of the scale are cropped, never resized."""
    synthetic_image(3, 203).save(tmp_path / "odd.png")
    for method in FILTERS:
        pair = make_pair(tmp_path / "odd.png", 4, method)
        assert pair.gt.shape[2:] == (200, 200)
        assert pair.lq.shape[2:] == (50, 50)
        scores = score_pair(pair, resize_with("bicubic", 4)(pair.lq), 4)
        assert abs(scores.shift_y) < 0.02
        assert abs(scores.shift_x) < 0.02
    assert mean_scores([scores, scores]) == scores


# --- configuration -------------------------------------------------------------------------------


def test_recipes_are_parsed_and_validated(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('size = "tiny"\nvalidation = ["a/*"]\nlearning_rate = 1\n')
    config = load_recipe(recipe, batch=3)
    assert config == TrainConfig(size="tiny", validation=("a/*",), learning_rate=1.0, batch=3)
    for text, words in {
        "sise = 1": "unknown setting sise",
        'steps = "5"': "steps",
        'size = "huge"': "tiny, base",
        "patch = 12": "multiple of 8",
    }.items():
        recipe.write_text(text)
        with pytest.raises(ValueError, match=words) as caught:
            load_recipe(recipe)
        assert "recipe.toml" in str(caught.value)


def test_phases_give_constant_learning_rates_one_after_another():
    config = from_values({"size": "tiny", "phases": ["3 at 1e-4", "2 at 5e-5"]})
    assert config.steps == 5
    assert [learning_rate(config, step, step / 5) for step in range(5)] == [1e-4] * 3 + [5e-5] * 2
    with pytest.raises(ValueError, match="450000 at 1e-4"):
        from_values({"phases": ["fast"]})
    with pytest.raises(ValueError, match="minutes"):
        from_values({"phases": ["3 at 1e-4"], "minutes": 5.0})


def test_author_recipe_matches_the_original_settings():
    from importlib.resources import files

    config = load_recipe(str(files("transformersr.training").joinpath("configs/author.toml")))
    assert config.network() == VARIANTS["original"]
    assert (config.steps, config.batch, config.patch, config.flat_weight, config.edge_start) == (2_200_000, 1, 64, 0.0, 0.5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"scale": 5}, "expected one of 1, 2, 3, 4"),
        ({"batch": 2**17}, "expected 65536 or less"),
        ({"warmup_steps": 0}, "expected 1 or more"),
        ({"clip_norm": 0.0}, "expected a number above 0"),
        ({"edge_start": 1.5}, "expected 1 or less"),
        ({"minutes": -1.0}, "expected 0 or more"),
        ({"workers": -2}, "expected -1 or more"),
        ({"learning_rate": float("nan")}, "expected a finite number"),
        ({"trackers": ["excel"]}, "expected any of tensorboard, wandb, none"),
        ({"trackers": ["none", "wandb"]}, "expected none on its own"),
    ],
)
def test_invalid_settings_are_named_with_the_expected_values(setting, words):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} is .*{words}"):
        from_values(setting)


def test_trackers_can_be_disabled_with_none():
    assert from_values({"trackers": ["none"]}) == from_values({"trackers": []})


def test_shipped_recipes_are_valid():
    from importlib.resources import files

    recipes = [path for path in files("transformersr.training").joinpath("configs").iterdir() if path.name.endswith(".toml")]
    assert recipes
    for path in recipes:
        load_recipe(path)


def test_bad_validation_images_are_skipped(tmp_path, caplog):
    synthetic_image(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    assert len(validation_pairs([tmp_path / "bad.png", tmp_path / "good.png"], 4, 0)) == 1
    assert "bad.png" in caplog.text


def test_validation_inputs_are_degraded_with_the_preset_of_the_run(tmp_path):
    for index in range(4):
        synthetic_image(index).save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.glob("*.png"))
    resized = [make_pair(path, 4, method).lq for path, method in zip(paths, ("bicubic", "bilinear", "area", "bicubic"), strict=True)]
    author, scan, again = (validation_pairs(paths, 4, 0, preset=preset) for preset in ("author", "scan", "scan"))
    assert all(torch.equal(pair.lq, lq) for pair, lq in zip(author, resized, strict=True))
    assert not any(torch.equal(pair.lq, lq) for pair, lq in zip(scan, resized, strict=True))
    assert all(torch.equal(first.lq, second.lq) for first, second in zip(scan, again, strict=True))
    assert all(torch.equal(first.gt, second.gt) for first, second in zip(author, scan, strict=True))


def test_unset_settings_are_filled_in_for_the_device():
    filled, reasons = fill_in(from_values({"device": "cpu"}))
    assert (filled.size, filled.init, filled.batch, filled.learning_rate, filled.minutes) == (
        "tiny",
        "x4-tiny",
        4,
        3e-4,
        60.0,
    )
    assert len(reasons) == 5
    filled, _ = fill_in(from_values({"device": "cpu", "init": "none", "steps": 5}))
    assert (filled.init, filled.learning_rate, filled.minutes) == ("none", 5e-4, 0.0)
    assert fill_in(filled) == (filled, ())
    with pytest.raises(ValueError, match="init"):
        fill_in(from_values({"device": "cpu", "size": "original", "gan_weight": 0.1}))


def test_recipes_are_found_by_name():
    assert load_recipe("gan", init="x4-tiny").gan_weight > 0
    with pytest.raises(FileNotFoundError, match="base-x4"):
        load_recipe("nothing")
