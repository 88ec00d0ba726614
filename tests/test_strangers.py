"""Files from strangers: no code runs from one, memory stays bounded, and one sentence names the file and says what to do.

`long/fuzz_files.py` does the same with very many more files.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import runpy
import struct
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from transformersr.arch import VARIANTS, CheckpointError, load_model, save_model
from transformersr.arch.checkpoint import describe
from transformersr.training.config import TrainConfig, from_values, load_recipe
from transformersr.training.perceptual import VGG19_LAYERS, FeatureLoss
from transformersr.training.run_state import RunState
from transformersr.upscale import image_io
from transformersr.upscale.image_io import Picture, PictureError, check_target, read_picture, write_picture
from transformersr.upscale.messages import one_line
from transformersr.upscale.metadata import Carried
from transformersr.upscale.models import list_models
from transformersr.upscale.upscaler import Upscaler

from plain_v1 import newer_keys, random_state
from random_models import V2, random_model
from synthetic_images import drawing

FEW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path: Path, error: type[Exception] = CheckpointError, read=load_model) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(error) as caught:
        read(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 1500
    return text


# --- weights: pickles ----------------------------------------------------------------------------


def name(full: str) -> bytes:
    """The instruction that puts what a name stands for on the stack."""
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def of(*parts: bytes) -> bytes:
    """The instructions that make a tuple."""
    return b"(" + b"".join(parts) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + of(*arguments) + b"R"


def storage(count: int = 1, key: str = "0", kind: str = "torch.FloatStorage") -> bytes:
    return of(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(size: tuple[int, ...], stride: tuple[int, ...], of_storage: bytes | None = None, offset: int = 0) -> bytes:
    shape = of(*map(number, size)), of(*map(number, stride))
    return call(
        "torch._utils._rebuild_tensor_v2", of_storage or storage(), number(offset), *shape, b"\x89", call("collections.OrderedDict")
    )


def zipped(path: Path, value: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file of PyTorch's whose only entry is what the instructions make."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + text("x") + value + b"s.")
        for record, data in {"data/0": b"\0\0\0\0", "version": b"3", **(records or {})}.items():
            archive.writestr(f"a/{record}", data)
    return path


COMMAND = "touch ran"
PYTHON = "open('ran', 'w')"
CODE = {
    "system": call("os.system", text(COMMAND)),
    "posix": call("posix.system", text(COMMAND)),
    "popen": call("subprocess.Popen", text("touch"), text("ran")),
    "eval": call("builtins.eval", text(PYTHON)),
    "exec": call("__builtin__.exec", text(PYTHON)),
    "open": call("io.open", text("ran"), text("w")),
    "import": call("importlib.import_module", text("antigravity")),
    "run": call("runpy.run_path", text("ran.py")),
    "timeit": call("timeit.timeit", text(PYTHON)),
    "profile": call("cProfile.run", text(PYTHON)),
    "pdb": call("bdb.Bdb.run", text(PYTHON)),
    "numpy": call("numpy.testing._private.utils.runstring", text(PYTHON), b"}"),
    "nested": call("torch.storage._load_from_bytes", b"C\x01."),
    "load": call("torch.load", text("ran.pt")),
    "hub": call("torch.hub.load", text("a/b"), text("c")),
    "jit": call("torch.jit.load", text("ran.pt")),
    "package": call("torch.package.PackageImporter", text("ran.pt")),
    "collective": call("torch.distributed.distributed_c10d._object_to_tensor", b"N"),
    "library": call("ctypes.CDLL", text("ran.so")),
    "marshal": call("marshal.loads", b"C\x01N"),
    "function": call("types.FunctionType", b"N", b"}"),
    "attribute": call("builtins.getattr", name("collections.OrderedDict"), text("fromkeys")),
    "partial": call("functools.partial", name("collections.OrderedDict")),
    "remove": call("shutil.rmtree", text("keep")),
    "unlink": call("pathlib.Path.unlink", call("pathlib.Path", text("keep"))),
    "browser": call("webbrowser.open", text("http://127.0.0.1:9/")),
    "socket": call("socket.create_connection", of(text("127.0.0.1"), number(9))),
    "archive": call("zipfile.ZipFile", text("ran"), text("w")),
    "logging": call("logging.FileHandler", text("ran")),
    "instance": b"(" + text(COMMAND) + b"ios\nsystem\n",
    "object": b"(" + name("os.system") + text(COMMAND) + b"o",
    "new": name("subprocess.Popen") + of(text("touch ran")) + b"\x81",
    "new with names": name("subprocess.Popen") + of(text("touch")) + b"}\x92",
    "from the stack": text("os") + text("system") + b"\x93" + of(text(COMMAND)) + b"R",
    "extension": b"\x82\x01" + of(text(COMMAND)) + b"R",
    "state of a class": name("torch.nn.Module") + b")\x81}" + text("__reduce__") + name("os.system") + b"sb",
    "script": name("__torch__.Model") + b")\x81",
    "dots": call("torch._utils.os.system", text(COMMAND)),
    "dunder": call("builtins.__import__", text("antigravity")),
}


@pytest.mark.parametrize("attack", CODE)
def test_no_code_runs_from_a_pickle(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keep").mkdir()
    older = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    raw = {"a.pth": b"\x80\x02" + CODE[attack] + b".", "b.ckpt": older + b"\x80\x02}" + text("x") + CODE[attack] + b"s.\x80\x02]."}
    for file, content in raw.items():
        (tmp_path / file).write_bytes(content)
    for path in (*map(tmp_path.joinpath, raw), zipped(tmp_path / "c.pt", CODE[attack])):
        assert "holds Python objects or code" in refused(path)
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.ckpt", "c.pt", "keep"]


def test_older_and_other_archives_are_not_opened(tmp_path):
    """PyTorch before 2.6 ran code from tar files whatever it was told, and takes them for such whatever their first bytes are."""
    for first in ("PK\x03\x04", "pickle", "\x80\x02"):
        with tarfile.open(tmp_path / "tar.pt", "w", encoding="latin-1") as archive:
            archive.addfile(tarfile.TarInfo(first), io.BytesIO())
        refused(tmp_path / "tar.pt")
    script = zipped(tmp_path / "script.pt", CODE["script"], {"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"import os"})
    assert "code" in refused(script)


HUGE = 2**40
LIES = {
    "repeated": tensor((HUGE,), (0,)),
    "repeated rows": tensor((2**20, 2**20), (0, 0)),
    "set of rows": call("builtins.set", tensor((3_000_000,), (0,))),
    "mapping of rows": call("collections.OrderedDict", tensor((3_000_000, 2), (0, 0))),
    "bytes of bytes": call("builtins.bytearray", call("builtins.bytearray", number(2**34))),
    "blank tensor": call("torch.Tensor", number(2**34)),
    "storage": tensor((HUGE,), (1,), storage(HUGE)),
    "shorter storage": tensor((4,), (1,), storage(4)),
    "no such storage": tensor((1,), (1,), storage(1, "7")),
    "negative": tensor((1,), (1,), offset=-4),
    "beyond": tensor((1,), (1,), offset=9),
    "many sides": tensor((1,) * 5000, (1,) * 5000),
    "place in memory": b"Nr\xff\xff\xff\x7f",
    "long text": b"X\xff\xff\xff\x7f",
    "long bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "bytes to be filled": b"\x96" + struct.pack("<Q", 2**35),
    "deep key": b"}" + b")" + b"\x85" * 200_000 + b"Ns",
    "value of a tensor": tensor((1,), (1,)) + number(0) + number(1) + b"s",
    "item of a tensor": tensor((1,), (1,)) + b"(" + tensor((1,), (1,)) + b"\x90",
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_pickle_promises_takes_no_memory(tmp_path, lie):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(zipped(tmp_path / "lie.pt", LIES[lie]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_archives_that_unfold_are_refused(tmp_path):
    bomb = zipped(tmp_path / "bomb.pt", tensor((2**24,), (1,), storage(2**24)), {"data/0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**17
    assert "compressed" in refused(bomb)
    shared = b"".join(text(str(index)) + tensor((2**16,), (1,), storage(2**16)) + b"s" for index in range(50))
    with zipfile.ZipFile(tmp_path / "shared.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + shared + b".")
        archive.writestr("a/data/0", bytes(2**18))
    assert "would take 13,107,200 bytes" in refused(tmp_path / "shared.pt")


def test_a_mapping_that_holds_itself_ends(tmp_path):
    (tmp_path / "itself.pt").write_bytes(zipped(tmp_path / "a.pt", b"}q\x00" + text("model") + b"h\x00s").read_bytes())
    refused(tmp_path / "itself.pt")
    with zipfile.ZipFile(tmp_path / "itself.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00" + text("model") + b"h\x00s.")
    refused(tmp_path / "itself.pt")


def test_everything_that_pytorch_writes_of_networks_is_read(tmp_path):
    """Both formats, every protocol, half and shared and turned tensors, parameters, and what a training puts beside them."""
    state = random_state(pairs=1, dim=16, scale=2)
    expected = load_model(saved(tmp_path / "plain_w4_h2.pt", state)).state_dict()
    turned = {key: value.t().contiguous().t() if value.ndim == 2 else value for key, value in state.items()}
    optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    beside = {"optimizer": optimiser, "size": torch.Size([1]), "flags": {1, 2}, "step": 3, "rates": [0.1], "name": b"x"}
    contents = [turned, {key: torch.nn.Parameter(value) for key, value in state.items()}, {"state_dict": state, **beside}]
    for content in contents:
        for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 3}):
            loaded = load_model(saved(tmp_path / "any_w4_h2.pth", content, **options)).state_dict()
            assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    half = {key: value.bfloat16() for key, value in state.items()}
    assert describe(saved(tmp_path / "half_w4_h2.pt", half))["dtype"] == "bfloat16"


def saved(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    return path


def written(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """As safetensors; pickled where there are complex numbers, which older ones of it do not take."""
    if any(value.is_complex() for value in state.values()):
        return saved(path, state)
    path.write_bytes(save(state))
    return path


PARTS = [
    number(0),
    number(1),
    number(2**40),
    text("x"),
    b"N",
    b"}",
    b"]",
    b")",
    b"(",
    b"t",
    b"\x85",
    b"R",
    b"Q",
    b"s",
    b"u",
    b"a",
    b"e",
    b"b",
]
PARTS += [b"q\x00", b"h\x00", b"0", b"2", b"\x90", b"\x8f", b"\x81", storage(), tensor((1,), (1,)), *map(name, ("torch.Size", "os.system"))]
PARTS += [name("collections.OrderedDict"), name("torch._utils._rebuild_tensor_v2"), name("torch._utils._rebuild_parameter"), b"(d", b"(l"]


@FEW
@given(program=st.lists(st.sampled_from(PARTS), max_size=30))
def test_any_program_of_instructions_is_refused(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    refused(zipped(tmp_path / "program.pt", b"".join(program)))
    assert os.listdir(tmp_path) == ["program.pt"]


# --- files of a training run ---------------------------------------------------------------------

TINY_RUN = from_values({"size": "tiny", "scale": 2, "init": "none", "seed": 1, "optimizer": "adamw"})


@pytest.fixture
def run(monkeypatch):
    """A run with a network that takes no time, after a step."""
    monkeypatch.setitem(VARIANTS, "tiny", dataclasses.replace(V2, blocks="RWC"))
    state = RunState.start(TINY_RUN, torch.device("cpu"))
    for parameter in state.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return state


def saved_with(run: RunState, path: Path, change) -> Path:
    """The state of a run with something changed in it."""
    run.save(path)
    content = torch.load(path, weights_only=True)
    change(content)
    return saved(path, content)


def test_the_state_of_a_run_comes_back_and_the_rates_are_those_of_the_settings(run, tmp_path):
    run.save(tmp_path / "state.pt")
    again = RunState.resume(tmp_path / "state.pt", dataclasses.replace(TINY_RUN, weight_decay=0.5), torch.device("cpu"))
    assert again.progress == run.progress
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.5
    ours, theirs = run.optimizer.state_dict()["state"], again.optimizer.state_dict()["state"]
    assert all(torch.equal(theirs[key][name], value) for key, values in ours.items() for name, value in values.items())


class Scaler:
    """Of gradients, as far as a state knows one."""

    def __init__(self, scale: float):
        self.scale = scale

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


def test_the_scale_of_gradients_in_fp16_comes_back(run, tmp_path):
    run.scaler = Scaler(512.0)
    run.save(tmp_path / "state.pt")
    scaler = Scaler(65536.0)
    RunState.resume(tmp_path / "state.pt", TINY_RUN, torch.device("cpu"), scaler)
    assert scaler.scale == 512.0


REPEATED = b"]q\x01" + b"".join(b"](" + bytes([ord("h"), index]) * 20 + b"eq" + bytes([index + 1]) for index in range(1, 12))
STATES = {
    **{kind: CODE[kind] for kind in ("system", "eval", "nested", "load", "state of a class", "extension")},
    **{lie: LIES[lie] for lie in ("repeated", "set of rows", "storage", "long bytes", "deep key", "nothing")},
    "lists of lists": REPEATED,
    "a list that holds itself": b"]q\x01h\x01a",
}


@pytest.mark.parametrize("attack", STATES)
def test_the_state_of_a_run_runs_nothing_and_takes_no_memory(run, tmp_path, monkeypatch, attack):
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (run.load, run.go_back):
        refused(zipped(tmp_path / "state.pt", STATES[attack]), ValueError, read)
    assert os.listdir(tmp_path) == ["state.pt"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10


CHANGES = {
    "step": lambda content: content["progress"].update(step="7"),
    "negative": lambda content: content["progress"].update(step=-1),
    "not a number": lambda content: content["progress"].update(seconds=float("nan")),
    "unknown": lambda content: content["progress"].update(more=1),
    "no weights": lambda content: content.pop("ema"),
    "numbered weights": lambda content: content.update(net={0: torch.zeros(1)}),
    "a list": lambda content: content.update(optimizer=[1, 2]),
    "another shape": lambda content: content["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "no tensor": lambda content: content["optimizer"]["state"][0].update(exp_avg=7),
    "no such parameter": lambda content: content["optimizer"]["state"].update({10**6: {"step": torch.zeros(1)}}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_state_of_a_run_is_refused(run, tmp_path, change):
    path = saved_with(run, tmp_path / "state.pt", CHANGES[change])
    assert "of a run with other settings" in refused(path, ValueError, run.load)
    path.write_bytes(path.read_bytes()[:1000])
    refused(path, ValueError, run.load)


def vgg19(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights laid out as torchvision's, one channel wide; "_" stands for "." in names of changed ones."""
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
def test_features_that_are_not_vgg19s_are_refused(tmp_path, fault):
    for path in (written(tmp_path / "vgg.safetensors", FEATURES[fault]), saved(tmp_path / "vgg.pth", FEATURES[fault])):
        assert "expected the state dict of torchvision's VGG19" in refused(path, CheckpointError, FeatureLoss)


