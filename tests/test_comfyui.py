"""The nodes inside a real ComfyUI, if one is available.

    TRANSFORMERSR_COMFYUI=/path/to/ComfyUI TRANSFORMERSR_COMFYUI_PYTHON=/path/to/its/python pytest tests/test_comfyui.py

ComfyUI runs on the CPU in its own process with a temporary base directory. Nothing is written into its folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from transformersr.upscale.checkpoint import load_model, save_model
from transformersr.upscale.engine import upscale

from comfyui_pack import EXAMPLES, INPUTS, LOADER, ROOT, UPSCALE, VIDEO, WIDGETS
from plain_v1 import newer_keys, random_state
from random_models import V2, random_model
from video_files import make_video

COMFYUI = os.environ.get("TRANSFORMERSR_COMFYUI")
PYTHON = os.environ.get("TRANSFORMERSR_COMFYUI_PYTHON", sys.executable)
FOLDER = "Transformer-SR.v0.1-copy"  # no space: ComfyUI does not find the help pages of a folder with one
needs_comfyui = pytest.mark.skipif(COMFYUI is None, reason="TRANSFORMERSR_COMFYUI is not set to a ComfyUI folder")


class Server:
    """A ComfyUI process, used through its HTTP API as the web page does."""

    def __init__(self, base: Path):
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        arguments = ["--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(base), "--disable-api-nodes"]
        self.log = base / "log.txt"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([PYTHON, "main.py", *arguments], cwd=COMFYUI, env=environment, stdout=log, stderr=log)

    def wait(self, limit: float = 300) -> Server:
        end = time.monotonic() + limit
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return self
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            return response.read()

    def json(self, path: str):
        return json.loads(self.get(path))

    def post(self, path: str, content: dict) -> dict:
        """Return the JSON answer to a request, including error answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(content).encode())
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read() or "{}")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def start(self, nodes: dict) -> str:
        answer = self.post("/prompt", {"prompt": {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}})
        assert "prompt_id" in answer, json.dumps(answer)[:2000]
        return answer["prompt_id"]

    def finish(self, prompt: str, limit: float = 300) -> dict:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if found := self.json(f"/history/{prompt}"):
                return found[prompt]
            time.sleep(0.1)
        raise AssertionError(f"no result after {limit} s: {self.log.read_text()[-2000:]}")

    def images(self, nodes: dict) -> list[Image.Image]:
        """Run a graph and return the images that its node `save` wrote."""
        done = self.finish(self.start(nodes))
        assert done["status"]["status_str"] == "success", json.dumps(done["status"])[:2000]
        return [Image.open(self.base / "output" / image["subfolder"] / image["filename"]) for image in done["outputs"]["save"]["images"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base directory with our pack under an unusual name, next to a pack that puts its own `arch` and `upscale` first on sys.path."""
    base = tmp_path_factory.mktemp("base")
    pack = base / "custom_nodes" / FOLDER
    parts = ["__init__.py", "nodes.py", "pyproject.toml", "arch", "upscale", "weights", "locales", "web", "example_workflows", "subgraphs"]
    for name in parts:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        pack.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, pack / name)
    conflicting = base / "custom_nodes" / "AAA_conflicting"
    for name in ("arch", "upscale", "nodes", "models", "engine"):
        (conflicting / name).mkdir(parents=True)
        (conflicting / name / "__init__.py").write_text("raise RuntimeError('a module of another pack was imported')")
    (conflicting / "__init__.py").write_text("import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\nNODE_CLASS_MAPPINGS = {}\n")

    models = base / "models" / "upscale_models"
    models.mkdir(parents=True)
    author = random_state(pairs=1, dim=32, scale=2)
    torch.save(author, models / "older.pt")
    torch.save(newer_keys(author), models / "newer.pth")
    torch.save({"conv_first.weight": torch.zeros(1)}, models / "foreign.pth")
    (models / "transformersr-damaged.pt").write_bytes(b"PK\x03\x04")
    (base / "models" / "transformersr").mkdir()
    save_model(random_model(V2), base / "models" / "transformersr" / "mine.safetensors")
    (base / "input").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)).save(base / "input" / "image.png")
    Image.effect_noise((400, 400), 50).convert("RGB").save(base / "input" / "large.png")
    return base


@pytest.fixture(scope="module")
def server(base):
    server = Server(base)
    try:
        yield server.wait()
    finally:
        server.process.terminate()
        server.process.wait(60)


def graph(image: str = "image.png", **settings) -> dict:
    """Load, upscale, save."""
    return {
        "load": ("LoadImage", {"image": image}),
        "up": (UPSCALE, {"image": ["load", 0], "model_name": "x4-tiny", **settings}),
        "save": ("SaveImage", {"images": ["up", 0], "filename_prefix": "test"}),
    }


def expected(model: Path, path: Path) -> np.ndarray:
    """The network's result for a whole image, on the 8-bit scale."""
    image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)[None] / 255
    return (upscale(load_model(model), image)[0].permute(1, 2, 0) * 255).numpy()


@needs_comfyui
def test_nodes_are_registered_with_names_and_tooltips(server):
    log = server.log.read_text()
    assert re.search(rf"[0-9.]+ seconds: \S.*{re.escape(FOLDER)}", log)
    nodes = server.json("/object_info")
    english = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    for name in INPUTS:
        node = nodes[name]
        assert node["display_name"] == english[name]["display_name"]
        assert node["description"] == english[name]["description"]
        inputs = node["input"]["required"] | node["input"].get("optional", {})
        assert {key: options[1]["tooltip"] for key, options in inputs.items()} == {
            key: entry["tooltip"] for key, entry in english[name]["inputs"].items()
        }
        assert node["output_tooltips"] == [english[name]["outputs"]["0"]["tooltip"]]
    assert list(nodes[UPSCALE]["input"]["required"]) == ["image", "model_name"]
    models = nodes[UPSCALE]["input"]["required"]["model_name"][0]
    assert models[0] == "x4-base"
    assert models[-4:] == ["newer.pth", "older.pt", "transformersr-damaged.pt", "mine.safetensors"]


@needs_comfyui
def test_help_pages_locales_and_examples_are_served(server):
    assert server.get(f"/extensions/{FOLDER}/docs/{UPSCALE}/en.md").startswith(b"# Upscale (TransformerSR)")
    assert UPSCALE in server.json("/i18n")["zh"]["nodeDefs"]
    assert sorted(server.json("/workflow_templates")[FOLDER]) == [path.stem for path in EXAMPLES]
    for path in EXAMPLES:
        assert server.json(f"/api/workflow_templates/{FOLDER}/{quote(path.stem)}.json")["nodes"]
        assert server.get(f"/api/workflow_templates/{FOLDER}/{quote(path.stem)}.jpg")[:2] == b"\xff\xd8"


@needs_comfyui
@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (112, 80)),
        ({"size_by": "factor", "factor": 1.5}, (42, 30)),
        ({"size_by": "width and height", "width": 200, "height": 31}, (200, 31)),
        ({"size_by": "width and height", "height": 40}, (56, 40)),
        ({"size_by": "longest side", "longest_side": 300}, (300, 214)),
        ({"model_name": "older.pt", "size_by": "model scale", "precision": "bf16", "memory_gb": 0.5}, (56, 40)),
    ],
)
def test_size_options_give_the_requested_size(server, settings, size):
    assert [image.size for image in server.images(graph(**settings))] == [size]


