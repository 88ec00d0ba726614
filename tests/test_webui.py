"""The WebUI script: with a stand-in for its host, and inside a real Forge, reForge or AUTOMATIC1111 if one is available.

    TRANSFORMERSR_FORGE=/path/to/stable-diffusion-webui-forge TRANSFORMERSR_FORGE_PYTHON=/path/to/its/python pytest tests/test_webui.py

The host runs on the CPU in its own processes with a temporary data folder. Nothing is written into its installation.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transformersr import Upscaler
from transformersr.upscale.checkpoint import save_model

from random_models import V2, random_model

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(__file__).parent / "programs"
FORGE = os.environ.get("TRANSFORMERSR_FORGE")
PYTHON = os.environ.get("TRANSFORMERSR_FORGE_PYTHON", sys.executable)
CPU = ("--always-cpu",) if Path(FORGE or "", "modules_forge").is_dir() else ("--use-cpu", "all", "--no-half")
ARGUMENTS = ("--skip-prepare-environment", *CPU, "--skip-torch-cuda-test", "--no-download-sd-model", "--data-dir")
NAME, MINE = "TransformerSR x4-tiny", "TransformerSR mine.safetensors"

needs_forge = pytest.mark.skipif(FORGE is None, reason="TRANSFORMERSR_FORGE is not set to a WebUI folder")


def noise_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return reproducible noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)).convert(mode)


# --- without a host ------------------------------------------------------------------------------


def test_preload_adds_the_models_path_option(tmp_path):
    parser = argparse.ArgumentParser()
    runpy.run_path(str(ROOT / "preload.py"))["preload"](parser)
    assert parser.parse_args([]).transformersr_models_path is None
    assert parser.parse_args(["--transformersr-models-path", str(tmp_path)]).transformersr_models_path == str(tmp_path)


@pytest.fixture(scope="module", params=["Forge", "Forge Neo", "SD.Next"])
def alone(request, tmp_path_factory) -> dict:
    """Results of the script with stand-ins for the modules of each host."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "TransformerSR").mkdir()
    save_model(random_model(V2), folder / "TransformerSR" / "mine.safetensors")
    save_model(random_model(V2, seed=1), folder / "TransformerSR" / "mine-crisp.safetensors")
    program, script = PROGRAMS / "webui_standin.py", ROOT / "scripts" / "transformersr_upscaler.py"
    done = subprocess.run(
        [sys.executable, program, script, folder, ROOT, request.param], cwd=folder, check=True, capture_output=True, text=True, timeout=120
    )
    return json.loads(done.stdout) | {"folder": folder}


def test_script_lists_every_model_once(alone):
    assert alone["names"][:2] == ["TransformerSR x4-base", NAME]
    assert alone["listed"] == len(alone["names"])  # callbacks have run twice
    assert alone["package"] == "transformersr_webui"
    assert not alone["path"]


def test_every_host_gets_the_requested_sizes(alone):
    assert alone["sizes"] == [[23, 17], [57, 42], [69, 51], [11, 8]]


def test_crispness_and_ensemble_are_off_by_default_and_without_settings(alone):
    assert alone["settings"] == [0, False]
    assert alone["outputs"]["unset"] == alone["outputs"]["no settings"]


def test_crispness_applies_only_to_models_with_a_crisp_version(alone):
    """A crisp version has no crisp version itself, so it gives the same image with crispness 1."""
    assert alone["outputs"]["crisp"] == alone["outputs"]["crisp version"] != alone["outputs"]["unset"]


def test_ensemble_matches_the_python_api(alone):
    api = Upscaler.from_pretrained(alone["folder"] / "TransformerSR" / "mine.safetensors", "cpu", "fp32", ensemble=True)
    assert alone["outputs"]["ensemble"] == api(Image.open(alone["folder"] / "noise.png")).tobytes().hex()
    assert alone["outputs"]["ensemble"] != alone["outputs"]["unset"]


