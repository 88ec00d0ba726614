"""Untrusted training files: state, feature weights and recipes run no code, take little memory, and are rejected in one sentence."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformersr.training.config import TrainConfig, from_values, load_recipe
from transformersr.training.perceptual import VGG19_LAYERS, FeatureLoss
from transformersr.training.run_state import RunState
from transformersr.upscale.checkpoint import CheckpointError

from pickle_assembler import (
    ATTACKS,
    FALSE_SIZES,
    write_checkpoint,
)
from plain_v1 import random_state
from untrusted_files import FEW, assert_rejected, read_or_reject, save_any, save_pickle

# --- the state of a run --------------------------------------------------------------------------


TINY_RUN = from_values({"size": "tiny", "scale": 2, "init": "none", "seed": 1, "optimizer": "adamw"})


@pytest.fixture
def run(tiny_network):
    """The state of a run with a tiny network, after one step."""
    state = RunState.start(TINY_RUN, torch.device("cpu"))
    for parameter in state.net_g.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return state


def save_changed(run: RunState, path: Path, change) -> Path:
    """Save the state of a run with a change applied."""
    run.save(path)
    content = torch.load(path, weights_only=True)
    change(content)
    return save_pickle(path, content)


def test_state_is_restored_and_optimizer_settings_come_from_the_config(run, tmp_path):
    run.save(tmp_path / "state.pt")
    again = RunState.resume(tmp_path / "state.pt", dataclasses.replace(TINY_RUN, weight_decay=0.5), torch.device("cpu"))
    assert again.progress == run.progress
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.5
    saved, restored = run.optimizer.state_dict()["state"], again.optimizer.state_dict()["state"]
    assert all(torch.equal(restored[key][name], value) for key, values in saved.items() for name, value in values.items())


class Scaler:
    """A stand-in for GradScaler with the parts that a state uses."""

    def __init__(self, scale: float):
        self.scale = scale

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


def test_fp16_gradient_scale_is_restored(run, tmp_path):
    run.scaler = Scaler(512.0)
    run.save(tmp_path / "state.pt")
    scaler = Scaler(65536.0)
    RunState.resume(tmp_path / "state.pt", TINY_RUN, torch.device("cpu"), scaler)
    assert scaler.scale == 512.0


REPEATED = b"]q\x01" + b"".join(b"](" + bytes([ord("h"), index]) * 20 + b"eq" + bytes([index + 1]) for index in range(1, 12))
STATES = {
    **{kind: ATTACKS[kind] for kind in ("system", "eval", "nested", "load", "state of a class", "extension")},
    **{kind: FALSE_SIZES[kind] for kind in ("repeated", "set of rows", "storage", "long bytes", "deep key", "nothing")},
    "lists of lists": REPEATED,
    "a list that holds itself": b"]q\x01h\x01a",
}


@pytest.mark.parametrize("attack", STATES)
def test_malicious_state_runs_no_code_and_takes_no_memory(run, tmp_path, monkeypatch, attack):
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (run.load, run.roll_back):
        assert_rejected(write_checkpoint(tmp_path / "state.pt", STATES[attack]), ValueError, read)
    assert os.listdir(tmp_path) == ["state.pt"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10


CHANGES = {
    "step": lambda content: content["progress"].update(step="7"),
    "negative": lambda content: content["progress"].update(step=-1),
    "not a number": lambda content: content["progress"].update(seconds=float("nan")),
    "unknown": lambda content: content["progress"].update(more=1),
    "no weights": lambda content: content.pop("ema"),
    "numbered weights": lambda content: content.update(net_g={0: torch.zeros(1)}),
    "a list": lambda content: content.update(optimizer=[1, 2]),
    "another shape": lambda content: content["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "no tensor": lambda content: content["optimizer"]["state"][0].update(exp_avg=7),
    "no such parameter": lambda content: content["optimizer"]["state"].update({10**6: {"step": torch.zeros(1)}}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_modified_state_is_rejected(run, tmp_path, change):
    path = save_changed(run, tmp_path / "state.pt", CHANGES[change])
    assert "of a run with other settings" in assert_rejected(path, ValueError, run.load)
    path.write_bytes(path.read_bytes()[:1000])
    assert_rejected(path, ValueError, run.load)


# --- features ------------------------------------------------------------------------------------


def vgg19(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return weights with torchvision's names, one channel wide; in the names of changes "_" stands for "."."""
    sides = {index: 3 if index == 0 else 1 for index in VGG19_LAYERS}
    state = {f"features.{index}.weight": torch.ones(1, side, 3, 3) for index, side in sides.items()}
    state |= {f"features.{index}.bias": torch.ones(1) for index in sides}
    return state | {name.replace("_", "."): value for name, value in changes.items()}


