"""Untrusted weight files: no code runs, memory stays bounded, and one sentence names the file.

`long/fuzz_files.py` does the same with many more files.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from transformersr.upscale.checkpoint import CheckpointError, describe, load_model, save_model
from transformersr.upscale.image_io import read_image
from transformersr.upscale.image_safety import ImageError
from transformersr.upscale.messages import one_line
from transformersr.upscale.models import list_models

from pickle_assembler import (
    ATTACKS,
    FALSE_SIZES,
    push_global,
    push_int,
    push_storage,
    push_tensor,
    push_text,
    write_checkpoint,
)
from plain_v1 import newer_keys, random_state
from random_models import V2, random_model
from untrusted_files import FEW, assert_rejected, read_or_reject, save_any, save_pickle

# --- pickles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_code_runs_from_a_pickle(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keep").mkdir()
    older = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    raw = {
        "a.pth": b"\x80\x02" + ATTACKS[attack] + b".",
        "b.ckpt": older + b"\x80\x02}" + push_text("x") + ATTACKS[attack] + b"s.\x80\x02].",
    }
    for file, content in raw.items():
        (tmp_path / file).write_bytes(content)
    for path in (*map(tmp_path.joinpath, raw), write_checkpoint(tmp_path / "c.pt", ATTACKS[attack])):
        assert "contains Python objects or code" in assert_rejected(path)
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.ckpt", "c.pt", "keep"]


def test_tar_and_torchscript_archives_are_not_opened(tmp_path):
    """PyTorch before 2.6 runs code from tar files even with weights_only, and recognises them whatever their first bytes are."""
    for first in ("PK\x03\x04", "pickle", "\x80\x02"):
        with tarfile.open(tmp_path / "tar.pt", "w", encoding="latin-1") as archive:
            archive.addfile(tarfile.TarInfo(first), io.BytesIO())
        assert_rejected(tmp_path / "tar.pt")
    script = write_checkpoint(
        tmp_path / "script.pt", ATTACKS["script"], {"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"import os"}
    )
    assert "code" in assert_rejected(script)


@pytest.mark.parametrize("kind", FALSE_SIZES)
def test_pickles_with_false_sizes_take_no_memory(tmp_path, kind):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_rejected(write_checkpoint(tmp_path / "false.pt", FALSE_SIZES[kind]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_zip_bombs_are_rejected(tmp_path):
    bomb = write_checkpoint(
        tmp_path / "bomb.pt", push_tensor((2**24,), (1,), push_storage(2**24)), {"data/0": bytes(2**26)}, zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 2**17
    assert "compressed" in assert_rejected(bomb)
    shared = b"".join(push_text(str(index)) + push_tensor((2**16,), (1,), push_storage(2**16)) + b"s" for index in range(50))
    with zipfile.ZipFile(tmp_path / "shared.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + shared + b".")
        archive.writestr("a/data/0", bytes(2**18))
    assert "would take 13,107,200 bytes" in assert_rejected(tmp_path / "shared.pt")


def test_self_referencing_dict_is_rejected(tmp_path):
    (tmp_path / "itself.pt").write_bytes(write_checkpoint(tmp_path / "a.pt", b"}q\x00" + push_text("model") + b"h\x00s").read_bytes())
    assert_rejected(tmp_path / "itself.pt")
    with zipfile.ZipFile(tmp_path / "itself.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00" + push_text("model") + b"h\x00s.")
    assert_rejected(tmp_path / "itself.pt")


def test_every_pytorch_checkpoint_format_is_read(tmp_path):
    """Both formats, several protocols, half precision, transposed tensors, parameters, and the other contents of training checkpoints."""
    state = random_state(pairs=1, dim=16, scale=2)
    expected = load_model(save_pickle(tmp_path / "plain_w4_h2.pt", state)).state_dict()
    transposed = {key: value.t().contiguous().t() if value.ndim == 2 else value for key, value in state.items()}
    optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    extras = {"optimizer": optimiser, "size": torch.Size([1]), "flags": {1, 2}, "step": 3, "rates": [0.1], "name": b"x"}
    contents = [transposed, {key: torch.nn.Parameter(value) for key, value in state.items()}, {"state_dict": state, **extras}]
    for content in contents:
        for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 3}):
            loaded = load_model(save_pickle(tmp_path / "any_w4_h2.pth", content, **options)).state_dict()
            assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    half = {key: value.bfloat16() for key, value in state.items()}
    assert describe(save_pickle(tmp_path / "half_w4_h2.pt", half))["dtype"] == "bfloat16"


INSTRUCTIONS = [bytes([code]) for code in b"N}])(t\x85RQsuaeb02\x90\x8f\x81"] + [b"q\x00", b"h\x00", b"(d", b"(l"]
NAMES = ["torch.Size", "os.system", "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"]
VALUES = [push_int(0), push_int(1), push_int(2**40), push_text("x"), push_storage(), push_tensor((1,), (1,)), *map(push_global, NAMES)]


@FEW
@given(program=st.lists(st.sampled_from(INSTRUCTIONS + VALUES), max_size=30))
def test_random_pickle_programs_are_rejected(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    assert_rejected(write_checkpoint(tmp_path / "program.pt", b"".join(program)))
    assert os.listdir(tmp_path) == ["program.pt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_weights_from_a_pipe_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "transformersr.pt")
    assert "expected a file" in assert_rejected(tmp_path / "transformersr.pt")


# --- safetensors ------------------------------------------------------------------------


def header(content: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(shape: list[int], offsets: tuple[int, int], dtype: str = "F32") -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "longer than the file": header(b"{}", length=2**20),
    "longer than memory": header(b"{}", length=2**63),
    "none": header(b"{}", length=0),
    "deep": header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "huge": header(entry([2**40], (0, 2**42))),
    "more than there is": header(entry([10], (0, 40)), b"\0" * 4),
    "less than there is": header(entry([1], (0, 4)), b"\0" * 40),
    "overflow": header(entry([2**62, 2**62], (0, 4)), b"\0" * 4),
    "negative": header(entry([-1], (0, 4)), b"\0" * 4),
    "backwards": header(entry([1], (4, 0)), b"\0" * 4),
    "unknown type": header(entry([1], (0, 4), "F3"), b"\0" * 4),
    "no mapping": header({"a": 7}),
    "metadata of numbers": header({"__metadata__": {"converted_from": 7}}),
    "metadata in a list": header({"__metadata__": ["config"]}),
    "twice": header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "empty": header(b"{}"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_false_headers_are_rejected_and_do_not_break_listing(tmp_path, kind):
    (tmp_path / "false.safetensors").write_bytes(HEADERS[kind])
    assert_rejected(tmp_path / "false.safetensors")
    assert "false.safetensors" not in list_models([tmp_path])


@pytest.mark.parametrize("source", ["../../etc/passwd 1-2", "a/b 1-2", "\0 1-2", ".. 1-2", " ", "x" * 5000 + " 1-2", 7])
def test_listing_follows_no_path_stored_in_a_file(tmp_path, source):
    tensors = {
        key: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for key in ("architecture", "conv_first.weight", "upsample.weight")
    }
    (tmp_path / "ours.safetensors").write_bytes(header({**tensors, "__metadata__": {"converted_from": source}}))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pth")
    assert "ours.safetensors" in list_models([tmp_path])


def modified_state(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return a state dict with some tensors changed or, for None, removed; "." in a name is written "_0_"."""
    state = {**random_model(V2).state_dict(), **{key.replace("_0_", "."): value for key, value in changes.items()}}
    return {key: value for key, value in state.items() if value is not None}


