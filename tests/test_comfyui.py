"""The ComfyUI nodes: what can be said of their files anywhere, and the rest inside a real ComfyUI where there is one.

    TRANSFORMERSR_COMFYUI=/path/to/ComfyUI TRANSFORMERSR_COMFYUI_PYTHON=/path/to/its/python pytest tests/test_comfyui.py

It runs on the CPU in processes of its own, with a base directory of its own; nothing is written into its folder.
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

from transformersr.arch import load_model, save_model
from transformersr.upscale.engine import upscale
from transformersr.upscale.upscaler import Upscaler, available_models, load_blend

import comfyui_standin
from peers import declare_torchvision_operators
from plain_v1 import newer_keys, random_state
from random_models import V2, random_model

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = os.environ.get("TRANSFORMERSR_COMFYUI")
PYTHON = os.environ.get("TRANSFORMERSR_COMFYUI_PYTHON", sys.executable)
FOLDER = "Transformer-SR.v0.1-copy"  # with a space in it, ComfyUI itself would not find the pages of help
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
UPSCALE, VIDEO, LOADER = "TransformerSRUpscale", "TransformerSRUpscaleVideo", "TransformerSRModelLoader"
SIZE = ["size_by", "factor", "width", "height", "longest_side"]
INPUTS = {
    UPSCALE: ["image", "model_name", *SIZE, "precision", "memory_gb", "mask", "crispness", "ensemble"],
    VIDEO: ["video", "model_name", *SIZE, "quality", "precision", "memory_gb", "crispness", "ensemble"],
    LOADER: ["model_name", "crispness"],
}
"""In the order of the values in saved workflows: new ones go to the end."""
WIDGETS = {node: [name for name in names if name not in ("image", "video", "mask")] for node, names in INPUTS.items()}

needs_comfyui = pytest.mark.skipif(COMFYUI is None, reason="TRANSFORMERSR_COMFYUI does not name the folder of a ComfyUI")


# --- without ComfyUI -----------------------------------------------------------------------------

IMPORT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location(sys.argv[2], sys.argv[1] + "/__init__.py")
package = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
assert not hasattr(package, "NODE_CLASS_MAPPINGS"), "nodes without ComfyUI"
assert "torch" not in sys.modules, "importing the package costs something"
assert package.Upscaler.__name__ == "Upscaler"
"""


def test_without_comfyui_the_package_has_no_nodes_and_says_nothing():
    name = "/somewhere/custom_nodes/Transformer-SR v0_x_1 (copy)"
    done = subprocess.run([sys.executable, "-c", IMPORT, str(ROOT), name], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("language", sorted(path.name for path in (ROOT / "locales").iterdir()))
def test_every_language_has_every_text(language):
    nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {node: list(texts["inputs"]) for node, texts in nodes.items()} == INPUTS
    for texts in nodes.values():
        for entry in (*texts["inputs"].values(), *texts["outputs"].values()):
            assert entry["name"]
            assert entry["tooltip"]
        assert texts["display_name"]
        assert texts["description"]


@pytest.mark.parametrize("language", ["en", "zh", "ja", "ko"])
@pytest.mark.parametrize("node", INPUTS)
def test_help_names_every_input_as_the_node_shows_it(language, node):
    page = (ROOT / "web" / "docs" / node / f"{language}.md").read_text(encoding="utf-8")
    nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for entry in nodes[node]["inputs"].values():
        assert f"**{entry['name']}**" in page
    assert page.startswith(f"# {nodes[node]['display_name']}\n")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_images_and_every_setting(path):
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.format == "JPEG"
    (node,) = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] in (UPSCALE, VIDEO)]
    assert [entry["name"] for entry in node["inputs"]] == INPUTS[node["type"]]
    assert len(node["widgets_values"]) == len(WIDGETS[node["type"]])


