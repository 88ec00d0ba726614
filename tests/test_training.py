"""The trainer: what it shows the network, what it asks of it, and that a run can be stopped anywhere."""

from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from transformersr.arch import VARIANTS, load_model
from transformersr.training import train as training
from transformersr.training.config import TrainConfig, field_help, from_values, load_recipe
from transformersr.training.dataset import CropDataset, find_pictures, read_pictures, split_pictures
from transformersr.training.degradation import FILTERS, PRESETS, Degradation, degrade, shrink
from transformersr.training.losses import edge_weighted_l1, edge_weights, sobel_magnitude
from transformersr.training.metrics import luma, psnr, shift, ssim
from transformersr.training.train import train
from transformersr.training.validate import make_pair, mean_scores, resize_with, score_pair, to_tensor, validation_pairs

from pictures import drawing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(6):
        drawing(index).save(folder / f"{index}.png")
    return folder


# --- degradation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FILTERS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_no_way_of_shrinking_shifts(method, scale):
    """On a ramp, value and place are one: where a small pixel lies is read off its value, to the 8 bits' rounding on average."""
    side = 20 * scale
    ramp = np.broadcast_to(np.arange(side, dtype=np.uint8), (side, side))
    for turned in (ramp, ramp.T):
        small = np.asarray(shrink(Image.fromarray(np.ascontiguousarray(np.repeat(turned[..., None], 3, 2))), scale, method), np.float64)[
            ..., 0
        ]
        small = small if turned is ramp else small.T
        centres = (np.arange(20) + 0.5) * scale - 0.5
        error = (small - centres)[3:-3, 3:-3]
        assert abs(error).max() <= 0.5  # half a level is half a pixel here
        exact = np.asarray(Image.fromarray(np.float32(ramp)).resize((20, 20), FILTERS[method]))
        assert np.abs(exact - centres)[3:-3, 3:-3].max() < 0.01


def test_shrinking_wants_multiples():
    with pytest.raises(ValueError, match="crop it first"):
        shrink(Image.new("RGB", (9, 8)), 4, "area")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_the_same_picture_for_the_same_seed(preset):
    one, other = (degrade(drawing(1), 4, PRESETS[preset], np.random.default_rng(5)) for _ in range(2))
    assert one.size == (24, 24)
    assert one.tobytes() == other.tobytes()


def test_every_step_of_a_degradation_changes_the_picture():
    plain = degrade(drawing(1), 4, Degradation(("area",)), np.random.default_rng(0))
    changes = [{name: 1.0} for name in ("blur", "sharpen", "decoder", "noise", "codec", "again")]
    for change in changes:
        assert degrade(drawing(1), 4, Degradation(("area",), **change), np.random.default_rng(0)).tobytes() != plain.tobytes()


# --- data ----------------------------------------------------------------------------------------


def test_crops_depend_on_seed_and_number_alone_and_fit_together(folder):
    pictures = read_pictures(find_pictures(folder), 32)
    crops = CropDataset(pictures, patch=8, scale=4, preset="author", keep_flat=0.1, seed=3)
    lq, gt = crops[17]
    assert (lq.shape, gt.shape) == ((3, 8, 8), (3, 32, 32))
    assert torch.equal(crops[17][0], lq)
    assert not torch.equal(crops[18][1], gt)
    box = torch.nn.functional.avg_pool2d(gt.float(), 4)
    assert (box - lq).abs().mean() < 15  # the small crop is of the same place


def test_small_crops_are_those_of_the_whole_picture_made_small(folder):
    """Filters see what lies around a crop, not its border."""
    picture = np.asarray(drawing(0))
    crops = CropDataset([picture], patch=8, scale=4, preset="author", keep_flat=1.0, seed=0)
    crops.preset = Degradation(("bicubic",))
    whole = np.asarray(shrink(Image.fromarray(picture), 4, "bicubic"))
    small = crops._small(picture, 32, 24, np.random.default_rng(0))
    assert np.array_equal(small, whole[8:16, 6:14])


def test_a_split_keeps_what_it_is_told_and_else_goes_by_content(folder):
    named = split_pictures(folder, validation=("[01].png",), exclude=("2.*",))
    assert [path.name for path in named.validation] == ["0.png", "1.png"]
    assert [path.name for path in named.train] == ["3.png", "4.png", "5.png"]
    by_hash = split_pictures(folder)
    assert len(by_hash.train) + len(by_hash.validation) == 6
    assert by_hash == split_pictures(folder)


def test_bad_pictures_are_named_and_left_out(tmp_path, caplog):
    drawing(0).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:100])
    Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    assert len(read_pictures(find_pictures(tmp_path), 32)) == 1
    assert "broken.png" in caplog.text
    assert "small.png" in caplog.text
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no pictures"):
        find_pictures(empty)