NUMBERS = torch.tensor(V2.as_integers())
MODIFIED = {
    "not a number": (modified_state(upsample_0_bias=torch.full((12,), torch.nan)), "not finite"),
    "infinite": (modified_state(upsample_0_bias=torch.full((12,), torch.inf)), "not finite"),
    "whole numbers": (modified_state(upsample_0_bias=torch.zeros(12, dtype=torch.int64)), "floating-point"),
    "complex": (modified_state(upsample_0_bias=torch.zeros(12, dtype=torch.complex64)), "floating-point"),
    "missing": (modified_state(upsample_0_bias=None), "missing"),
    "extra": (modified_state(**{"a\nb\x1b[31m" * 100: torch.zeros(1)}), r"a\\nb\\x1b"),
    "architecture not a number": (modified_state(architecture=torch.full((9,), torch.nan)), "not a list of numbers"),
    "architecture infinite": (modified_state(architecture=torch.full((9,), torch.inf)), "not a list of numbers"),
    "architecture complex": (modified_state(architecture=NUMBERS.to(torch.complex64)), "not a list of numbers"),
    "architecture long": (modified_state(architecture=torch.ones(100_000, dtype=torch.int8)), "not a list of numbers"),
    "architecture empty": (modified_state(architecture=torch.zeros(0)), "layout"),
    "architecture negative": (modified_state(architecture=-NUMBERS), "layout"),
    "terabytes": (modified_state(architecture=torch.tensor([2, 2, 4, 3, 4096, 1024, 8, 16, *[1] * 256])), "missing"),
    "deep": (modified_state(architecture=torch.tensor([2, 2, 2, 3, 16, 2, 4, 0, *[0] * 256])), "missing"),
    "large windows": (modified_state(architecture=torch.tensor([2, 2, 2, 3, 16, 2, 128, 0, *NUMBERS[8:]])), "too much memory"),
}


