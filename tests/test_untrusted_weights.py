"""Weights from strangers: no code runs from one, memory stays bounded, and one sentence names the file.

`long/fuzz_files.py` does the same with very many more files.
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

from transformersr.arch import CheckpointError, load_model, save_model
from transformersr.arch.checkpoint import describe
from transformersr.upscale.image_io import ImageError, read_image
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
from untrusted_files import FEW, read_or_refused, refused, save_any, save_pickle

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
        assert "contains Python objects or code" in refused(path)
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.ckpt", "c.pt", "keep"]


def test_older_and_other_archives_are_not_opened(tmp_path):
    """PyTorch before 2.6 ran code from tar files whatever it was told, and takes them for such whatever their first bytes are."""
    for first in ("PK\x03\x04", "pickle", "\x80\x02"):
        with tarfile.open(tmp_path / "tar.pt", "w", encoding="latin-1") as archive:
            archive.addfile(tarfile.TarInfo(first), io.BytesIO())
        refused(tmp_path / "tar.pt")
    script = write_checkpoint(
        tmp_path / "script.pt", ATTACKS["script"], {"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"import os"}
    )
    assert "code" in refused(script)


@pytest.mark.parametrize("lie", FALSE_SIZES)
def test_pickles_with_false_sizes_take_no_memory(tmp_path, lie):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(write_checkpoint(tmp_path / "lie.pt", FALSE_SIZES[lie]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_archives_that_unfold_are_refused(tmp_path):
    bomb = write_checkpoint(
        tmp_path / "bomb.pt", push_tensor((2**24,), (1,), push_storage(2**24)), {"data/0": bytes(2**26)}, zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 2**17
    assert "compressed" in refused(bomb)
    shared = b"".join(push_text(str(index)) + push_tensor((2**16,), (1,), push_storage(2**16)) + b"s" for index in range(50))
    with zipfile.ZipFile(tmp_path / "shared.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + shared + b".")
        archive.writestr("a/data/0", bytes(2**18))
    assert "would take 13,107,200 bytes" in refused(tmp_path / "shared.pt")


def test_a_mapping_that_holds_itself_ends(tmp_path):
    (tmp_path / "itself.pt").write_bytes(write_checkpoint(tmp_path / "a.pt", b"}q\x00" + push_text("model") + b"h\x00s").read_bytes())
    refused(tmp_path / "itself.pt")
    with zipfile.ZipFile(tmp_path / "itself.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00" + push_text("model") + b"h\x00s.")
    refused(tmp_path / "itself.pt")


def test_everything_that_pytorch_writes_of_networks_is_read(tmp_path):
    """Both formats, every protocol, half and shared and turned tensors, parameters, and what a training puts beside them."""
    state = random_state(pairs=1, dim=16, scale=2)
    expected = load_model(save_pickle(tmp_path / "plain_w4_h2.pt", state)).state_dict()
    turned = {key: value.t().contiguous().t() if value.ndim == 2 else value for key, value in state.items()}
    optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    beside = {"optimizer": optimiser, "size": torch.Size([1]), "flags": {1, 2}, "step": 3, "rates": [0.1], "name": b"x"}
    contents = [turned, {key: torch.nn.Parameter(value) for key, value in state.items()}, {"state_dict": state, **beside}]
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
def test_any_program_of_instructions_is_refused(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    refused(write_checkpoint(tmp_path / "program.pt", b"".join(program)))
    assert os.listdir(tmp_path) == ["program.pt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_weights_are_not_waited_for_at_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "transformersr.pt")
    assert "expected a file" in refused(tmp_path / "transformersr.pt")


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


@pytest.mark.parametrize("lie", HEADERS)
def test_false_headers_are_refused_and_do_not_break_a_list(tmp_path, lie):
    (tmp_path / "lie.safetensors").write_bytes(HEADERS[lie])
    refused(tmp_path / "lie.safetensors")
    assert "lie.safetensors" not in list_models([tmp_path])


@pytest.mark.parametrize("source", ["../../etc/passwd 1-2", "a/b 1-2", "\0 1-2", ".. 1-2", " ", "x" * 5000 + " 1-2", 7])
def test_a_list_follows_no_path_from_a_file(tmp_path, source):
    tensors = {
        key: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for key in ("architecture", "conv_first.weight", "upsample.weight")
    }
    (tmp_path / "ours.safetensors").write_bytes(header({**tensors, "__metadata__": {"converted_from": source}}))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pth")
    assert "ours.safetensors" in list_models([tmp_path])


def spoilt(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A network of ours with some tensors changed or, for None, taken away; "." in a name is written "_0_"."""
    state = {**random_model(V2).state_dict(), **{key.replace("_0_", "."): value for key, value in changes.items()}}
    return {key: value for key, value in state.items() if value is not None}