@pytest.mark.parametrize("word", ["anime", "4x", "waifu2x", "video", "hires", "upscale"])
def test_the_search_for_templates_which_knows_only_their_names_finds_one_by(word):
    assert any(word in path.stem.lower() for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_links_of_examples_are_whole(path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link, origin, output, target, slot, _ in graph["links"]:
        assert link in nodes[origin]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link


def test_models_that_examples_need_can_be_downloaded():
    for path in EXAMPLES:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] == "CheckpointLoaderSimple":
                (model,) = node["properties"]["models"]
                assert model["name"] == node["widgets_values"][0]
                assert model["url"].endswith(f"/{model['name']}")


@pytest.mark.parametrize("path", sorted((ROOT / "subgraphs").glob("*.json")), ids=lambda path: path.stem)
def test_blueprints_hold_one_subgraph_with_our_node_and_what_it_is_for(path):
    (graph,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    (node,) = [node for node in graph["nodes"] if node["type"] == UPSCALE]
    assert [entry["name"] for entry in node["inputs"]] == INPUTS[UPSCALE]
    assert graph["name"] == path.stem
    assert graph["description"]


def test_requirements_leave_the_hosts_pytorch_alone():
    """ComfyUI-Manager and comfy-cli install from this file; without it comfy-cli's `--fast-deps` would read PyTorch in pyproject.toml."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["einops", "safetensors"]


def test_the_registrys_archive_has_nothing_that_its_scanner_flags():
    """It holds back packs for network calls and for starting programs; what we have of that does not go into the archive."""
    command = ["git", "ls-files", "--cached", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ignored = subprocess.run(
        [*command[:2], "--ignored", "--exclude-from=.comfyignore", *command[2:]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    archive = set(listed) - set(ignored)
    assert {"nodes.py", "arch/model.py", "upscale/video.py"} <= archive
    modules = r"^\s*(import|from) (subprocess|socket|urllib|requests|http|ctypes)\b"
    flagged = re.compile(modules + r"|(?<![.\w])(exec|eval)\(|os\.system", re.MULTILINE)
    assert [name for name in sorted(archive) if flagged.search((ROOT / name).read_text(encoding="utf-8"))] == []


# --- with a stand-in for ComfyUI -----------------------------------------------------------------


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    save_model(random_model(V2), tmp_path / "models" / "mine.safetensors")
    return comfyui_standin.install(monkeypatch, tmp_path)


@pytest.fixture
def siblings(nodes, tmp_path) -> Path:
    """A model and its crisp sibling, in the folder of the user's models."""
    save_model(random_model(V2, seed=1), tmp_path / "models" / "mine-crisp.safetensors")
    return tmp_path / "models" / "mine.safetensors"


def random_image(height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))


def test_the_patcher_is_of_the_class_that_the_host_chose_at_its_start(nodes, monkeypatch):
    """A plain one among dynamic ones makes ComfyUI drop every other model from the device."""
    assert type(nodes.make_patcher(random_model(V2))) is comfyui_standin.ModelPatcher
    host = sys.modules["comfy.model_patcher"]
    monkeypatch.setattr(host, "CoreModelPatcher", comfyui_standin.ModelPatcherDynamic, raising=False)
    assert type(nodes.make_patcher(random_model(V2))) is comfyui_standin.ModelPatcherDynamic


@pytest.mark.parametrize(("patcher", "moves"), [(comfyui_standin.ModelPatcher, 2), (comfyui_standin.ModelPatcherDynamic, 0)])
def test_parameters_are_moved_by_hand_only_where_the_patcher_does_not(nodes, monkeypatch, patcher, moves):
    model = random_model(V2)
    moved = []
    monkeypatch.setattr(model, "to", moved.append)
    with nodes.on_device(patcher(model, torch.device("meta"), comfyui_standin.CPU), 0):
        pass
    assert len(moved) == moves


def test_the_page_learns_the_size_of_the_input_and_the_scale(nodes):
    done = nodes.TransformerSRUpscale().upscale(random_image(), "mine.safetensors")
    assert done["ui"] == {"transformersr": [{"width": 32, "height": 24, "scale": V2.scale}]}
    options = nodes.TransformerSRUpscale.INPUT_TYPES()["required"]["model_name"][1]
    assert options["scales"]["mine.safetensors"] == V2.scale


def test_every_model_that_comes_with_the_node_says_what_it_is_for(nodes):
    assert nodes.PURPOSES.keys() == available_models().keys()


@pytest.mark.parametrize("node", INPUTS)
def test_inputs_are_in_the_order_of_saved_values_and_say_what_the_english_texts_say(nodes, node):
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))[node]["inputs"]
    types = nodes.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    inputs = types["required"] | types.get("optional", {})
    assert list(inputs) == INPUTS[node]
    assert {name: options["tooltip"] for name, (_, options) in inputs.items()} == {name: entry["tooltip"] for name, entry in texts.items()}