@pytest.mark.parametrize("fault", MODIFIED)
def test_networks_that_contradict_their_config_are_rejected(tmp_path, fault):
    state, words = MODIFIED[fault]
    save_any(tmp_path / "modified.safetensors", state)
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "modified.safetensors")
    assert_rejected(tmp_path / "modified.safetensors")


@pytest.mark.parametrize("config", ["[" * 100_000, "7", "null", "{}", '{"embed_dim": 1e999}', '{"scale": "4"}', "\x1b[31m"])
def test_config_in_metadata_must_match_the_tensors(tmp_path, config):
    (tmp_path / "a.safetensors").write_bytes(save(modified_state(), {"config": config}))
    assert "differs from the one in its tensors" in assert_rejected(tmp_path / "a.safetensors")


def test_metadata_is_printed_without_control_characters(tmp_path):
    save_model(random_model(V2), tmp_path / "a.safetensors", metadata={"card\n": "\x1b[2Jred\n" * 5000})
    metadata = describe(tmp_path / "a.safetensors")
    assert all(one_line(name + value) == name + value for name, value in metadata.items())


@pytest.mark.parametrize("converted", [lambda state: state, newer_keys])
@FEW
@given(data=st.data())
def test_original_checkpoint_with_a_replaced_tensor_is_rejected_or_read(tmp_path, converted, data):
    state = converted(random_state(pairs=1, dim=8, scale=2))
    shape = data.draw(st.lists(st.sampled_from([0, 1, 3, 8, 2**20]), max_size=4).filter(lambda sides: np.prod(sides, dtype=float) < 2**21))
    state[data.draw(st.sampled_from(sorted(state)))] = torch.zeros(shape, dtype=data.draw(st.sampled_from([torch.float32, torch.int8])))
    (tmp_path / "a_w4_h2.safetensors").write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))
    read_or_reject(tmp_path / "a_w4_h2.safetensors", CheckpointError, load_model)


def test_random_bytes_are_rejected_as_weights_and_images(tmp_path):
    rng = random.Random(0)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\0\0\0\0\0\0\0\0{", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"II*\0"):
        for length in (1, 10, 1000):
            (tmp_path / "a.pt").write_bytes(start + rng.randbytes(length))
            assert_rejected(tmp_path / "a.pt")
            assert_rejected(tmp_path / "a.pt", ImageError, read_image)