@pytest.mark.parametrize("attack", CODE)
def test_no_code_runs_from_a_file_of_features(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    assert "code" in refused(zipped(tmp_path / "vgg.safetensors", CODE[attack]), CheckpointError, FeatureLoss)  # told by its content
    assert os.listdir(tmp_path) == ["vgg.safetensors"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_weights_are_not_waited_for_at_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "transformersr.pt")
    assert "expected a file" in refused(tmp_path / "transformersr.pt")


# --- weights: safetensors ------------------------------------------------------------------------


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
def test_lying_headers_are_refused_and_do_not_break_a_list(tmp_path, lie):
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
    "architecture not a number": (spoilt(architecture=torch.full((9,), torch.nan)), "no list of numbers"),
    "architecture infinite": (spoilt(architecture=torch.full((9,), torch.inf)), "no list of numbers"),
    "architecture complex": (spoilt(architecture=NUMBERS.to(torch.complex64)), "no list of numbers"),
    "architecture long": (spoilt(architecture=torch.ones(100_000, dtype=torch.int8)), "no list of numbers"),
    "architecture empty": (spoilt(architecture=torch.zeros(0)), "layout"),
    "architecture negative": (spoilt(architecture=-NUMBERS), "layout"),
    "terabytes": (spoilt(architecture=torch.tensor([1, 2, 4, 3, 4096, 1024, 8, 16, 256])), "missing"),
    "deep": (spoilt(architecture=torch.tensor([1, 2, 2, 3, 16, 2, 4, 2, *[1] * 256])), "missing"),
    "large windows": (spoilt(architecture=torch.tensor([1, 2, 2, 3, 16, 2, 128, 2, 2, 2])), "too much memory"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_networks_that_are_not_what_they_say_are_refused(tmp_path, fault):
    state, words = SPOILT[fault]
    written(tmp_path / "spoilt.safetensors", state)
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "spoilt.safetensors")
    refused(tmp_path / "spoilt.safetensors")


@pytest.mark.parametrize("config", ["[" * 100_000, "7", "null", "{}", '{"embed_dim": 1e999}', '{"scale": "4"}', "\x1b[31m"])
def test_a_configuration_beside_the_tensors_has_to_be_theirs(tmp_path, config):
    (tmp_path / "a.safetensors").write_bytes(save(spoilt(), {"config": config}))
    assert "not the one in its tensors" in refused(tmp_path / "a.safetensors")


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


def read_or_refused(path: Path, error: type[Exception], read) -> None:
    try:
        read(path)
    except error:
        refused(path, error, read)


# --- pictures ------------------------------------------------------------------------------------


def encoded(format: str, size: tuple[int, int] = (40, 30), **options) -> bytes:
    file = io.BytesIO()
    drawing(1, max(size)).crop((0, 0, *size)).save(file, format=format, **options)
    return file.getvalue()


FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "ICO", "TGA", "PCX", "PPM", "SGI", "DDS", "BLP", "QOI"]
FORMATS += ["MSP", "SPIDER", "XBM"]
Image.init()
WRITABLE = [format for format in FORMATS if format in Image.SAVE and format in Image.OPEN]  # older Pillows have fewer
MODES = {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}


