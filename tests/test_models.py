"""Model lists of a host's folders, and conversion of pickled files to safetensors."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from transformersr.upscale import models
from transformersr.upscale.checkpoint import CheckpointError, load_model, save_model
from transformersr.upscale.models import as_safetensors, find_in_list, is_transformersr, list_models
from transformersr.upscale.upscaler import available_models

from plain_v1 import newer_keys, random_state
from random_models import V2, random_model


@pytest.fixture
def folder(tmp_path):
    """A model folder with our weights, original checkpoints, other networks, and files that are not weights."""
    author = random_state(pairs=1, dim=32, scale=2)
    (tmp_path / "anime").mkdir()
    save_model(random_model(V2), tmp_path / "anime" / "mine.safetensors")
    torch.save(author, tmp_path / "older.pt")
    torch.save({"params_ema": {f"module.{name}": tensor for name, tensor in newer_keys(author).items()}}, tmp_path / "newer.pth")
    torch.save(author, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save({"conv_first.weight": torch.zeros(1), "body.0.rdb1.conv1.weight": torch.zeros(1)}, tmp_path / "esrgan.pth")
    foreign = {"conv_first.weight": torch.zeros(1), "upsample.weight": torch.zeros(1)}
    save_file(foreign, tmp_path / "swinir.safetensors", {"architecture": "SwinIR"})
    (tmp_path / "notes.pt").write_text("hello")
    (tmp_path / "empty.safetensors").touch()
    return tmp_path


def own(folder) -> list[str]:
    return [label for label in list_models([folder]) if label not in available_models()]


def test_shipped_models_are_listed_first_and_foreign_files_not_at_all(folder):
    assert list(list_models([folder, folder / "missing"])) == [*available_models(), *own(folder)]
    assert own(folder) == ["anime/mine.safetensors", "legacy.ckpt", "newer.pth", "older.pt"]


def test_listing_unpickles_nothing_and_is_cached(folder, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("listing read the weights"))
    first = own(folder)
    misses = models._look_into.cache_info().misses
    assert own(folder) == first
    assert models._look_into.cache_info().misses == misses


def test_first_folder_wins_and_symlink_loops_end(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copy(folder / "older.pt", other)
    (other / "again").symlink_to(other, target_is_directory=True)
    found = list_models([other, folder])
    assert found["older.pt"] == other / "older.pt"
    assert not any(label.startswith("again") for label in found)


def test_damaged_file_with_our_name_is_listed_and_explained_on_use(folder):
    (folder / "transformerSR_b8.pt").write_text("<html>Sign in</html>")
    assert "transformerSR_b8.pt" in own(folder)
    with pytest.raises(CheckpointError, match=r"transformerSR_b8\.pt: this is a web page"):
        as_safetensors(folder / "transformerSR_b8.pt")


def test_labels_may_use_backslashes_and_unknown_ones_are_reported(folder):
    listed = list_models([folder])
    assert find_in_list("anime\\mine.safetensors", listed) == folder / "anime" / "mine.safetensors"
    for label in ("", ".", "/"):
        with pytest.raises(FileNotFoundError):
            find_in_list(label, listed)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no TransformerSR model of this name; available: x4-base"):
        find_in_list("gone.pth", listed)


@pytest.mark.parametrize("name", ["older.pt", "newer.pth", "legacy.ckpt"])
def test_first_use_converts_next_to_the_pickle_and_keeps_it(folder, name):
    before, labels = (folder / name).read_bytes(), own(folder)
    converted = as_safetensors(folder / name)
    assert converted == (folder / name).with_suffix(".safetensors")
    assert (folder / name).read_bytes() == before
    assert own(folder) == labels  # not listed twice
    written = converted.stat().st_mtime_ns
    assert as_safetensors(folder / name) == converted
    assert converted.stat().st_mtime_ns == written  # not converted twice
    expected = load_model(folder / name).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in load_model(converted).state_dict().items())


def test_replaced_pickle_is_converted_again(folder):
    converted = as_safetensors(folder / "older.pt")
    torch.save(random_state(pairs=2, dim=32, scale=2), folder / "older.pt")
    assert load_model(as_safetensors(folder / "older.pt")).config.blocks == "WCWC"
    (folder / "older.pt").unlink()
    assert find_in_list("older.pt", list_models([folder])) == converted


def test_conversion_never_overwrites_an_unrelated_file(folder):
    save_model(random_model(V2), folder / "older.safetensors", metadata={"card": "mine"})
    assert as_safetensors(folder / "older.pt") == folder / "older.pt"
    cached = as_safetensors(folder / "older.pt", folder / "new" / "cache")
    assert cached.parent == folder / "new" / "cache"
    assert as_safetensors(folder / "older.pt", folder / "new" / "cache") == cached
    with safe_open(folder / "older.safetensors", "pt") as file:
        assert file.metadata()["card"] == "mine"


def test_read_only_folder_falls_back_to_the_cache(folder, monkeypatch):
    target = folder / "older.safetensors"
    convert = models.convert_file

    def refuse(source, path, **options):
        if path == target:
            raise PermissionError(13, "read-only", str(path))
        convert(source, path, **options)

    monkeypatch.setattr(models, "convert_file", refuse)
    assert as_safetensors(folder / "older.pt", folder / "cache").parent == folder / "cache"
    assert as_safetensors(folder / "older.pt") == folder / "older.pt"
    assert not target.exists()


def test_pickle_named_safetensors_is_not_replaced(folder):
    os.replace(folder / "older.pt", folder / "renamed.safetensors")
    assert is_transformersr(folder / "renamed.safetensors")
    before = (folder / "renamed.safetensors").read_bytes()
    assert load_model(as_safetensors(folder / "renamed.safetensors", folder / "cache")).config.scale == 2
    assert (folder / "renamed.safetensors").read_bytes() == before