# --- losses --------------------------------------------------------------------------------------


def test_sobel_is_zero_on_flats_and_at_the_border_of_ramps():
    assert sobel_magnitude(torch.full((1, 3, 8, 8), 0.5)).max() == 0
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert torch.allclose(sobel_magnitude(ramp)[..., 1:-1], torch.tensor(8.0))
    assert torch.allclose(sobel_magnitude(ramp)[..., 0], torch.tensor(4.0))


@pytest.mark.parametrize("flat_weight", [0.0, 0.25, 1.0])
def test_edge_weights_have_mean_one_in_every_sample(flat_weight):
    gt = torch.rand(3, 3, 16, 16) * torch.tensor([1.0, 0.5, 0.1])[:, None, None, None]
    assert torch.allclose(edge_weights(gt, flat_weight).mean(dim=(1, 2, 3)), torch.ones(3))


def test_the_ends_of_the_edge_loss_are_l1_and_the_original():
    sr, gt = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    error, edge = (sr - gt).abs(), sobel_magnitude(gt)
    assert torch.allclose(edge_weighted_l1(sr, gt, 1.0), error.mean())
    assert torch.allclose(edge_weighted_l1(sr, gt, 0.0), (error * edge).sum() / edge.sum())


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_the_edge_loss_is_finite_on_flat_crops(value):
    gt = torch.full((1, 3, 8, 8), value)
    sr = torch.rand(1, 3, 8, 8, requires_grad=True)
    edge_weighted_l1(sr, gt, 0.0).backward()
    assert sr.grad.isfinite().all()


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_of_known_cases():
    image = to_tensor(drawing(0))
    assert psnr(image, image + 0.1) == pytest.approx(20, abs=1e-3)
    assert ssim(luma(image), luma(image)) == pytest.approx(1)
    assert luma(torch.ones(1, 3, 1, 1)).item() == pytest.approx(235 / 255)
    assert luma(torch.zeros(1, 3, 1, 1)).item() == pytest.approx(16 / 255)


@pytest.mark.parametrize("by", [(0.0, 0.0), (0.5, -0.25), (-1.5, 1.0)])
def test_shift_finds_the_shift(by):
    y, x = np.mgrid[:128, :128]

    def waves(dy, dx):
        value = 0.5 + 0.2 * np.sin((y - dy) / 7) + 0.2 * np.cos((x - dx) / 9 + (y - dy) / 20)
        return torch.from_numpy(value).float().expand(1, 3, -1, -1)

    assert shift(waves(*by), waves(0, 0), 4) == pytest.approx(by, abs=0.02)


def test_shift_of_a_flat_picture_is_unknown():
    assert np.isnan(shift(torch.zeros(1, 3, 96, 96), torch.zeros(1, 3, 96, 96), 4)).all()


def test_evaluation_pairs_are_not_shifted(tmp_path):
    """Sizes that are no multiple of the scale are cut, never squeezed."""
    drawing(3, 203).save(tmp_path / "odd.png")
    for method in FILTERS:
        pair = make_pair(tmp_path / "odd.png", 4, method)
        assert pair.gt.shape[2:] == (200, 200)
        assert pair.lq.shape[2:] == (50, 50)
        scores = score_pair(pair, resize_with("bicubic", 4)(pair.lq), 4)
        assert abs(scores.shift_y) < 0.02
        assert abs(scores.shift_x) < 0.02
    assert mean_scores([scores, scores]) == scores


# --- configuration -------------------------------------------------------------------------------


def test_recipes_are_read_and_checked(tmp_path):
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


def test_phases_are_constant_rates_in_turn():
    config = from_values({"size": "tiny", "phases": ["3 at 1e-4", "2 at 5e-5"]})
    assert config.steps == 5
    assert [training.learning_rate(config, step, step / 5) for step in range(5)] == [1e-4] * 3 + [5e-5] * 2
    with pytest.raises(ValueError, match="450000 at 1e-4"):
        from_values({"phases": ["fast"]})
    with pytest.raises(ValueError, match="minutes"):
        from_values({"phases": ["3 at 1e-4"], "minutes": 5.0})


def test_the_authors_recipe_is_the_one_written_down():
    from importlib.resources import files

    config = load_recipe(str(files("transformersr.training").joinpath("configs/author.toml")))
    assert config.network() == VARIANTS["original"]
    assert (config.steps, config.batch, config.patch, config.flat_weight, config.edge_start) == (2_200_000, 1, 64, 0.0, 0.5)


def test_every_setting_has_its_help():
    assert set(field_help()) == set(TrainConfig.__dataclass_fields__)