def any_format(format: str) -> bytes:
    file = io.BytesIO()
    drawing(1, 40).convert(MODES.get(format, "RGB")).save(file, format=format)
    return file.getvalue()


@pytest.mark.parametrize("format", WRITABLE)
def test_a_format_is_told_by_its_content_and_half_a_picture_is_none(tmp_path, format):
    whole = any_format(format)
    path = tmp_path / "picture.jpg"
    path.write_bytes(whole)
    assert read_picture(path).color.shape[2] == 3
    for length in {*range(1, len(whole), 1024), len(whole) // 2}:
        path.write_bytes(whole[:length])
        read_or_refused(path, PictureError, read_picture)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000)])
def test_pictures_of_any_shape_are_enlarged(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    enlarged = Upscaler(random_model(V2)).enlarge_picture(read_picture(tmp_path / "a.png"))
    assert enlarged.color.shape == (2 * size[1], 2 * size[0], 3)


PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file closefile\nshowpage\n%%EOF\n"


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: pytest.fail("a program is run"))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("a program is run"))
    (tmp_path / "cute.png").write_bytes(PROGRAM)
    assert "programs, and none is run; save the picture as PNG" in refused(tmp_path / "cute.png", PictureError, read_picture)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data or zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BOMBS = {
    "png": png(2**31 - 1, 2**31 - 1),
    "ppm": b"P6 3000000 3000000 255\n",
    "gif": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0),
    "qoi": b"qoif" + struct.pack(">IIBB", 2**31, 2**31, 3, 0),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_before_they_go_off(tmp_path, monkeypatch, bomb):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(image_io, "free_memory", lambda device: 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / f"a.{bomb}").write_bytes(BOMBS[bomb])
    refused(tmp_path / f"a.{bomb}", PictureError, read_picture)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_an_enlarged_picture_can_be_read_again(tmp_path, monkeypatch):
    """Pillow refuses what is larger than 179 megapixels, which four times 3400x3400 is."""
    (tmp_path / "a.png").write_bytes(png(13600, 13600))
    monkeypatch.setattr(image_io, "free_memory", lambda device: 2**33)
    assert "cannot be read whole" in refused(tmp_path / "a.png", PictureError, read_picture)  # as far as the pixels that it has not got
    monkeypatch.setattr(image_io, "free_memory", lambda device: 2**31)
    assert "13600x13600 pixels need 2.8 GiB of memory, and 2.0 are free" in refused(tmp_path / "a.png", PictureError, read_picture)


