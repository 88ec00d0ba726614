"""Whole training runs: their files, resuming, several processes, faults, and the adversarial stage."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from transformersr.arch import VARIANTS, TransformerSR, TransformerSRConfig
from transformersr.training import losses, networks, steps
from transformersr.training.cli import main
from transformersr.training.config import from_values, load_recipe
from transformersr.training.data.folders import find_images, split_images
from transformersr.training.results import monitor as monitoring
from transformersr.training.results.export import find_weights
from transformersr.training.results.validate import make_pair, resize_with, score_pair
from transformersr.training.results.verdict import Baseline
from transformersr.training.train import train
from transformersr.upscale.checkpoint import load_model, save_model

from short_runs import SETTINGS, at_step, read_state

GAN = {"gan_weight": 0.1, "gan_start": 1, "gan_ramp": 3, "gan_width": 4, "gan_r1": 1.0, "filter_weight": 0.5, "gan_from_scratch": True}


def assert_same_state(one, other):
    """Assert that weights, averages and optimiser states are bit-identical."""
    for part in set(one) - {"progress"}:
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
    assert one["progress"]["step"] == other["progress"]["step"]


# --- files of a run ------------------------------------------------------------------------------


def test_run_writes_loadable_weights_and_metrics(folder, tmp_path):
    run = tmp_path / "run"
    best = train(from_values(SETTINGS), folder, run)
    assert load_model(best).config.embed_dim == 48
    files = {
        "best.safetensors",
        "last.safetensors",
        "state.pt",
        "config.json",
        "run.json",
        "train.jsonl",
        "validation.jsonl",
        "strips",
        "report.html",
    }
    assert files <= {path.name for path in run.iterdir()}
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert {"loss", "gradient_norm", "learning_rate", "skipped"} <= set(lines[0])
    assert json.loads((run / "run.json").read_text())["bicubic"]["psnr_y"] > 10
    with pytest.raises(FileExistsError, match="resume"):
        train(from_values(SETTINGS), folder, run)


def test_metrics_and_strips_are_logged_to_tensorboard(folder, tmp_path):
    train(from_values({**SETTINGS, "steps": 3, "trackers": ["tensorboard"]}), folder, tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "logs" / "transformersr")).Reload()
    assert {"train/loss", "validation/psnr_y", "validation/psnr_y_over_bicubic"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"]


def test_debug_recipe_beats_bicubic(folder, tmp_path):
    """Its sixty short steps bring the network above bicubic on its training images."""
    model = load_model(train(load_recipe("debug", trackers=[], preset="author"), folder, tmp_path / "run"))
    pair = make_pair(find_images(folder)[0], 2, "bicubic")
    with torch.inference_mode():
        ours = score_pair(pair, model(pair.lq), 2)
    assert ours.psnr_y > score_pair(pair, resize_with("bicubic", 2)(pair.lq), 2).psnr_y


def test_init_from_another_scale_keeps_the_body(folder, tmp_path):
    x4 = train(from_values({**SETTINGS, "steps": 1}), folder, tmp_path / "x4")
    net_g = networks.initial_network(from_values({**SETTINGS, "scale": 2, "init": str(x4)}))
    original = load_model(x4)
    assert net_g.config.scale == 2
    assert all(
        torch.equal(tensor, other)
        for tensor, other in zip(net_g.body.state_dict().values(), original.body.state_dict().values(), strict=True)
    )
    with pytest.raises(ValueError, match="init"):
        networks.initial_network(from_values({**SETTINGS, "size": "large", "init": str(x4)}))


@pytest.mark.parametrize("mlp_ratio", [0, 2])
def test_a_deeper_network_starts_as_the_given_one(mlp_ratio, tmp_path, monkeypatch):
    """Such as base from tiny, or any body whose first blocks are those of the given network."""
    small = TransformerSRConfig(embed_dim=16, num_heads=2, blocks="RWC", mlp_ratio=mlp_ratio)
    monkeypatch.setitem(VARIANTS, "base", dataclasses.replace(small, blocks="RWCWRC"))
    given = TransformerSR(small).eval()
    save_model(given, tmp_path / "given.safetensors")
    deeper = networks.initial_network(from_values({**SETTINGS, "scale": 4, "size": "base", "init": str(tmp_path / "given.safetensors")}))
    image = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(deeper.eval()(image), given(image))
    deeper.train()(image).square().mean().backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in (deeper.body[-2].conv2, deeper.body[-1].attention.proj))


def test_run_inside_its_data_folder_does_not_train_on_its_strips(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    train(from_values({**SETTINGS, "steps": 1}), data, data / "run")
    assert (data / "run" / "strips").is_dir()
    split = split_images(data, without=data / "run")
    assert len(split.train) + len(split.validation) == 6


@pytest.fixture
def start(folder, tmp_path_factory):
    """Weights to start from."""
    return train(from_values({**SETTINGS, "steps": 3}), folder, tmp_path_factory.mktemp("start") / "mine")


def test_run_without_improvement_is_reported_and_not_exported(folder, start, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(monitoring, "find_baseline", lambda init, first, bicubic: Baseline("mine", first))
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    train(from_values({**SETTINGS, "init": str(start), "learning_rate": 1.0, "steps": 3}), folder, run)
    assert "best.safetensors (step 0): not better than mine on your images yet" in caplog.text
    assert "best.safetensors is still the same as mine" in caplog.text
    with pytest.raises(ValueError, match=r"this run is not better.*--last"):
        find_weights(run)
    assert find_weights(run, last=True).name == "last.safetensors"


def test_resumed_run_is_still_compared_with_its_start_weights(folder, start, tmp_path):
    config = from_values({**SETTINGS, "init": str(start), "steps": 3})
    train(config, folder, tmp_path / "run")
    first = load_file(tmp_path / "run" / "start.safetensors")
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_file(start).items())
    train(dataclasses.replace(config, steps=6), folder, tmp_path / "run", resume=True)
    records = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    assert [(record["step"], record["measured_on"]) for record in records] == [(0, 2), (3, 2), (6, 2)]
    assert Image.open(tmp_path / "run" / "strips" / "0000006.png").width > Image.open(tmp_path / "run" / "strips" / "0000000.png").width


# --- settings that do not change the weights -----------------------------------------------------


@pytest.mark.parametrize("setting", [{"micro_batch": 1}, {"gradient_checkpointing": True}])
def test_memory_settings_change_only_rounding(folder, tmp_path, setting):
    one = load_file(train(from_values({**SETTINGS, "steps": 3}), folder, tmp_path / "one"))
    other = load_file(train(from_values({**SETTINGS, "steps": 3, **setting}), folder, tmp_path / "other"))
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=2e-4) for name in one)


def test_gradient_checkpointing_saves_memory():
    config = from_values({**SETTINGS, "patch": 16})
    image = torch.zeros(1, 3, 16, 16)
    plain, checkpointed = networks.initial_network(config), networks.initial_network(config)
    checkpointed.gradient_checkpointing = True
    assert networks.saved_bytes(checkpointed, image) < 0.6 * networks.saved_bytes(plain, image)


def test_bf16_training_keeps_float32_weights(folder, tmp_path):
    train(from_values({**SETTINGS, "steps": 3, "precision": "bf16"}), folder, tmp_path / "run")
    assert all(tensor.dtype != torch.bfloat16 for tensor in read_state(tmp_path / "run")["net_g"].values())


@pytest.mark.skipif(not hasattr(torch.cpu, "set_device"), reason="accelerate's CPU processes need PyTorch above 2.1")
@pytest.mark.parametrize("more", [{}, GAN], ids=["pixels", "gan"])
def test_two_processes_give_the_same_weights_as_one(folder, tmp_path, more):
    settings = {**SETTINGS, **more, "batch": 4}
    named = [(f"--{name.replace('_', '-')}", value) for name, value in settings.items() if name != "trackers"]
    options = [name if value is True else f"{name}={value}" for name, value in named]
    command = ["-m", "transformersr.training", "train", str(folder), *options]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launch, *command, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "processes: 2" in done.stderr
    train(from_values(settings), folder, tmp_path / "one")
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=2e-4) for name in one)
    assert len((tmp_path / "two" / "validation.jsonl").read_text().splitlines()) == 3


# --- stopping and resuming -----------------------------------------------------------------------

KILLED = Path(__file__).parent / "programs" / "train_and_die.py"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("more", [{"workers": 0}, {"workers": 2}, GAN], ids=["alone", "workers", "gan"])
def test_killed_run_resumes_to_the_same_bytes(folder, tmp_path, more):
    config = from_values({**SETTINGS, **more})
    train(config, folder, tmp_path / "straight")
    command = [sys.executable, str(KILLED), json.dumps({**SETTINGS, **more}), str(folder), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert read_state(tmp_path / "killed")["progress"]["step"] == 3
    train(config, folder, tmp_path / "killed", resume=True)
    assert_same_state(read_state(tmp_path / "straight"), read_state(tmp_path / "killed"))


def test_stopped_and_finished_runs_print_the_command_to_continue(folder, tmp_path, monkeypatch, caplog):
    run, options = tmp_path / "my run", [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items() if value != []]
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        at_step(patch, {4: lambda: signal.raise_signal(signal.SIGINT)})
        transformersr("train", folder, "--out", run, *options, "--trackers", "none")
    assert read_state(run)["progress"]["step"] == 5
    stopped = logged_command(caplog.text, "to resume: transformersr")
    assert stopped == ["train", "--resume", str(run)]
    transformersr(*stopped)
    assert read_state(run)["progress"]["step"] == 6
    longer = logged_command(caplog.text, "to train longer.*?: transformersr")
    assert longer[:4] == ["train", "--resume", str(run), "--steps"]
    transformersr(*longer[:4], "8")
    assert read_state(run)["progress"]["step"] == 8
    assert json.loads((run / "config.json").read_text())["trackers"] == []


def transformersr(*words):
    CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def logged_command(log, before):
    """Return the words of the last command in a log after the given text."""
    return shlex.split(re.findall(f"{before} (.*)", log)[-1])


@pytest.mark.parametrize("words", [["DATA"], ["--resume", "NONE"], ["--resume", "NONE", "--out", "RUN"]])
def test_missing_run_folder_is_a_usage_error(tmp_path, words):
    result = CliRunner().invoke(main, ["train", *words])
    assert result.exit_code == 2
    assert "--out" in result.output


def test_resume_does_not_need_the_init_weights(folder, tmp_path):
    given = tmp_path / "given.safetensors"
    shutil.copy(train(from_values({**SETTINGS, "steps": 1}), folder, tmp_path / "first"), given)
    config = from_values({**SETTINGS, "init": str(given)})
    train(config, folder, tmp_path / "run")
    given.unlink()
    train(dataclasses.replace(config, steps=7), folder, tmp_path / "run", resume=True)
    assert read_state(tmp_path / "run")["progress"]["step"] == 7


def test_resume_with_another_network_is_rejected(folder, tmp_path):
    train(from_values({**SETTINGS, "steps": 1}), folder, tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        train(from_values({**SETTINGS, "scale": 2}), folder, tmp_path / "run", resume=True)


# --- faults --------------------------------------------------------------------------------------


def nan_loss_at(monkeypatch, *steps):
    """Make the loss NaN at these steps."""
    loss, seen = losses.pixel_loss, iter(range(10**6))

    def broken(*args, **options):
        return loss(*args, **options) * (float("nan") if next(seen) in steps else 1)

    monkeypatch.setattr(losses, "pixel_loss", broken)


def test_non_finite_step_is_skipped_and_its_crops_are_named(folder, tmp_path, monkeypatch, caplog):
    nan_loss_at(monkeypatch, 2)
    train(from_values(SETTINGS), folder, tmp_path / "run")
    saved = read_state(tmp_path / "run")
    assert saved["progress"]["skipped"] == 1
    assert not saved["progress"]["rolled_back"]
    assert all(tensor.isfinite().all() for tensor in saved["net_g"].values())
    assert "step 2 is skipped" in caplog.text
    assert ".png" in caplog.text


def test_ten_non_finite_steps_roll_back_once(folder, tmp_path, monkeypatch):
    train(from_values({**SETTINGS, "steps": 3}), folder, tmp_path / "run")
    good = read_state(tmp_path / "run")["net_g"]
    nan_loss_at(monkeypatch, *range(10))
    train(from_values({**SETTINGS, "steps": 13}), folder, tmp_path / "run", resume=True)
    saved = read_state(tmp_path / "run")
    assert saved["progress"]["rolled_back"]
    assert all(torch.equal(good[name], saved["net_g"][name]) for name in good)
    nan_loss_at(monkeypatch, *range(10))
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train(from_values({**SETTINGS, "steps": 50}), folder, tmp_path / "run", resume=True)
    kept = read_state(tmp_path / "run")["net_g"]
    assert all(torch.equal(good[name], kept[name]) for name in good)


def test_out_of_memory_halves_only_the_micro_batch(folder, tmp_path, monkeypatch, caplog):
    config = {**SETTINGS, "batch": 4, "steps": 3}
    one = load_file(train(from_values(config), folder, tmp_path / "one"))
    once = steps._add_gradients

    def full(accelerator, run, *args):
        if run.progress.micro_batch > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return once(accelerator, run, *args)

    monkeypatch.setattr(steps, "_add_gradients", full)
    other = load_file(train(from_values(config), folder, tmp_path / "other"))
    assert read_state(tmp_path / "other")["progress"]["micro_batch"] == 2
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=2e-4) for name in one)
    assert "the batch stays the same" in caplog.text


def test_full_disk_is_reported_and_saved_files_are_kept(folder, tmp_path, monkeypatch, caplog):
    save, calls = monitoring.save_model, []

    def full(*args, **options):
        calls.append(args)
        if len(calls) == 3:  # the first checkpoint after the start
            raise OSError(28, "No space left on device")
        return save(*args, **options)

    monkeypatch.setattr(monitoring, "save_model", full)
    train(from_values(SETTINGS), folder, tmp_path / "run")
    assert "step 3 is not saved (the disk is full" in caplog.text
    assert read_state(tmp_path / "run")["progress"]["step"] == 6
    assert load_model(tmp_path / "run" / "best.safetensors")


# --- the adversarial stage -----------------------------------------------------------------------


def test_adversarial_run_requires_init_weights():
    with pytest.raises(ValueError, match="init"):
        from_values({**SETTINGS, **GAN, "gan_from_scratch": False})


@pytest.mark.parametrize("relativistic", [False, True])
def test_adversarial_run_trains_both_networks(folder, tmp_path, relativistic):
    train(from_values({**SETTINGS, **GAN, "gan_relativistic": relativistic}), folder, tmp_path / "run")
    saved = read_state(tmp_path / "run")
    assert saved["progress"]["gan_steps"] == 5
    line = json.loads((tmp_path / "run" / "train.jsonl").read_text().splitlines()[-1])
    assert {"loss", "loss_filters", "loss_gan", "loss_d", "d_real", "d_fake", "d_accuracy"} <= set(line)
    assert load_model(tmp_path / "run" / "last.safetensors")


def test_strong_discriminator_pauses_the_gan_ramp(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "STRONG_STEPS", 3)
    monkeypatch.setattr(steps, "STRONG", 0.0)
    train(from_values({**SETTINGS, **GAN, "steps": 9}), folder, tmp_path / "run")
    assert read_state(tmp_path / "run")["progress"]["gan_steps"] == 2