def test_failure_returns_the_image_with_one_report(alone):
    assert alone["unchanged"] == [True, True]
    (report,), (warning,) = alone["reports"], alone["warnings"]
    assert "a folder" in report
    assert "did not upscale the image: broken.safetensors" in warning


def test_failure_is_noted_in_the_image_info_without_the_path(alone):
    assert alone["success"] == {"Postprocess upscaler": MINE}
    (reason,) = alone["failed"].values()
    assert [*alone["failed"]] == ["Not upscaled"]
    assert "did not upscale: broken.safetensors" in reason
    assert "folder" not in reason


def test_interruption_is_noted_in_the_image_info_once(alone):
    assert alone["generated"] == {"Not upscaled": f"{MINE} did not upscale: interrupted"}
    assert alone["after"] == alone["success"]


def test_progress_text_is_shown_and_then_restored(alone):
    assert f"{MINE}: 0% of this image" in alone["texts"]
    assert alone["text"] == "before"


# --- inside the host -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder for the host: this extension under another name, the user's models, and damaged ones."""
    data = tmp_path_factory.mktemp("webui data")
    (data / "extensions").mkdir()
    (data / "extensions" / "Transformer-SR main").symlink_to(ROOT, target_is_directory=True)
    own = data / "models" / "TransformerSR"
    (own / "mine").mkdir(parents=True)
    save_model(random_model(V2), own / "mine" / "x2.safetensors")
    torch.save({"params": random_model(V2).state_dict()}, own / "mine" / "pickled.pth")
    (data / "elsewhere").mkdir()
    save_model(random_model(V2), data / "elsewhere" / "far.safetensors")
    (own / "transformersr broken.safetensors").write_bytes((ROOT / "weights" / "x4-tiny.safetensors").read_bytes()[:400_000])
    (own / "transformersr broken.pth").write_bytes(b"PK\x03\x04 and no more")
    return data


@pytest.fixture(scope="module")
def inside(data, tmp_path_factory) -> dict:
    """Results of the host's own functions with our upscalers, in one process."""
    folder = tmp_path_factory.mktemp("result")
    noise_image(38, 26).save(folder / "image.png")
    environment = os.environ | {"RESULT": str(folder / "result"), "IMAGE": str(folder / "image.png"), "HF_HUB_OFFLINE": "1"}
    command = [PYTHON, PROGRAMS / "webui_inside.py", *ARGUMENTS, str(data), "--transformersr-models-path", str(data / "elsewhere")]
    done = subprocess.run(command, cwd=FORGE, env=environment, capture_output=True, text=True, timeout=600)
    assert (folder / "result").is_file(), done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "result").read_text()) | {"image": str(folder / "result.png"), "source": str(folder / "image.png")}


@needs_forge
def test_models_are_listed_once_before_and_after_a_reload(inside):
    assert inside["names"] == inside["names_after_reload"]
    assert sorted(inside["names"]) == sorted({*inside["names"]})
    expected = {NAME, *(f"TransformerSR {label}" for label in ("mine/x2.safetensors", "mine/pickled.pth", "far.safetensors"))}
    assert expected <= {*inside["names"]}
    assert inside["cleanup_scripts"] == 1
    assert inside["settings"] == [f"transformersr_{key}" for key in ("crispness", "ensemble", "memory", "precision")]
    assert dict(zip(inside["names"], inside["scales"], strict=True))["TransformerSR mine/x2.safetensors"] == 2
    assert Path(inside["package"]).resolve() == ROOT / "__init__.py"


@needs_forge
def test_host_loader_opens_our_files(inside):
    assert inside["spandrel"] == 4


@needs_forge
def test_host_gets_the_requested_sizes(inside):
    assert inside["hires"] == [152, 104]
    assert inside["cropped"] == [101, 103]
    assert inside["odd"] == [117, 80]  # 38 * 3.1 and 26 * 3.1, rounded down
    assert inside["own"] == [76, 52]


