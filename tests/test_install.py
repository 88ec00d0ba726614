"""`install.py`: silent where nothing is missing, and nothing half-fetched. The network is a server on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "install.py"
WEIGHTS = b"PK\x03\x04" + bytes(range(256)) * 40
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


def install(*arguments, script: Path = SCRIPT, cwd: Path | None = None, flags: tuple[str, ...] = (), path: str = ""):
    """Run it as the hosts do: as a script, from anywhere."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {"PYTHONPATH": path}
    command = [sys.executable, *flags, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60, check=False)


@pytest.fixture
def server():
    """An address with weights, a web page, and weights that break off."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"<html>Sign in</html>" if "page" in self.path else WEIGHTS
            self.send_response(404 if "gone" in self.path else 200)
            self.send_header("Content-Length", str(len(body) + 1000 * ("short" in self.path)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_nothing_is_said_or_done_where_nothing_is_missing(tmp_path):
    for _ in range(2):
        done = install(cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_and_cannot_be_had_is_named(tmp_path):
    (tmp_path / "pip.py").write_text("raise SystemExit('no connection')")
    done = install(cwd=tmp_path, flags=("-S",), path=str(tmp_path))  # without site-packages
    assert done.returncode == 1
    assert "einops is missing and could not be installed; with a connection, run: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_webuis_own_pip_is_used_and_takes_nothing_along(tmp_path):
    (tmp_path / "launch.py").write_text("def run_pip(command, desc=None): print(command)")
    done = install(cwd=tmp_path, flags=("-S",), path=str(tmp_path))
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if not line.startswith("TransformerSR")] == [
        "install --no-deps einops",
        "install --no-deps safetensors",
    ]


def test_the_original_checkpoint_is_fetched_once(tmp_path, server):
    url = f"{server}/transformerSR_b8_d256_w4_h16.pt?download=true"
    target = tmp_path / "new" / "transformerSR_b8_d256_w4_h16.pt"
    done = install("--fetch-original", url, "--to", tmp_path / "new", "--sha256", DIGEST.upper())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"TransformerSR: {target} ({len(WEIGHTS):,} bytes, SHA-256 {DIGEST})\n"
    assert target.read_bytes() == WEIGHTS
    target.write_bytes(b"mine")
    assert "is there already (4 bytes" in install("--fetch-original", url, "--to", tmp_path / "new").stdout
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("page.pt", (), "perhaps a web page; nothing was kept"),
        ("short.pt", (), "then the connection broke; try again"),
        ("gone.pt", (), "404"),
        ("other.pt", ("--sha256", "00" * 32), f"with the SHA-256 {DIGEST}, expected 0000"),
    ],
)
def test_nothing_is_kept_of_a_fetch_that_failed(tmp_path, server, name, more, words):
    done = install("--fetch-original", f"{server}/{name}", "--to", tmp_path, *more)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_connection_the_way_by_hand_is_told(tmp_path, server):
    free = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    free.server_close()
    done = install("--fetch-original", f"http://127.0.0.1:{free.server_port}/model.pt", "--to", tmp_path)
    assert done.returncode == 1
    assert f"download it in a browser and put it into {tmp_path}" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("place", "folder"), [("custom_nodes", "upscale_models"), ("extensions", "TransformerSR")])
def test_the_hosts_folder_of_models_is_found(tmp_path, server, place, folder):
    pack = tmp_path / place / "odd name-1.0"
    (pack / "arch").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    shutil.copy(SCRIPT, pack)
    shutil.copy(SCRIPT.parent / "arch" / "atomic.py", pack / "arch")
    assert install("--fetch-original", f"{server}/model.pt", script=pack / "install.py").returncode == 0
    assert (tmp_path / "models" / folder / "model.pt").read_bytes() == WEIGHTS


def test_outside_a_host_a_folder_has_to_be_named(server):
    done = install("--fetch-original", f"{server}/model.pt")
    assert done.returncode == 1
    assert "say where to put the file with --to FOLDER" in done.stderr