def test_a_size_that_a_format_cannot_have_is_known_before_the_work(tmp_path):
    for file, side in (("a.webp", 16384), ("a.jpg", 65501)):
        with pytest.raises(PictureError, match=rf"{file}: .* write it as png"):
            check_target(tmp_path / file, 1, side)
        check_target(tmp_path / file, 1, side - 1)
        check_target(tmp_path / "a.png", 1, side)


def tiled_tiff(side: int) -> bytes:
    """An 8x8 picture in a tile of any size."""
    values = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 500, 325: 10}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + entries).ljust(500, b"\0") + zlib.compress(bytes(100))


def many_scans(scans: int) -> bytes:
    """A progressive JPEG that goes over the picture once more, again and again."""
    whole = encoded("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + scans * whole[last:-2] + whole[-2:]


def long_text(letters: int) -> bytes:
    """A PNG with a text of equal letters."""
    chunk = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * letters, 9))
    return png(4, 4).replace(b"\0\0\0\x08IDAT", chunk + b"\0\0\0\x08IDAT")


UNFOLDING = {
    "a.tif": (tiled_tiff(46000), "tiles of 46000x46000 pixels are larger than the picture"),
    "a.jpg": (many_scans(1000), "scans, and expected are 1000 or less"),
    "a.png": (long_text(2**26), "Decompressed"),
}


