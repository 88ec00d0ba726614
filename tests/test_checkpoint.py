"""Weight files: our own, the original author's, and files that are neither."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from transformersr.upscale.checkpoint import CheckpointError, convert_file, describe, load_model, read_checkpoint, save_model

from plain_v1 import newer_keys, random_state
from random_models import V1, V2, random_model


@pytest.fixture
def author_file(tmp_path):
    path = tmp_path / "transformerSR_b2_d32_w8_h4.pt"
    torch.save(random_state(pairs=2, dim=32, scale=4), path)
    return path


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_networks_load_unchanged(tmp_path, config, dtype):
    model = random_model(config)
    save_model(model, tmp_path / "model.safetensors", dtype, {"card": "text"})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype).float() if dtype and tensor.is_floating_point() else tensor)
    assert describe(tmp_path / "model.safetensors")["card"] == "text"


def test_facts_about_the_training_run_are_described_line_by_line(tmp_path):
    facts = {"step": 7, "scores": {"psnr_y": 33.123456, "better_on": 3}, "none": []}
    facts["average"] = [{"file": "a", "share": 0.25}, {"file": "b"}]
    save_model(random_model(V2), tmp_path / "model.safetensors", metadata={"training": json.dumps(facts)})
    described = describe(tmp_path / "model.safetensors")
    assert described["training step"] == "7"
    assert described["training scores"] == "psnr_y 33.12, better_on 3"
    assert described["training average 1"] == "file a, share 0.25"
    assert described["training average 2"] == "file b"
    assert described["training none"] == "[]"


def test_config_is_recovered_from_tensors_alone(tmp_path):
    model = random_model(V2)
    save_file(model.half().state_dict(), tmp_path / "bare.safetensors")
    assert load_model(tmp_path / "bare.safetensors").config == V2


RAW, AVERAGE = 1.0, 2.0
WRAPPED = {
    "BasicSR, traiNNer, neosr": lambda raw, ema: {"params": raw, "params_ema": ema},
    "an older BasicSR": lambda raw, ema: {"params": raw, "params-ema": ema},
    "k-diffusion, karras": lambda raw, ema: {"model": raw, "model_ema": ema, "opt": {"state": {}}},
    "ema next to model": lambda raw, ema: {"model": raw, "ema": ema},
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema, "args": argparse.Namespace(lr=1.0), "epoch": 3},
    "ema_state_dict": lambda raw, ema: {"model_state_dict": raw, "ema_state_dict": ema},
    "deep": lambda raw, ema: {"networks": {"g": {"weights": raw, "weights_ema": ema}}, "metric": np.float64(31.5), "at": Path("x")},
    "Lightning": lambda raw, ema: {
        "state_dict": add_prefix(raw, "net_g.") | add_prefix(ema, "net_g_ema.") | {"net_d.conv.weight": torch.ones(1)}
    },
    "Lightning, callback": lambda raw, ema: {"state_dict": add_prefix(raw, "model."), "callbacks": {"EMA": {"ema_state_dict": ema}}},
    "Lightning, LitEma": lambda raw, ema: {
        "state_dict": add_prefix(raw, "model.") | {"model_ema." + name.replace(".", ""): value for name, value in ema.items()}
    },
    "ema-pytorch": lambda raw, ema: add_prefix(raw, "online_model.") | add_prefix(ema, "ema_model.") | {"step": torch.tensor(5)},
    "mmagic": lambda raw, ema: {"state_dict": add_prefix(raw, "generator.") | add_prefix(ema, "generator_ema."), "meta": {"iter": 3}},
    "average of parameters alone": lambda raw, ema: {"net": raw, "ema": {k: v for k, v in ema.items() if k != "architecture"}},
    "torch.compile within DDP": lambda raw, ema: {"params_ema": add_prefix(ema, "module._orig_mod."), "params": add_prefix(raw, "module.")},
    "AveragedModel": lambda raw, ema: {"n_averaged": torch.tensor(5), **add_prefix(ema, "module.")},
    "netG": lambda raw, ema: {"netG": ema, "netD": {"conv.weight": torch.ones(1)}},
    "bare": lambda raw, ema: ema,
}


def add_prefix(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def raw_and_ema_states():
    state = random_model(V2).state_dict()
    return [
        {name: value.clone() if name == "architecture" else torch.full_like(value, fill) for name, value in state.items()}
        for fill in (RAW, AVERAGE)
    ]


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_ema_weights_are_found_in_any_wrapper(tmp_path, wrapper):
    torch.save(WRAPPED[wrapper](*raw_and_ema_states()), tmp_path / "a.pth")
    assert float(load_model(tmp_path / "a.pth").conv_first.weight.detach().mean()) == AVERAGE


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "net_g.", "model.", "netG.module."])
def test_prefixes_are_stripped_in_safetensors(tmp_path, prefix):
    raw, ema = raw_and_ema_states()
    save_file(add_prefix(ema, prefix), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors").config == V2
    save_file(add_prefix(raw, prefix) | add_prefix(ema, "ema." + prefix), tmp_path / "b.safetensors")
    assert float(load_model(tmp_path / "b.safetensors").conv_first.weight.detach().mean()) == AVERAGE


@pytest.mark.parametrize("wrapper", ["params", "state_dict", "my_own_name", None])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_wrappers_and_prefixes_are_stripped_from_original_checkpoints(tmp_path, wrapper, prefix, suffix):
    state = add_prefix(random_state(pairs=1, dim=16, scale=2), prefix)
    path = tmp_path / f"transformerSR_b1_d16_w4_h2{suffix}"
    torch.save({wrapper: state, "step": 5} if wrapper else state, path)
    config = load_model(path).config
    assert (config.num_heads, config.window_size, config.blocks, config.scale) == (2, 4, "WC", 2)


def test_both_original_layouts_load_as_the_same_network(tmp_path):
    state = random_state(pairs=2, dim=32, scale=4)
    torch.save(state, tmp_path / "a_w4_h4.pt")
    torch.save(newer_keys(state), tmp_path / "b_w4_h4.pt")
    older, newer = (read_checkpoint(tmp_path / name) for name in ("a_w4_h4.pt", "b_w4_h4.pt"))
    assert (older.source, newer.source) == ("original, older keys", "original, newer keys")
    assert older.config == newer.config
    assert all(torch.equal(older.weights[name], newer.weights[name]) for name in older.weights)


def test_heads_and_window_come_from_caller_then_file_name_then_defaults(tmp_path, author_file):
    assert (load_model(author_file).config.window_size, load_model(author_file).config.num_heads) == (8, 4)
    renamed = author_file.rename(tmp_path / "my favourite.pt")
    assert (load_model(renamed).config.window_size, load_model(renamed).config.num_heads) == (4, 16)
    given = load_model(renamed, window_size=8, num_heads=2).config
    assert (given.window_size, given.num_heads) == (8, 2)


def test_conversion_keeps_the_weights_and_the_source_file(tmp_path, author_file):
    before = author_file.read_bytes()
    convert_file(author_file, tmp_path / "out.safetensors")
    image = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(load_model(author_file)(image), load_model(tmp_path / "out.safetensors")(image))
    assert author_file.read_bytes() == before
    convert_file(author_file, tmp_path / "half.safetensors", torch.float16)
    assert describe(tmp_path / "half.safetensors")["dtype"] == "float16"


class Evil:
    def __reduce__(self):
        return os.system, ("touch should-not-exist",)


def classifier_state():
    return {
        "blocks.0.weight": torch.zeros(8, 3, 3, 3),
        "blocks.1.window_attention.qkv.weight": torch.zeros(24, 8),
        "blocks.9.weight": torch.zeros(5, 8),
    }


def write_zip(path, name):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"weights")


BAD = {
    "classifier.pt": (lambda path: torch.save(classifier_state(), path), "tag classifier"),
    "esrgan.pth": (lambda path: torch.save({"params_ema": {"body.0.rdb1.conv1.weight": torch.zeros(1)}}, path), "RRDB"),
    "unrelated.pth": (lambda path: torch.save({"a": torch.zeros(1)}, path), "not a TransformerSR"),
    "numbers.pt": (lambda path: torch.save({"a": 1}, path), "state dict"),
    "code.pt": (lambda path: torch.save({"a": Evil()}, path), "code"),
    "raw.ckpt": (lambda path: path.write_bytes(pickle.dumps(Evil())), "code"),
    "page.pt": (lambda path: path.write_text("<!DOCTYPE html><html>sign in</html>"), "web page"),
    "empty.pt": (lambda path: path.write_bytes(b""), "empty"),
    "pointer.safetensors": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), "Git LFS"),
    "packed.pth": (lambda path: write_zip(path, "model.safetensors"), "zip file with 'model.safetensors' in it; unpack"),
    "packed.pt": (lambda path: write_zip(path, "readme.txt"), "zip file without weights"),
    "packed.safetensors": (lambda path: path.write_bytes(b"7z\xbc\xaf" + bytes(100)), "packed archive"),
    "script.pt": (lambda path: torch.jit.script(torch.nn.ReLU()).save(str(path)), "TorchScript"),
    "index.safetensors": (lambda path: path.write_text('{"weight_map": {}}'), "JSON"),
    "text.safetensors": (lambda path: path.write_text("hello"), "text file"),
    "noise.safetensors": (lambda path: path.write_bytes(bytes(range(9))), "neither"),
}


@pytest.mark.parametrize("name", BAD)
def test_unsupported_files_are_rejected_in_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write, expected = BAD[name]
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_model(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "should-not-exist").exists()


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("kept", [0.999, 0.5, 0.02])
def test_truncated_files_are_rejected_by_name(tmp_path, kind, kept):
    path = tmp_path / f"cut.{kind}"
    model = random_model(V2)
    save_model(model, path) if kind == "safetensors" else torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match=r"cut\.\w+: the .*(damaged|cut short)"):
        load_model(path)


@pytest.mark.parametrize(
    ("modify", "expected"),
    [
        (lambda state: state.pop("upsample.bias"), "missing"),
        (lambda state: state.update(more=torch.zeros(1)), "are not part of the network"),
        (lambda state: state.update({"upsample.bias": torch.zeros(5)}), "shape"),
        (lambda state: state["upsample.bias"].fill_(float("nan")), "not finite"),
        (lambda state: state.update(architecture=torch.tensor([9, 2, 4])), "newer version"),
        (lambda state: state.update(architecture=torch.tensor([2, 2, 4, 3, 4096, 1024, 8, 0, *[1] * 200])), "missing|shape"),
    ],
)
def test_weights_that_contradict_their_config_are_rejected(tmp_path, modify, expected):
    state = random_model(V2).state_dict()
    modify(state)
    save_file(state, tmp_path / "modified.safetensors")
    with pytest.raises(CheckpointError, match=expected):
        load_model(tmp_path / "modified.safetensors")


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(random_model(V2), path)
    before = path.read_bytes()
    monkeypatch.setattr("transformersr.upscale.checkpoint.save", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(random_model(V2, seed=1), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_written_files_get_default_permissions(tmp_path):
    (tmp_path / "plain").touch()
    save_model(random_model(V2), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