@needs_comfyui
def test_result_equals_the_network_output(server):
    (image,) = server.images(graph())
    difference = np.asarray(image) - expected(ROOT / "weights" / "x4-tiny.safetensors", server.base / "input" / "image.png")
    assert np.abs(difference).max() <= 1.01


@needs_comfyui
def test_transparency_and_batches_are_kept(server):
    nodes = graph()
    nodes["mask"] = ("ImageToMask", {"image": ["load", 0], "channel": "red"})
    nodes["join"] = ("JoinImageWithAlpha", {"image": ["load", 0], "alpha": ["mask", 0]})
    nodes["many"] = ("RepeatImageBatch", {"image": ["join", 0], "amount": 3})
    nodes["up"][1]["image"] = ["many", 0]
    images = server.images(nodes)
    assert [(image.mode, image.size) for image in images] == [("RGBA", (112, 80))] * 3
    assert np.array_equal(np.asarray(images[0]), np.asarray(images[2]))


@needs_comfyui
@pytest.mark.parametrize("loader", ["UpscaleModelLoader", LOADER])
@pytest.mark.parametrize("name", ["older.pt", "newer.pth", "mine.safetensors"])
def test_core_upscale_node_runs_original_and_own_checkpoints(server, loader, name):
    if name == "mine.safetensors" and loader == "UpscaleModelLoader":  # the core loader searches only its own folder
        shutil.copy(server.base / "models" / "transformersr" / name, server.base / "models" / "upscale_models" / "copy.safetensors")
        name = "copy.safetensors"
    nodes = {
        "load": ("LoadImage", {"image": "image.png"}),
        "model": (loader, {"model_name": name}),
        "up": ("ImageUpscaleWithModel", {"upscale_model": ["model", 0], "image": ["load", 0]}),
        "save": ("SaveImage", {"images": ["up", 0], "filename_prefix": "test"}),
    }
    (image,) = server.images(nodes)
    folder = "transformersr" if name == "mine.safetensors" else "upscale_models"
    assert np.abs(np.asarray(image) - expected(server.base / "models" / folder / name, server.base / "input" / "image.png")).max() <= 1.01