@pytest.mark.parametrize("file", UNFOLDING)
def test_small_files_that_unfold_are_refused(tmp_path, file):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content, words = UNFOLDING[file]
    (tmp_path / file).write_bytes(content)
    assert words in refused(tmp_path / file, PictureError, read_picture)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_text_and_profiles_do_not_unfold_into_results(tmp_path, caplog):
    """A text of 4 million equal letters is 4 KB in a PNG."""
    carried = Carried(text={"parameters": "a" * 2**22}, icc_profile=(bytes(16) + b"RGB ").ljust(2**24 + 2**23, b"a"))
    for suffix in ("png", "jpg", "webp", "tif"):
        write_picture(Picture(np.zeros((2, 2, 3), np.float32), None, carried), tmp_path / f"a.{suffix}")
        again = read_picture(tmp_path / f"a.{suffix}").carried
        assert again.icc_profile == (None if suffix == "jpg" else carried.icc_profile)
    assert read_picture(tmp_path / "a.png").carried.text == carried.text
    assert (tmp_path / "a.png").stat().st_size < 2**16
    assert "the ICC profile of 25165824 bytes is not written: JPEG takes up to 16707345" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_pipes_and_broken_links_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "expected a file" in refused(tmp_path / "pipe.png", PictureError, read_picture)
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(OSError, match=r"circle\.png"):
        read_picture(tmp_path / "circle.png")


