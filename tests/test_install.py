"""`install.py`: silent if nothing is missing, clear if something cannot be installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "install.py"


def install(cwd: Path, flags: tuple[str, ...] = (), path: str = ""):
    """Run install.py as the hosts do: as a script, from any folder."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {"PYTHONPATH": path}
    command = [sys.executable, *flags, str(SCRIPT)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60, check=False)


def test_install_is_silent_if_nothing_is_missing(tmp_path):
    for _ in range(2):
        done = install(cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_uninstallable_dependency_is_named(tmp_path):
    (tmp_path / "pip.py").write_text("raise SystemExit('no connection')")
    done = install(cwd=tmp_path, flags=("-S",), path=str(tmp_path))  # without site-packages
    assert done.returncode == 1
    assert "einops is missing and could not be installed; once you are online, run: " in done.stderr
    assert "Traceback" not in done.stderr


def test_webui_pip_is_used_without_dependencies(tmp_path):
    (tmp_path / "launch.py").write_text("def run_pip(command, desc=None): print(command)")
    done = install(cwd=tmp_path, flags=("-S",), path=str(tmp_path))
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if not line.startswith("TransformerSR")] == [
        "install --no-deps einops",
        "install --no-deps safetensors",
    ]