def test_crispness_and_ensemble_give_what_the_python_api_gives(nodes, siblings):
    (image,) = nodes.TransformerSRUpscale().upscale(random_image(), siblings.name, crispness=0.25, ensemble=True)["result"]
    api = Upscaler.from_pretrained(siblings, "cpu", "fp32", crispness=0.25, ensemble=True)
    assert torch.equal(image, api(random_image().movedim(-1, 1)).movedim(1, -1))


def test_another_crispness_loads_another_network_and_the_same_one_does_not(nodes, siblings):
    node = nodes.TransformerSRUpscale()
    loaded = [
        node._upscaler(siblings.name, nodes.Settings(crispness=crispness, ensemble=ensemble)).model
        for crispness, ensemble in ((0, False), (0, True), (1, True))
    ]
    assert loaded[0] is loaded[1]
    assert torch.equal(loaded[2].upsample.weight, load_model(siblings.with_name("mine-crisp.safetensors")).upsample.weight)


def test_a_replaced_crisp_sibling_is_noticed(nodes, siblings):
    changed, node = nodes.TransformerSRUpscale.IS_CHANGED, nodes.TransformerSRUpscale()
    before, model = changed(siblings.name, crispness=1.0), node._upscaler(siblings.name, nodes.Settings(crispness=1.0)).model
    save_model(random_model(V2, seed=2), siblings.with_name("mine-crisp.safetensors"))
    assert changed(siblings.name, crispness=1.0) != before
    assert node._upscaler(siblings.name, nodes.Settings(crispness=1.0)).model is not model


def test_pickled_siblings_blend_too(nodes, siblings):
    for name in ("mine", "mine-crisp"):
        torch.save(load_model(siblings.with_name(f"{name}.safetensors")).state_dict(), siblings.with_name(f"pickled{name[4:]}.pth"))
    upscale = lambda label: nodes.TransformerSRUpscale().upscale(random_image(), label, crispness=0.5)["result"][0]
    assert torch.equal(upscale("pickled.pth"), upscale(siblings.name))


def test_the_page_learns_which_models_have_a_crispness(nodes, siblings):
    for node in INPUTS:
        crisp = nodes.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]["model_name"][1]["crisp"]
        assert siblings.name in crisp
        assert "mine-crisp.safetensors" not in crisp


@pytest.mark.parametrize("node", INPUTS)
def test_a_crispness_that_cannot_be_is_refused_before_anything_runs(nodes, siblings, node):
    check = nodes.NODE_CLASS_MAPPINGS[node].VALIDATE_INPUTS
    assert check(model_name=siblings.name, crispness=1.0) is True
    assert check(model_name="mine-crisp.safetensors", crispness=0.0) is True
    assert check(model_name=None, crispness=0.5) is True  # the model comes from another node
    assert "crispness is 1.5; expected a number from 0 to 1" in check(model_name=siblings.name, crispness=1.5)
    refusal = check(model_name="mine-crisp.safetensors", crispness=0.5)
    assert re.fullmatch(
        r"mine-crisp.safetensors has no crisp sibling, so crispness has to be 0; models with one: .*mine.safetensors", refusal
    )


def test_a_crispness_from_another_node_is_refused_in_the_same_words(nodes, siblings):
    with pytest.raises(ValueError, match=r"no crisp sibling, .*; models with one: .*mine.safetensors"):
        nodes.TransformerSRUpscale().upscale(random_image(), "mine-crisp.safetensors", crispness=0.5)


def test_the_loader_gives_the_network_between_the_siblings(nodes, siblings):
    declare_torchvision_operators()
    pytest.importorskip("spandrel")
    (descriptor,) = nodes.TransformerSRModelLoader().load(siblings.name, 0.5)
    assert torch.equal(descriptor.model.upsample.weight, load_blend(siblings, 0.5).upsample.weight)


