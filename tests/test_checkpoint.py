"""Files of weights: ours, the author's, and everything that is neither."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from transformersr.arch import CheckpointError, load_model, save_model
from transformersr.arch.checkpoint import convert_file, describe, read_checkpoint

from plain_v1 import newer_keys, random_state
from random_models import V1, V2, random_model


@pytest.fixture
def author_file(tmp_path):
    path = tmp_path / "transformerSR_b2_d32_w8_h4.pt"
    torch.save(random_state(pairs=2, dim=32, scale=4), path)
    return path


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_networks_load_as_they_were(tmp_path, config, dtype):
    model = random_model(config)
    save_model(model, tmp_path / "model.safetensors", dtype, {"card": "text"})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype).float() if dtype and tensor.is_floating_point() else tensor)
    assert describe(tmp_path / "model.safetensors")["card"] == "text"


def test_the_tensors_alone_say_what_they_are(tmp_path):
    model = random_model(V2)
    save_file(model.half().state_dict(), tmp_path / "bare.safetensors")
    assert load_model(tmp_path / "bare.safetensors").config == V2


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrapper, prefix, suffix):
    state = {prefix + name: tensor for name, tensor in random_state(pairs=1, dim=16, scale=2).items()}
    path = tmp_path / f"transformerSR_b1_d16_w4_h2{suffix}"
    torch.save({wrapper: state, "step": 5} if wrapper else state, path)
    config = load_model(path).config
    assert (config.num_heads, config.window_size, config.blocks, config.scale) == (2, 4, "WC", 2)


def test_both_author_layouts_are_one_network(tmp_path):
    state = random_state(pairs=2, dim=32, scale=4)
    torch.save(state, tmp_path / "a_w4_h4.pt")
    torch.save(newer_keys(state), tmp_path / "b_w4_h4.pt")
    older, newer = (read_checkpoint(tmp_path / name) for name in ("a_w4_h4.pt", "b_w4_h4.pt"))
    assert (older.source, newer.source) == ("original, older keys", "original, newer keys")
    assert older.config == newer.config
    assert all(torch.equal(older.weights[name], newer.weights[name]) for name in older.weights)


def test_file_name_then_author_defaults_then_caller_decide_heads_and_window(tmp_path, author_file):
    assert (load_model(author_file).config.window_size, load_model(author_file).config.num_heads) == (8, 4)
    renamed = author_file.rename(tmp_path / "my favourite.pt")
    assert (load_model(renamed).config.window_size, load_model(renamed).config.num_heads) == (4, 16)
    given = load_model(renamed, window_size=8, num_heads=2).config
    assert (given.window_size, given.num_heads) == (8, 2)


def test_conversion_keeps_the_network_and_the_source(tmp_path, author_file):
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


def _classifier():
    return {
        "blocks.0.weight": torch.zeros(8, 3, 3, 3),
        "blocks.1.window_attention.qkv.weight": torch.zeros(24, 8),
        "blocks.9.weight": torch.zeros(5, 8),
    }


BAD = {
    "classifier.pt": (lambda path: torch.save(_classifier(), path), "tag classifier"),
    "esrgan.pth": (lambda path: torch.save({"params_ema": {"body.0.rdb1.conv1.weight": torch.zeros(1)}}, path), "RRDB"),
    "stranger.pth": (lambda path: torch.save({"a": torch.zeros(1)}, path), "not a TransformerSR"),
    "numbers.pt": (lambda path: torch.save({"a": 1}, path), "state dict"),
    "code.pt": (lambda path: torch.save({"a": Evil()}, path), "code"),
    "raw.ckpt": (lambda path: path.write_bytes(pickle.dumps(Evil())), "code"),
    "page.pt": (lambda path: path.write_text("<!DOCTYPE html><html>sign in</html>"), "web page"),
    "empty.pt": (lambda path: path.write_bytes(b""), "empty"),
    "text.safetensors": (lambda path: path.write_text("hello"), "neither"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_get_one_sentence_with_their_name(tmp_path, monkeypatch, name):
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
def test_truncated_files_are_named(tmp_path, kind, kept):
    path = tmp_path / f"cut.{kind}"
    model = random_model(V2)
    save_model(model, path) if kind == "safetensors" else torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match=r"cut\.\w+: the .*(damaged|cut short)"):
        load_model(path)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda state: state.pop("upsample.bias"), "missing"),
        (lambda state: state.update(more=torch.zeros(1)), "do not belong"),
        (lambda state: state.update({"upsample.bias": torch.zeros(5)}), "shape"),
        (lambda state: state["upsample.bias"].fill_(float("nan")), "not finite"),
        (lambda state: state.update(architecture=torch.tensor([9, 2, 4])), "newer version"),
        (lambda state: state.update(architecture=torch.tensor([2, 2, 4, 3, 4096, 1024, 8, 0, *[1] * 200])), "missing|shape"),
    ],
)
def test_networks_that_do_not_fit_their_description_are_refused(tmp_path, spoil, expected):
    state = random_model(V2).state_dict()
    spoil(state)
    save_file(state, tmp_path / "spoilt.safetensors")
    with pytest.raises(CheckpointError, match=expected):
        load_model(tmp_path / "spoilt.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(random_model(V2), path)
    before = path.read_bytes()
    monkeypatch.setattr("transformersr.arch.checkpoint.save", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(random_model(V2, seed=1), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_written_files_have_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    save_model(random_model(V2), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