@pytest.mark.skipif(sys.platform != "linux", reason="file systems that take any name")
@pytest.mark.parametrize("file", [b"caf\xe9.png", b"two\nlines\x1b[31m.png", b"n" * 250 + b".png", b"%s %d {} $(touch ran).png"])
def test_strange_names_are_read_and_told_in_one_line(tmp_path, file):
    path = tmp_path / os.fsdecode(file)
    path.write_bytes(encoded("PNG"))
    assert read_picture(path).color.shape == (30, 40, 3)
    path.write_bytes(b"nothing")
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    assert one_line(str(caught.value)).isprintable()


OPTIONS = {"TIFF": {"compression": "tiff_lzw"}}


@pytest.mark.skipif(sys.platform != "linux", reason="file systems that take any name")
def test_a_name_moves_no_cursor_of_the_terminal(tmp_path):
    path = tmp_path / "two\nlines\x1b[2J.gif"
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    red.save(path, save_all=True, append_images=[blue])  # of which a line in the log tells
    save_model(random_model(V2), tmp_path / "model.safetensors")
    command = ["-m", "transformersr", "upscale", str(path), "-o", str(tmp_path / "a.png"), "-m", str(tmp_path / "model.safetensors")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert r"two\nlines\x1b[2J.gif has several frames" in done.stderr
    assert "\x1b[2J" not in done.stderr


SEEDS = [
    encoded(format, **OPTIONS.get(format, {})) for format in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "AVIF", "DDS") if format in WRITABLE
]