FEATURES = {
    "sides without numbers": vgg19(features_0_weight=torch.zeros(2**20, 2**20, 0, 0)),
    "as many biases": vgg19(features_0_weight=torch.zeros(2**20, 3, 0, 0), features_0_bias=torch.zeros(2**20)),
    "no bias": vgg19(features_2_bias=torch.tensor(1.0)),
    "channels that do not follow": vgg19(features_5_weight=torch.ones(1, 9, 3, 3)),
    "not a number": vgg19(features_7_weight=torch.full((1, 1, 3, 3), torch.nan)),
    "whole numbers": vgg19(features_10_bias=torch.ones(1, dtype=torch.int64)),
    "complex": vgg19(features_10_bias=torch.ones(1, dtype=torch.complex64)),
    "another network": random_state(pairs=1, dim=8, scale=2),
}


@pytest.mark.parametrize("fault", FEATURES)
def test_feature_files_other_than_vgg19_are_rejected(tmp_path, fault):
    for path in (save_any(tmp_path / "vgg.safetensors", FEATURES[fault]), save_pickle(tmp_path / "vgg.pth", FEATURES[fault])):
        assert "expected the state dict of torchvision's VGG19" in assert_rejected(path, CheckpointError, FeatureLoss)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_code_runs_from_a_feature_file(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    assert "code" in assert_rejected(
        write_checkpoint(tmp_path / "vgg.safetensors", ATTACKS[attack]), CheckpointError, FeatureLoss
    )  # detected by content
    assert os.listdir(tmp_path) == ["vgg.safetensors"]


# --- recipes -------------------------------------------------------------------------------------

RECIPES = {
    "deep.toml": (b"a = " + b"[" * 50_000, "brackets"),
    "deep.json": (b"[" * 200_000, "brackets"),
    "list.json": (b"[1, 2]", "settings by name"),
    "latin.toml": (b"size = 'caf\xe9'", "UTF-8"),
    "lines.toml": (b'"a\\nb" = 1', r"a\\nb"),
    "long.toml": (b"size = '" + b"x" * 100_000 + b"'", r"x\.\.\."),
    "digits.toml": (b"steps = " + b"9" * 5000, "digits"),
    "float.toml": (b"minutes = " + b"9" * 400, "expected float"),
    "endless.toml": (b"minutes = inf", "finite"),
    "nan.toml": (b"learning_rate = nan", "expected a finite number"),
    "batch.toml": (b"batch = 10000000000", "expected 65536 or less"),
    "patch.toml": (b"patch = 8000000000", "expected 2048 or less"),
    "seed.toml": (b"seed = 9223372036854775808", "or less"),
    "phase.toml": (b"phases = ['5 at nan']", "STEPS at RATE"),
    "before.toml": (b"phases = ['-5 at 1e-4']", "STEPS at RATE"),
    "large.toml": (b"#" * (2**23 + 1), "too large"),
}


@pytest.mark.parametrize("file", RECIPES)
def test_invalid_recipes_are_rejected(tmp_path, file):
    (tmp_path / file).write_bytes(RECIPES[file][0])
    with pytest.raises(ValueError, match=RECIPES[file][1]):
        load_recipe(tmp_path / file)
    assert_rejected(tmp_path / file, ValueError, load_recipe)


VALUES = st.one_of(st.integers(), st.floats(), st.text(max_size=9), st.booleans(), st.none(), st.lists(st.text(max_size=5), max_size=3))


@FEW
@given(values=st.dictionaries(st.sampled_from(sorted(TrainConfig.__dataclass_fields__)), VALUES, max_size=4))
def test_random_settings_are_rejected_or_read(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    read_or_reject(tmp_path / "config.json", ValueError, load_recipe)