def test_shipped_recipes_are_valid():
    from importlib.resources import files

    recipes = [path for path in files("transformersr.training").joinpath("configs").iterdir() if path.name.endswith(".toml")]
    assert recipes
    for path in recipes:
        load_recipe(path)


# --- runs ----------------------------------------------------------------------------------------

SETTINGS = {"size": "tiny", "patch": 8, "batch": 2, "steps": 6, "save_every": 3, "log_every": 3, "warmup_steps": 2, "validation_crop": 64}


def test_a_run_writes_weights_that_load(folder, tmp_path):
    best = train(from_values(SETTINGS), folder, tmp_path / "run")
    assert load_model(best).config.embed_dim == 48
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "state.pt",
        "config.json",
        "validation.jsonl",
        "strips",
    }
    with pytest.raises(FileExistsError, match="resume"):
        train(from_values(SETTINGS), folder, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_stopping_and_resuming_is_the_same_run(folder, tmp_path, monkeypatch, workers):
    config = from_values({**SETTINGS, "workers": workers})
    train(config, folder, tmp_path / "straight")

    rate = training.learning_rate

    def killed(config, step, done):
        if step == 4:
            raise KeyboardInterrupt
        return rate(config, step, done)

    monkeypatch.setattr(training, "learning_rate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, tmp_path / "stopped")
    monkeypatch.undo()
    train(config, folder, tmp_path / "stopped", resume=True)

    straight, stopped = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("straight", "stopped"))
    for part in ("net", "ema"):
        assert all(torch.equal(straight[part][name], stopped[part][name]) for name in straight[part])
    for index, moments in straight["optimizer"]["state"].items():
        assert all(torch.equal(moments[name], stopped["optimizer"]["state"][index][name]) for name in moments)


def test_an_interrupt_ends_the_run_after_its_step_and_saves(folder, tmp_path, monkeypatch):
    rate = training.learning_rate

    def interrupted(config, step, done):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return rate(config, step, done)

    monkeypatch.setattr(training, "learning_rate", interrupted)
    train(from_values({**SETTINGS, "steps": 100}), folder, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["progress"]["step"] == 5


def test_training_learns(folder, tmp_path):
    """Sixty small steps bring the network above bicubic on the pictures it sees."""
    settings = {
        **SETTINGS,
        "scale": 2,
        "steps": 60,
        "save_every": 60,
        "batch": 4,
        "learning_rate": 2e-3,
        "ema_decay": 0.9,
        "preset": "author",
    }
    model = load_model(train(from_values(settings), folder, tmp_path / "run"))
    pair = make_pair(find_pictures(folder)[0], 2, "bicubic")
    with torch.inference_mode():
        ours = score_pair(pair, model(pair.lq), 2)
    assert ours.psnr_y > score_pair(pair, resize_with("bicubic", 2)(pair.lq), 2).psnr_y


def test_another_scale_starts_from_the_same_body(folder, tmp_path):
    x4 = train(from_values({**SETTINGS, "steps": 1}), folder, tmp_path / "x4")
    net = training.initial_network(from_values({**SETTINGS, "scale": 2, "init": str(x4)}))
    given = load_model(x4)
    assert net.config.scale == 2
    assert torch.equal(net.body[0].conv.weight, given.body[0].conv.weight)
    with pytest.raises(ValueError, match="init"):
        training.initial_network(from_values({**SETTINGS, "size": "base", "init": str(x4)}))


def test_a_run_inside_its_data_does_not_learn_from_its_own_strips(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    train(from_values({**SETTINGS, "steps": 1}), data, data / "run")
    assert (data / "run" / "strips").is_dir()
    split = split_pictures(data, without=data / "run")
    assert len(split.train) + len(split.validation) == 6


def test_a_diverged_run_stops_and_keeps_its_last_good_state(folder, tmp_path):
    train(from_values({**SETTINGS, "steps": 3}), folder, tmp_path / "run")
    before = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train(from_values({**SETTINGS, "learning_rate": 1e30, "clip_norm": 1e30}), folder, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def test_resuming_another_network_says_so(folder, tmp_path):
    train(from_values({**SETTINGS, "steps": 1}), folder, tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        train(from_values({**SETTINGS, "scale": 2}), folder, tmp_path / "run", resume=True)


def test_bad_validation_pictures_are_left_out(tmp_path, caplog):
    drawing(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    assert len(validation_pairs([tmp_path / "bad.png", tmp_path / "good.png"], 4, 0)) == 1
    assert "bad.png" in caplog.text


@pytest.mark.parametrize("setting", [{"warmup_steps": 0}, {"minutes": -1.0}, {"workers": -1}, {"scale": 9}, {"learning_rate": 0.0}])
def test_impossible_settings_are_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        from_values(setting)
