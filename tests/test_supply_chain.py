"""Shipped weights match their checksums, and the package makes no network connections."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transformersr.upscale import upscaler as upscaling
from transformersr.upscale.checkpoint import CheckpointError, load_model
from transformersr.upscale.upscaler import WEIGHTS, available_models, find_model

ROOT = Path(__file__).resolve().parent.parent

# --- weights -------------------------------------------------------------------------------------


def test_shipped_weights_match_their_checksums():
    """After replacing or adding one: `cd weights && sha256sum *.safetensors > SHA256SUMS`."""
    found = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(WEIGHTS.glob("*.safetensors"))]
    assert (WEIGHTS / "SHA256SUMS").read_text(encoding="utf-8").splitlines() == found


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A copy of the shipped weights, used in their place."""
    folder = Path(shutil.copytree(WEIGHTS, tmp_path / "weights")).resolve()
    monkeypatch.setattr(upscaling, "WEIGHTS", folder)
    return folder


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 818528\n"
DAMAGE = {
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "half a download": lambda data: data[: len(data) // 2],
    "a Git LFS pointer": lambda data: POINTER,
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("by_path", [False, True])
def test_modified_shipped_weights_are_rejected(weights, damage, by_path):
    path = find_model("x4-tiny")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"x4-tiny\.safetensors is not the file that came with the package.*install.*again"):
        find_model(path if by_path else "x4-tiny")
    assert find_model("x2-tiny").parent == weights


def test_missing_checksum_file_is_reported(weights):
    (weights / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="SHA256SUMS"):
        find_model()


def test_own_weights_with_a_shipped_name_load_by_path(weights, tmp_path):
    own = tmp_path / "x4-tiny.safetensors"
    shutil.copyfile(weights / "x2-tiny.safetensors", own)
    assert load_model(find_model(own)).config.scale == 2


# --- the network ---------------------------------------------------------------------------------

PROGRAMS = ROOT / "tests" / "programs"


def run_without_network(program: Path, *arguments: object, home: Path) -> str:
    """Run a Python file in a process that cannot open connections, with an empty home, and return what it prints."""
    environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, PROGRAMS / "without_network.py", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "without a network" not in done.stderr  # or it tried, and caught the error
    return done.stdout


def test_importing_training_and_upscaling_make_no_network_calls(folder, tmp_path):
    run_without_network(PROGRAMS / "import_train_upscale.py", ROOT, folder, tmp_path, home=tmp_path)
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert (tmp_path / "0.png").is_file()


def test_network_block_raises_on_a_connection(tmp_path):
    program = tmp_path / "connect.py"
    program.write_text(
        "import urllib.request\ntry: urllib.request.urlopen('http://127.0.0.1:9')\nexcept AssertionError as error: print(error)"
    )
    assert "without a network" in run_without_network(program, home=tmp_path)


def test_package_imports_no_network_modules():
    """No module of the package imports a network client, so no code path can have escaped the tests above."""
    modules = [path for folder in ("arch", "upscale", "training", "weights") for path in (ROOT / folder).rglob("*.py")]
    opening = re.compile(r"^\s*(?:import|from)\s+(?:urllib\.request|http\.client|requests|httpx|socket|huggingface_hub|torch\.hub)\b", re.M)
    assert not [path for path in [*modules, *ROOT.glob("*.py")] if opening.search(path.read_text(encoding="utf-8"))]


# --- versions ------------------------------------------------------------------------------------


def test_oldest_pinned_versions_match_pyproject():
    """`constraints-oldest.txt` pins the minimum versions of pyproject.toml; a comment there explains each exception."""
    declared = dict(re.findall(r'"([a-z]+)>=([0-9.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    pinned = dict(re.findall(r"^([a-z]+)==([0-9.]+)", (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8"), re.M))
    for name in ("torch", "numpy", "pillow", "einops", "click", "tqdm", "accelerate", "tensorboard", "tomli"):
        assert f"{pinned[name]}.0.0".startswith(f"{declared[name]}."), name


def test_there_are_at_least_two_shipped_models():
    assert len(available_models()) >= 2