def test_a_mask_keeps_the_networks_pixels_inside_and_a_plain_resize_outside(nodes):
    image, mask = random_image(), torch.zeros(1, 24, 32)
    mask[:, :, :16] = 1
    upscale = lambda **options: nodes.TransformerSRUpscale().upscale(image, "mine.safetensors", **options)["result"][0]
    whole, plain, masked = upscale(), upscale(mask=torch.zeros(1, 64, 64)), upscale(mask=mask)
    resized = torch.nn.functional.interpolate(image.movedim(-1, 1), scale_factor=2, mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(plain, resized.movedim(1, -1))
    edge, fade = 2 * 16, 2 * (nodes.FEATHER + 1)
    assert torch.equal(masked[:, :, : edge - fade], whole[:, :, : edge - fade])
    assert torch.equal(masked[:, :, edge + fade :], plain[:, :, edge + fade :])
    between = (masked - plain)[:, :, edge].abs().mean() / (whole - plain)[:, :, edge].abs().mean()
    assert 0.3 < between < 0.7


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"size_by": "width and height", "width": 0, "height": 0}, "both 0"),
        ({"size_by": "width and height", "width": -1, "height": 0}, "width is -1"),
        ({"size_by": "twice"}, "size by is 'twice'"),
        ({"model_name": "page.safetensors"}, "page.safetensors: it is a web page, not weights"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(nodes, tmp_path, inputs, words):
    (tmp_path / "models" / "page.safetensors").write_text("<!DOCTYPE html><html>")
    assert words in nodes.TransformerSRUpscale.VALIDATE_INPUTS(**inputs)


def test_sizes_that_can_be_are_let_through(nodes):
    check = nodes.TransformerSRUpscale.VALIDATE_INPUTS
    assert check("mine.safetensors", size_by="width and height", width=0, height=300) is True
    assert check("mine.safetensors", size_by="model scale", width=0, height=0) is True
    assert check(None, size_by="width and height", width=None, height=0) is True  # the width comes from another node


def test_a_file_that_is_no_model_is_named_once_with_the_reason(nodes, tmp_path, caplog):
    (tmp_path / "models" / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    torch.save({"body.0.weight": torch.zeros(1)}, tmp_path / "models" / "esrgan.pth")
    for second in range(2):
        assert "pointer.pth" not in nodes._available(second)
    (record,) = caplog.records
    assert "pointer.pth is not listed as a model: it is a Git LFS pointer" in record.getMessage()


def test_errors_are_of_pythons_own_classes_as_the_host_shows_their_names(nodes, tmp_path):
    (tmp_path / "models" / "transformersr-damaged.pt").write_bytes(b"PK\x03\x04")
    for options in ({"model_name": "transformersr-damaged.pt"}, {"model_name": "mine.safetensors", "memory_gb": 1e-9}):
        with pytest.raises(ValueError, match=r"damaged|memory") as caught:
            nodes.TransformerSRUpscale().upscale(random_image(), **options)
        assert type(caught.value) is ValueError


@pytest.mark.parametrize(("core", "category"), [(None, "loaders"), (type("Core", (), {"CATEGORY": "model/loaders"}), "model/loaders")])
def test_the_loader_is_listed_where_cores_is(tmp_path, monkeypatch, core, category):
    nodes = comfyui_standin.install(monkeypatch, tmp_path, loader=core)
    assert category == nodes.TransformerSRModelLoader.CATEGORY


def make_video(path: Path, frames: int = 5) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for index in range(frames):
            image = np.full((24, 32, 3), 40 * index, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("start", [0.0, 0.2])
def test_a_video_becomes_the_command_lines_and_leaves_nothing_else_behind(nodes, tmp_path, start):
    from transformersr.upscale.video import upscale_video

    source, weights = make_video(tmp_path / "in.mp4"), tmp_path / "models" / "mine.safetensors"
    video = comfyui_standin.VideoFromFile(str(source), start)
    options = {"size_by": "longest side", "longest_side": 50, "quality": 90}
    (result,) = nodes.TransformerSRUpscaleVideo().upscale(video, weights.name, **options)["result"]
    upscale_video(source, tmp_path / "out.mp4", Upscaler.from_pretrained(weights, "cpu"), size=(38, 50), quality=90)
    assert Path(result.file).read_bytes() == (tmp_path / "out.mp4").read_bytes()
    assert [path.name for path in (tmp_path / "temp").iterdir()] == [Path(result.file).name]


def test_a_cancelled_video_leaves_no_file(nodes, tmp_path, monkeypatch):
    calls = []

    def cancelled_in_the_second_frame():
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("cancelled")

    monkeypatch.setattr(sys.modules["comfy.model_management"], "throw_exception_if_processing_interrupted", cancelled_in_the_second_frame)
    video = comfyui_standin.VideoFromFile(str(make_video(tmp_path / "in.mp4")))
    with pytest.raises(RuntimeError, match="cancelled"):
        nodes.TransformerSRUpscaleVideo().upscale(video, "mine.safetensors")
    assert list((tmp_path / "temp").iterdir()) == []


# --- inside ComfyUI ------------------------------------------------------------------------------


class Server:
    """A ComfyUI of our own, spoken to as its page does."""

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
        """The answer to a request, a refusal too."""
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
        raise AssertionError(f"nothing after {limit} s: {self.log.read_text()[-2000:]}")

    def images(self, nodes: dict) -> list[Image.Image]:
        """What the node `save` of a graph saves."""
        done = self.finish(self.start(nodes))
        assert done["status"]["status_str"] == "success", json.dumps(done["status"])[:2000]
        return [Image.open(self.base / "output" / image["subfolder"] / image["filename"]) for image in done["outputs"]["save"]["images"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A fresh base directory with our folder under an odd name, beside a pack that pushes its own `arch` and `utils` in front."""
    base = tmp_path_factory.mktemp("base")
    pack = base / "custom_nodes" / FOLDER
    parts = ["__init__.py", "nodes.py", "pyproject.toml", "arch", "upscale", "weights", "locales", "web", "example_workflows", "subgraphs"]
    for name in parts:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        pack.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, pack / name)
    rude = base / "custom_nodes" / "AAA_rude"
    for name in ("arch", "upscale", "nodes", "models", "engine"):
        (rude / name).mkdir(parents=True)
        (rude / name / "__init__.py").write_text("raise RuntimeError('somebody else was imported')")
    (rude / "__init__.py").write_text("import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\nNODE_CLASS_MAPPINGS = {}\n")

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
    """What the network makes of an image as a whole, in 8 bits."""
    image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)[None] / 255
    return (upscale(load_model(model), image)[0].permute(1, 2, 0) * 255).numpy()


@needs_comfyui
def test_both_nodes_are_there_with_a_tooltip_on_everything(server):
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
    assert models[0] == "x4-tiny"
    assert models[-4:] == ["newer.pth", "older.pt", "transformersr-damaged.pt", "mine.safetensors"]


@needs_comfyui
def test_help_texts_and_examples_are_served(server):
    folder = FOLDER
    assert server.get(f"/extensions/{folder}/docs/{UPSCALE}/en.md").startswith(b"# Upscale (TransformerSR)")
    assert UPSCALE in server.json("/i18n")["zh"]["nodeDefs"]
    assert sorted(server.json("/workflow_templates")[FOLDER]) == [path.stem for path in EXAMPLES]
    for path in EXAMPLES:
        assert server.json(f"/api/workflow_templates/{folder}/{quote(path.stem)}.json")["nodes"]
        assert server.get(f"/api/workflow_templates/{folder}/{quote(path.stem)}.jpg")[:2] == b"\xff\xd8"


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
def test_sizes(server, settings, size):
    assert [image.size for image in server.images(graph(**settings))] == [size]


@needs_comfyui
def test_the_image_is_the_networks(server):
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
def test_cores_nodes_run_both_of_the_authors_layouts_and_ours(server, loader, name):
    if name == "mine.safetensors" and loader == "UpscaleModelLoader":  # core looks into its own folder only
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
def test_examples_run_as_far_as_our_node_goes(server, path):
    (node,) = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] in (UPSCALE, VIDEO)]
    settings = dict(zip(WIDGETS[node["type"]], node["widgets_values"], strict=True))
    if node["type"] == UPSCALE:
        (image,) = server.images(graph(**settings))
        assert max(image.size) >= 40
        return
    make_video(server.base / "input" / "video.mp4")
    nodes = {
        "load": ("LoadVideo", {"file": "video.mp4"}),
        "up": (VIDEO, {"video": ["load", 0], **settings, "longest_side": 64}),
        "save": ("SaveVideo", {"video": ["up", 0], "filename_prefix": "test", "format": "auto", "codec": "auto"}),
    }
    done = server.finish(server.start(nodes))
    assert done["status"]["status_str"] == "success", json.dumps(done["status"])[:2000]
    assert done["outputs"]["save"]["images"]


@needs_comfyui
def test_a_mask_is_taken(server):
    nodes = graph()
    nodes["mask"] = ("SolidMask", {"value": 0.0, "width": 28, "height": 20})
    nodes["up"][1]["mask"] = ["mask", 0]
    (image,) = server.images(nodes)
    assert image.size == (112, 80)
    assert np.abs(np.asarray(image) - expected(ROOT / "weights" / "x4-tiny.safetensors", server.base / "input" / "image.png")).max() > 10


@needs_comfyui
def test_a_size_of_nothing_is_refused_before_anything_runs(server):
    nodes = graph(size_by="width and height", width=0, height=0)
    answer = server.post("/prompt", {"prompt": {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}})
    errors = answer["node_errors"]["up"]["errors"]  # the host says it once for every input that was looked at
    assert ["both 0" in error["details"] for error in errors] == [True] * len(errors) != []


@needs_comfyui
def test_blueprints_are_served_where_the_host_has_them(server):
    try:
        served = server.json("/global_subgraphs")
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI has no blueprints")
    ours = {entry["name"] for entry in served.values() if entry["info"]["node_pack"].endswith(FOLDER)}
    assert ours == {path.stem for path in (ROOT / "subgraphs").glob("*.json")}


@needs_comfyui
def test_a_model_that_is_not_there_is_refused_before_anything_runs(server):
    answer = server.post(
        "/prompt", {"prompt": {name: {"class_type": k, "inputs": i} for name, (k, i) in graph(model_name="gone.pth").items()}}
    )
    (error,) = answer["node_errors"]["up"]["errors"]
    assert "gone.pth: no TransformerSR model of this name; there are x4-tiny" in error["details"]


@needs_comfyui
def test_a_damaged_model_is_named_in_one_sentence(server):
    done = server.finish(server.start(graph(model_name="transformersr-damaged.pt")))
    (error,) = [content for kind, content in done["status"]["messages"] if kind == "execution_error"]
    assert error["node_id"] == "up"
    assert re.search(
        r"transformersr-damaged.pt: the file is cut short or damaged.*; download or copy it again\n$", error["exception_message"]
    )


@needs_comfyui
def test_a_budget_that_is_too_small_is_called_by_the_name_in_the_node(server):
    done = server.finish(server.start(graph("large.png", memory_gb=0.01)))
    (error,) = [content for kind, content in done["status"]["messages"] if kind == "execution_error"]
    english = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert f"The budget is {english[UPSCALE]['inputs']['memory_gb']['name']} in this node" in error["exception_message"]


@needs_comfyui
def test_cancel_ends_an_image_in_its_middle(server):
    server.images(graph())  # loaded
    prompt = server.start(graph("large.png", size_by="factor", factor=16.0, memory_gb=0.2))
    time.sleep(2)
    begun = time.monotonic()
    server.post("/interrupt", {})
    done = server.finish(prompt, 60)
    assert done["status"]["messages"][-1][0] == "execution_interrupted"
    assert time.monotonic() - begun < 30
    assert server.images(graph())[0].size == (112, 80)


CANCEL = """
import importlib.util, os, sys
sys.path.insert(0, os.getcwd())
pack, sys.argv = sys.argv[1], ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management as management, comfy.utils, folder_paths, torch
spec = importlib.util.spec_from_file_location(pack.replace(".", "_x_"), pack + "/__init__.py")
package = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
assert "spandrel" not in sys.modules, "importing the nodes is slow"
node = package.NODE_CLASS_MAPPINGS["TransformerSRUpscale"]()
model = node._upscaler("x4-tiny", sys.modules[type(node).__module__].Settings()).model
bands = []
def hook(value, total, preview, node_id=None):
    bands.append(value)
    if len(bands) == 3:
        management.interrupt_current_processing(True)
comfy.utils.set_progress_bar_global_hook(hook)
try:
    node.upscale(torch.rand(2, 200, 200, 3), "x4-tiny", memory_gb=0.05)
except management.InterruptProcessingException:
    print("steps after Cancel:", len(bands) - 3)
comfy.utils.set_progress_bar_global_hook(None)
print("managed:", [loaded.model.model is model for loaded in management.current_loaded_models])
management.unload_all_models()
print("left:", len(management.current_loaded_models), node.upscale(torch.rand(1, 8, 8, 1), "x4-tiny")["result"][0].shape)
"""


@needs_comfyui
def test_cancel_takes_effect_within_a_band_and_the_host_keeps_charge_of_the_weights(base, tmp_path):
    pack = tmp_path / "custom nodes" / "Transformer-SR v0.2 (2)"
    shutil.copytree(base / "custom_nodes" / FOLDER, pack)
    done = subprocess.run(
        [PYTHON, "-c", CANCEL, str(pack)],
        capture_output=True,
        text=True,
        cwd=COMFYUI,
        env=os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["steps after Cancel: 0", "managed: [True]", "left: 0 torch.Size([1, 32, 32, 1])"]