@FEW
@given(seed=st.sampled_from(SEEDS), changes=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=8)), min_size=1, max_size=5))
def test_a_changed_picture_is_refused_or_read(tmp_path, seed, changes):
    data = bytearray(seed)
    for start, piece in changes:
        data[start : start + len(piece)] = piece
    (tmp_path / "a.png").write_bytes(data)
    read_or_refused(tmp_path / "a.png", PictureError, read_picture)


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
def test_recipes_that_cannot_be_are_refused(tmp_path, file):
    (tmp_path / file).write_bytes(RECIPES[file][0])
    with pytest.raises(ValueError, match=RECIPES[file][1]):
        load_recipe(tmp_path / file)
    refused(tmp_path / file, ValueError, load_recipe)


VALUES = st.one_of(st.integers(), st.floats(), st.text(max_size=9), st.booleans(), st.none(), st.lists(st.text(max_size=5), max_size=3))


@FEW
@given(values=st.dictionaries(st.sampled_from(sorted(TrainConfig.__dataclass_fields__)), VALUES, max_size=4))
def test_settings_of_any_value_are_refused_or_read(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    read_or_refused(tmp_path / "config.json", ValueError, load_recipe)


# --- downloads -----------------------------------------------------------------------------------

INSTALL = runpy.run_path(str(Path(__file__).resolve().parent.parent / "install.py"))


@pytest.mark.parametrize("path", ["", "/", "/..", "/.pt/..", "/a\\..\\b.pt", "/nodes.py", "/a.pt\n", "/%00.pt\0", "/folder/", "/\x1b.pt"])
@pytest.mark.parametrize("start", ["https://127.0.0.1:9", "file:///etc", "ftp://127.0.0.1"])
def test_an_address_names_a_file_of_weights_and_no_place(tmp_path, start, path):
    with pytest.raises(INSTALL["InstallError"], match="no address of a file of weights"):
        INSTALL["fetch"](start + path, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_download_without_end_ends(tmp_path, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with pytest.raises(OSError):  # noqa: PT012
                while True:
                    self.wfile.write(b"PK" * 2**15)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setitem(INSTALL["download"].__globals__, "MOST_BYTES", 2**21)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(INSTALL["InstallError"], match="gives more than 2,097,152 bytes"):
        INSTALL["fetch"](f"http://127.0.0.1:{server.server_port}/a.pt", tmp_path)
    server.server_close()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_none_is_told(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "a.pt").mkdir()
    for folder in (tmp_path / "file", tmp_path):
        with pytest.raises(INSTALL["InstallError"], match="choose another folder with --to"):
            INSTALL["fetch"]("http://127.0.0.1:9/a.pt", folder)
    with pytest.raises(INSTALL["InstallError"], match="64 hexadecimal digits"):
        INSTALL["fetch"]("http://127.0.0.1:9/b.pt", tmp_path, "none")


# --- workflows -----------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path, monkeypatch):
    """The node as ComfyUI would run it, with a stand-in for the parts of ComfyUI that it calls."""
    (tmp_path / "models").mkdir()
    save_model(random_model(V2), tmp_path / "models" / "mine.safetensors")
    torch.save(random_state(pairs=1, dim=8, scale=2), tmp_path / "secret.pt")
    cpu = torch.device("cpu")
    patcher = lambda model, load_device, offload_device: types.SimpleNamespace(model=model, load_device=cpu, offload_device=cpu)
    devices = dict.fromkeys(("get_torch_device", "unet_offload_device", "intermediate_device"), lambda: cpu)
    calls = dict.fromkeys(("load_models_gpu", "throw_exception_if_processing_interrupted"), lambda *args, **options: None)
    parts = {
        "comfy.model_management": {**devices, **calls, "should_use_fp16": lambda device: False},
        "comfy.utils": {"ProgressBar": lambda steps: types.SimpleNamespace(update_absolute=lambda step: None)},
        "comfy.model_patcher": {"ModelPatcher": patcher},
        "folder_paths": {
            "models_dir": str(tmp_path),
            "add_model_folder_path": lambda *args: None,
            "get_folder_paths": lambda kind: [str(tmp_path / "models")],
            "get_user_directory": lambda: str(tmp_path / "user"),
        },
    }
    parts["comfy"] = {name.partition(".")[2]: None for name in parts if "." in name}
    for name, contents in parts.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("model_management", "utils", "model_patcher"):
        setattr(sys.modules["comfy"], name, sys.modules[f"comfy.{name}"])
    monkeypatch.delitem(sys.modules, "transformersr.nodes", raising=False)
    from transformersr import nodes

    yield nodes.TransformerSRUpscale()
    sys.modules.pop("transformersr.nodes", None)


PICTURES = torch.full((1, 4, 4, 3), 0.5)
INPUTS = [
    ({"model_name": "../secret.pt"}, "no TransformerSR model of this name"),
    ({"model_name": "/etc/passwd"}, "no TransformerSR model of this name"),
    ({"model_name": "..\\secret.pt"}, "no TransformerSR model of this name"),
    ({"model_name": "a\n" * 9999}, "no TransformerSR model of this name"),
    ({"model_name": None}, "no TransformerSR model of this name"),
    ({"image": PICTURES[0]}, "of shape"),
    ({"image": None}, "NoneType"),
    ({"image": PICTURES[..., :2]}, "c = 1, 3 or 4"),
    ({"image": PICTURES[:0]}, "at least 1x1"),
    ({"image": PICTURES[:, :0]}, "at least 1x1"),
    ({"image": (255 * PICTURES).byte()}, "a float type"),
    ({"size_by": "factor", "factor": float("nan")}, "factor is nan"),
    ({"size_by": "factor", "factor": -1.0}, "above 0"),
    ({"size_by": "factor", "factor": 1e300}, "below 1000"),
    ({"size_by": "width and height", "width": -5}, "at least 1x1"),
    ({"size_by": "width and height", "width": 10**9, "height": 10**9}, "more than there is"),
    ({"size_by": "longest side", "longest_side": -3}, "at least 1x1"),
    ({"memory_gb": float("nan")}, "memory_gb is nan"),
    ({"memory_gb": -1.0}, "memory_gb is -1"),
    ({"memory_gb": 1e-9}, "budget"),
    ({"precision": "fp4"}, "fp4"),
]


def test_workflow_inputs_that_cannot_be_are_refused_in_one_sentence(node):
    for changed, words in INPUTS:
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            node.upscale(**{"image": PICTURES, "model_name": "mine.safetensors", **changed})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert "no TransformerSR model" in node.VALIDATE_INPUTS("../secret.pt")


def test_pictures_that_are_no_numbers_do_not_spoil_the_result(node):
    for value in (float("nan"), float("inf"), -1e30):
        assert node.upscale(PICTURES * value, "mine.safetensors")[0].isfinite().all()


def test_random_bytes_are_no_file_of_any_kind(tmp_path):
    rng = random.Random(0)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\0\0\0\0\0\0\0\0{", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"II*\0"):
        for length in (1, 10, 1000):
            (tmp_path / "a.pt").write_bytes(start + rng.randbytes(length))
            refused(tmp_path / "a.pt")
            refused(tmp_path / "a.pt", PictureError, read_picture)