@needs_comfyui
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_settings_run_in_our_node(server, path):
    (node,) = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] in (UPSCALE, VIDEO)]
    settings = dict(zip(WIDGETS[node["type"]], node["widgets_values"], strict=True))
    if node["type"] == UPSCALE:
        (image,) = server.images(graph(**settings))
        assert max(image.size) >= 40
        return
    make_video(server.base / "input" / "video.mp4", size=(32, 24), frames=5)
    nodes = {
        "load": ("LoadVideo", {"file": "video.mp4"}),
        "up": (VIDEO, {"video": ["load", 0], **settings, "longest_side": 64}),
        "save": ("SaveVideo", {"video": ["up", 0], "filename_prefix": "test", "format": "auto", "codec": "auto"}),
    }
    done = server.finish(server.start(nodes))
    assert done["status"]["status_str"] == "success", json.dumps(done["status"])[:2000]
    assert done["outputs"]["save"]["images"]


@needs_comfyui
def test_mask_input_changes_the_result(server):
    nodes = graph()
    nodes["mask"] = ("SolidMask", {"value": 0.0, "width": 28, "height": 20})
    nodes["up"][1]["mask"] = ["mask", 0]
    (image,) = server.images(nodes)
    assert image.size == (112, 80)
    assert np.abs(np.asarray(image) - expected(ROOT / "weights" / "x4-tiny.safetensors", server.base / "input" / "image.png")).max() > 10


@needs_comfyui
def test_zero_size_is_rejected_before_execution(server):
    nodes = graph(size_by="width and height", width=0, height=0)
    answer = server.post("/prompt", {"prompt": {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}})
    errors = answer["node_errors"]["up"]["errors"]  # ComfyUI repeats it for every input it validated
    assert ["both 0" in error["details"] for error in errors] == [True] * len(errors) != []


@needs_comfyui
def test_subgraph_blueprints_are_served(server):
    try:
        served = server.json("/global_subgraphs")
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI has no blueprints")
    ours = {entry["name"] for entry in served.values() if entry["info"]["node_pack"].endswith(FOLDER)}
    assert ours == {path.stem for path in (ROOT / "subgraphs").glob("*.json")}


@needs_comfyui
def test_missing_model_is_rejected_before_execution(server):
    answer = server.post(
        "/prompt", {"prompt": {name: {"class_type": k, "inputs": i} for name, (k, i) in graph(model_name="gone.pth").items()}}
    )
    (error,) = answer["node_errors"]["up"]["errors"]
    assert "gone.pth: no TransformerSR model of this name; available: x4-base" in error["details"]


@needs_comfyui
def test_damaged_model_is_reported_in_one_sentence(server):
    done = server.finish(server.start(graph(model_name="transformersr-damaged.pt")))
    (error,) = [content for kind, content in done["status"]["messages"] if kind == "execution_error"]
    assert error["node_id"] == "up"
    assert re.search(
        r"transformersr-damaged.pt: the file is cut short or damaged.*; download or copy it again\n$", error["exception_message"]
    )


@needs_comfyui
def test_memory_error_names_the_node_input(server):
    done = server.finish(server.start(graph("large.png", memory_gb=0.01)))
    (error,) = [content for kind, content in done["status"]["messages"] if kind == "execution_error"]
    english = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert f"The budget is {english[UPSCALE]['inputs']['memory_gb']['name']} in this node" in error["exception_message"]


@needs_comfyui
def test_cancel_interrupts_a_running_image(server):
    server.images(graph())  # loads the model
    prompt = server.start(graph("large.png", size_by="factor", factor=16.0, memory_gb=2.0))
    time.sleep(2)
    begun = time.monotonic()
    server.post("/interrupt", {})
    done = server.finish(prompt, 60)
    assert done["status"]["messages"][-1][0] == "execution_interrupted"
    assert time.monotonic() - begun < 30
    assert server.images(graph())[0].size == (112, 80)


@needs_comfyui
def test_cancel_stops_within_a_band_and_the_host_still_manages_the_model(base, tmp_path):
    pack = tmp_path / "custom nodes" / "Transformer-SR v0.2 (2)"
    shutil.copytree(base / "custom_nodes" / FOLDER, pack)
    done = subprocess.run(
        [PYTHON, Path(__file__).parent / "programs" / "cancel_in_comfyui.py", pack],
        capture_output=True,
        text=True,
        cwd=COMFYUI,
        env=os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["steps after Cancel: 0", "managed: [True]", "left: 0 torch.Size([1, 32, 32, 1])"]