NUMBERS = torch.tensor(V2.as_integers())
SPOILT = {
    "not a number": (spoilt(upsample_0_bias=torch.full((12,), torch.nan)), "not finite"),
    "infinite": (spoilt(upsample_0_bias=torch.full((12,), torch.inf)), "not finite"),
    "whole numbers": (spoilt(upsample_0_bias=torch.zeros(12, dtype=torch.int64)), "floating-point"),
    "complex": (spoilt(upsample_0_bias=torch.zeros(12, dtype=torch.complex64)), "floating-point"),
    "missing": (spoilt(upsample_0_bias=None), "missing"),
    "extra": (spoilt(**{"a\nb\x1b[31m" * 100: torch.zeros(1)}), r"a\\nb\\x1b"),
    "architecture not a number": (spoilt(architecture=torch.full((9,), torch.nan)), "not a list of numbers"),
    "architecture infinite": (spoilt(architecture=torch.full((9,), torch.inf)), "not a list of numbers"),
    "architecture complex": (spoilt(architecture=NUMBERS.to(torch.complex64)), "not a list of numbers"),
    "architecture long": (spoilt(architecture=torch.ones(100_000, dtype=torch.int8)), "not a list of numbers"),
    "architecture empty": (spoilt(architecture=torch.zeros(0)), "layout"),
    "architecture negative": (spoilt(architecture=-NUMBERS), "layout"),
    "terabytes": (spoilt(architecture=torch.tensor([2, 2, 4, 3, 4096, 1024, 8, 16, *[1] * 256])), "missing"),
    "deep": (spoilt(architecture=torch.tensor([2, 2, 2, 3, 16, 2, 4, 0, *[0] * 256])), "missing"),
    "large windows": (spoilt(architecture=torch.tensor([2, 2, 2, 3, 16, 2, 128, 0, *NUMBERS[8:]])), "too much memory"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_networks_unlike_their_configuration_are_refused(tmp_path, fault):
    state, words = SPOILT[fault]
    save_any(tmp_path / "spoilt.safetensors", state)
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "spoilt.safetensors")
    refused(tmp_path / "spoilt.safetensors")


@pytest.mark.parametrize("config", ["[" * 100_000, "7", "null", "{}", '{"embed_dim": 1e999}', '{"scale": "4"}', "\x1b[31m"])
def test_configuration_in_metadata_must_match_the_tensors(tmp_path, config):
    (tmp_path / "a.safetensors").write_bytes(save(spoilt(), {"config": config}))
    assert "differs from the one in its tensors" in refused(tmp_path / "a.safetensors")


def test_what_a_file_says_of_itself_moves_no_cursor(tmp_path):
    save_model(random_model(V2), tmp_path / "a.safetensors", metadata={"card\n": "\x1b[2Jred\n" * 5000})
    told = describe(tmp_path / "a.safetensors")
    assert all(one_line(name + value) == name + value for name, value in told.items())


@pytest.mark.parametrize("converted", [lambda state: state, newer_keys])
@FEW
@given(data=st.data())
def test_an_authors_file_with_any_tensor_replaced_is_refused_or_read(tmp_path, converted, data):
    state = converted(random_state(pairs=1, dim=8, scale=2))
    shape = data.draw(st.lists(st.sampled_from([0, 1, 3, 8, 2**20]), max_size=4).filter(lambda sides: np.prod(sides, dtype=float) < 2**21))
    state[data.draw(st.sampled_from(sorted(state)))] = torch.zeros(shape, dtype=data.draw(st.sampled_from([torch.float32, torch.int8])))
    (tmp_path / "a_w4_h2.safetensors").write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))
    read_or_refused(tmp_path / "a_w4_h2.safetensors", CheckpointError, load_model)


def test_random_bytes_are_no_file_of_any_kind(tmp_path):
    rng = random.Random(0)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\0\0\0\0\0\0\0\0{", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"II*\0"):
        for length in (1, 10, 1000):
            (tmp_path / "a.pt").write_bytes(start + rng.randbytes(length))
            refused(tmp_path / "a.pt")
            refused(tmp_path / "a.pt", ImageError, read_image)
