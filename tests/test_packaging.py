"""The wheel: complete, with nothing but the package, and able to upscale. `make build` also installs it in an empty environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools 77, which pip would install")

ROOT = Path(__file__).resolve().parent.parent
NEEDED = [
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "py.typed",
    "arch",
    "upscale",
    "training",
    "weights",
    *(path.name for path in ROOT.glob("*.py")),
]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The unpacked wheel, built from a copy of the sources."""
    source, wheel, unpacked = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "unpacked"))
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(sys.executable, "-c", BUILD, wheel, cwd=source)
    (file,) = wheel.glob("*.whl")
    zipfile.ZipFile(file).extractall(unpacked)
    return unpacked


def test_wheel_contains_the_whole_package_and_nothing_else(unpacked):
    package = unpacked / "transformersr"
    top = {path.name for path in unpacked.iterdir()}
    assert {name.partition("-")[0] for name in top} == {"transformersr"}, "the wheel installs more than the package"
    expected = {
        path.relative_to(ROOT)
        for folder in ("arch", "upscale", "training", "weights")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    found = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    assert found - {Path(name) for name in NEEDED} == expected


def test_wheel_can_upscale_an_image(unpacked, tmp_path):
    Image.new("RGB", (8, 9), (10, 200, 30)).save(tmp_path / "girl.png")
    where = run(sys.executable, "-c", "import transformersr; print(transformersr.__file__)", cwd=tmp_path, PYTHONPATH=str(unpacked))
    assert Path(where) == unpacked / "transformersr" / "__init__.py"
    run(sys.executable, "-m", "transformersr", "upscale", "girl.png", "--device", "cpu", cwd=tmp_path, PYTHONPATH=str(unpacked))
    assert Image.open(tmp_path / "girl_x4.png").size == (32, 36)