@needs_forge
def test_hires_pass_matches_the_python_api(inside):
    expected = Upscaler.from_pretrained("x4-tiny", device="cpu")(Image.open(inside["source"]))
    difference = np.abs(np.asarray(expected, int) - np.asarray(Image.open(inside["image"]), int))
    assert difference.max() <= 1  # other versions of PyTorch round differently


@needs_forge
def test_pickled_model_is_converted_to_safetensors_next_to_it(inside):
    assert inside["pickled"] == [True, ["pickled.pth", "pickled.safetensors", "x2.safetensors"]]


@needs_forge
def test_model_is_kept_until_its_file_changes(inside):
    assert inside["kept"]
    assert inside["reloaded"]


@needs_forge
def test_interruption_stops_within_a_band_without_an_error(inside):
    unchanged, reads, silent = inside["interrupted"]
    assert unchanged
    assert silent
    assert reads == 3


@needs_forge
def test_damaged_weights_return_the_image_with_a_reason(inside):
    assert [*map(tuple, inside["broken"])] == [
        ("TransformerSR transformersr broken.pth", True, True),
        ("TransformerSR transformersr broken.safetensors", True, True),
    ]
    assert inside["corrupted"] == []
    for ending in (".pth", ".safetensors"):
        assert any(f"broken{ending}" in report and "download or copy it again" in report for report in inside["reports"])


# --- the running server --------------------------------------------------------------------------


@contextlib.contextmanager
def run_server(data: Path, log: Path):
    """Run the host and yield the address of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "launch.py", *ARGUMENTS, str(data), "--api", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=FORGE, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=output, stderr=output)
    try:
        wait_for(f"http://127.0.0.1:{port}/sdapi/v1/upscalers", server, log)
        yield f"http://127.0.0.1:{port}/sdapi/v1"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 400
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(2)
    raise AssertionError(f"the host did not start:\n{log.read_text()[-3000:]}")


def ask(address: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def extra(address: str, image: Image.Image, **options) -> Image.Image:
    """Upscale an image through the API of the Extras tab; the host's message is in `info["message"]`."""
    png = io.BytesIO()
    image.save(png, "PNG")
    body = {"image": base64.b64encode(png.getvalue()).decode(), "upscaler_1": NAME, **options}
    answer = ask(f"{address}/extra-single-image", body)
    result = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    result.info["message"] = answer["html_info"]
    return result


@needs_forge
def test_server_lists_models_and_upscales_to_the_requested_size(data, tmp_path):
    with run_server(data, tmp_path / "first.log") as address:
        listed = [one["name"] for one in ask(f"{address}/upscalers")]
        assert listed.count(NAME) == 1
        image = noise_image(33, 21)
        assert extra(address, image, resize_mode=0, upscaling_resize=3).size == (99, 63)
        assert extra(address, image, resize_mode=0, upscaling_resize=1.5).size == (49, 31)
        size = {"upscaling_resize_w": 67, "upscaling_resize_h": 71}
        assert extra(address, image, resize_mode=1, upscaling_crop=True, **size).size == (67, 71)
        transparent = extra(address, noise_image(33, 21, "RGBA"), resize_mode=0, upscaling_resize=2)
        hosts = extra(address, noise_image(33, 21, "RGBA"), resize_mode=0, upscaling_resize=2, upscaler_1="Lanczos").mode
        assert (transparent.mode, transparent.size) == (hosts, (66, 42))  # AUTOMATIC1111 removes transparency before upscaling
        broken = "TransformerSR transformersr broken.pth"
        unchanged = extra(address, image, upscaler_1=broken, resize_mode=0, upscaling_resize=2)
        assert unchanged.size == image.size
        assert "Not upscaled" in unchanged.info["message"]
        assert "Postprocess upscaler: TransformerSR" not in unchanged.info["message"]
        assert str(data) not in unchanged.info["message"]
    with run_server(data, tmp_path / "second.log") as address:
        assert [one["name"] for one in ask(f"{address}/upscalers")] == listed
    assert "Error loading script: transformersr" not in (tmp_path / "second.log").read_text()
