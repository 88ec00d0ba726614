"""The ComfyUI nodes and the files that come with them, without ComfyUI or with a stand-in for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from transformersr.upscale.checkpoint import load_model, save_model
from transformersr.upscale.upscaler import Upscaler, available_models, load_blend

import comfyui_standin
from comfyui_pack import EXAMPLES, INPUTS, ROOT, UPSCALE, VIDEO, WIDGETS
from peers import declare_torchvision_operators
from random_models import V2, random_model
from video_files import make_video

# --- without ComfyUI -----------------------------------------------------------------------------

IMPORT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location(sys.argv[2], sys.argv[1] + "/__init__.py")
package = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
assert not hasattr(package, "NODE_CLASS_MAPPINGS"), "nodes are defined without ComfyUI"
assert "torch" not in sys.modules, "importing the package imports torch"
assert package.Upscaler.__name__ == "Upscaler"
"""


def test_import_without_comfyui_is_silent_and_defines_no_nodes():
    name = "/somewhere/custom_nodes/Transformer-SR v0_x_1 (copy)"
    done = subprocess.run([sys.executable, "-c", IMPORT, str(ROOT), name], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("language", sorted(path.name for path in (ROOT / "locales").iterdir()))
def test_every_locale_is_complete(language):
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
def test_help_pages_name_every_input(language, node):
    page = (ROOT / "web" / "docs" / node / f"{language}.md").read_text(encoding="utf-8")
    nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for entry in nodes[node]["inputs"].values():
        assert f"**{entry['name']}**" in page
    assert page.startswith(f"# {nodes[node]['display_name']}\n")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_workflows_have_thumbnails_and_all_settings(path):
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.format == "JPEG"
    (node,) = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] in (UPSCALE, VIDEO)]
    assert [entry["name"] for entry in node["inputs"]] == INPUTS[node["type"]]
    assert len(node["widgets_values"]) == len(WIDGETS[node["type"]])


@pytest.mark.parametrize("word", ["anime", "4x", "waifu2x", "video", "hires", "upscale"])
def test_template_names_contain_search_word(word):
    assert any(word in path.stem.lower() for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_workflow_links_are_consistent(path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link, origin, output, target, slot, _ in graph["links"]:
        assert link in nodes[origin]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link


def test_example_checkpoints_have_download_links():
    for path in EXAMPLES:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] == "CheckpointLoaderSimple":
                (model,) = node["properties"]["models"]
                assert model["name"] == node["widgets_values"][0]
                assert model["url"].endswith(f"/{model['name']}")


@pytest.mark.parametrize("path", sorted((ROOT / "subgraphs").glob("*.json")), ids=lambda path: path.stem)
def test_blueprints_contain_our_node_and_a_description(path):
    (graph,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    (node,) = [node for node in graph["nodes"] if node["type"] == UPSCALE]
    assert [entry["name"] for entry in node["inputs"]] == INPUTS[UPSCALE]
    assert graph["name"] == path.stem
    assert graph["description"]


def test_requirements_do_not_touch_pytorch():
    """ComfyUI-Manager and comfy-cli install from this file. Without it comfy-cli's `--fast-deps` installs PyTorch from pyproject.toml."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["einops", "safetensors"]


def test_registry_archive_has_no_code_that_its_scanner_flags():
    """The scanner holds back packs that open connections or start programs; such files of ours are excluded from the archive."""
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
def faithful_model(nodes, tmp_path) -> Path:
    """A model and its crisp version in the user's model folder."""
    save_model(random_model(V2, seed=1), tmp_path / "models" / "mine-crisp.safetensors")
    return tmp_path / "models" / "mine.safetensors"


def random_image(height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))


def test_model_patcher_is_the_class_chosen_by_the_host(nodes, monkeypatch):
    """A plain patcher among dynamic ones makes ComfyUI unload every other model."""
    assert type(nodes.make_patcher(random_model(V2))) is comfyui_standin.ModelPatcher
    host = sys.modules["comfy.model_patcher"]
    monkeypatch.setattr(host, "CoreModelPatcher", comfyui_standin.ModelPatcherDynamic, raising=False)
    assert type(nodes.make_patcher(random_model(V2))) is comfyui_standin.ModelPatcherDynamic


@pytest.mark.parametrize(("patcher", "moves"), [(comfyui_standin.ModelPatcher, 2), (comfyui_standin.ModelPatcherDynamic, 0)])
def test_parameters_are_only_moved_if_the_patcher_does_not(nodes, monkeypatch, patcher, moves):
    model = random_model(V2)
    moved = []
    monkeypatch.setattr(model, "to", moved.append)
    with nodes.on_device(patcher(model, torch.device("meta"), comfyui_standin.CPU), 0):
        pass
    assert len(moved) == moves


def test_frontend_receives_input_size_and_scale(nodes):
    done = nodes.TransformerSRUpscale().upscale(random_image(), "mine.safetensors")
    assert done["ui"] == {"transformersr": [{"width": 32, "height": 24, "scale": V2.scale}]}
    options = nodes.TransformerSRUpscale.INPUT_TYPES()["required"]["model_name"][1]
    assert options["scales"]["mine.safetensors"] == V2.scale


def test_every_shipped_model_has_a_description(nodes):
    assert nodes.PURPOSES.keys() == available_models().keys()


@pytest.mark.parametrize("node", INPUTS)
def test_inputs_keep_their_saved_order_and_the_english_tooltips(nodes, node):
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))[node]["inputs"]
    types = nodes.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    inputs = types["required"] | types.get("optional", {})
    assert list(inputs) == INPUTS[node]
    assert {name: options["tooltip"] for name, (_, options) in inputs.items()} == {name: entry["tooltip"] for name, entry in texts.items()}


def test_crispness_and_ensemble_match_the_python_api(nodes, faithful_model):
    (image,) = nodes.TransformerSRUpscale().upscale(random_image(), faithful_model.name, crispness=0.25, ensemble=True)["result"]
    api = Upscaler.from_pretrained(faithful_model, "cpu", "fp32", crispness=0.25, ensemble=True)
    assert torch.equal(image, api(random_image().movedim(-1, 1)).movedim(1, -1))


def test_model_is_reloaded_only_if_crispness_changes(nodes, faithful_model):
    node = nodes.TransformerSRUpscale()
    loaded = [
        node._upscaler(faithful_model.name, nodes.Settings(crispness=crispness, ensemble=ensemble)).model
        for crispness, ensemble in ((0, False), (0, True), (1, True))
    ]
    assert loaded[0] is loaded[1]
    assert torch.equal(loaded[2].upsample.weight, load_model(faithful_model.with_name("mine-crisp.safetensors")).upsample.weight)


def test_replaced_crisp_version_is_reloaded(nodes, faithful_model):
    changed, node = nodes.TransformerSRUpscale.IS_CHANGED, nodes.TransformerSRUpscale()
    before, model = changed(faithful_model.name, crispness=1.0), node._upscaler(faithful_model.name, nodes.Settings(crispness=1.0)).model
    save_model(random_model(V2, seed=2), faithful_model.with_name("mine-crisp.safetensors"))
    assert changed(faithful_model.name, crispness=1.0) != before
    assert node._upscaler(faithful_model.name, nodes.Settings(crispness=1.0)).model is not model


def test_pickled_models_can_be_blended(nodes, faithful_model):
    for name in ("mine", "mine-crisp"):
        torch.save(
            load_model(faithful_model.with_name(f"{name}.safetensors")).state_dict(), faithful_model.with_name(f"pickled{name[4:]}.pth")
        )
    upscale = lambda label: nodes.TransformerSRUpscale().upscale(random_image(), label, crispness=0.5)["result"][0]
    assert torch.equal(upscale("pickled.pth"), upscale(faithful_model.name))


def test_frontend_receives_the_models_with_crispness(nodes, faithful_model):
    for node in INPUTS:
        crisp = nodes.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]["model_name"][1]["crisp"]
        assert faithful_model.name in crisp
        assert "mine-crisp.safetensors" not in crisp


@pytest.mark.parametrize("node", INPUTS)
def test_invalid_crispness_is_rejected_before_execution(nodes, faithful_model, node):
    check = nodes.NODE_CLASS_MAPPINGS[node].VALIDATE_INPUTS
    assert check(model_name=faithful_model.name, crispness=1.0) is True
    assert check(model_name="mine-crisp.safetensors", crispness=0.0) is True
    assert check(model_name=None, crispness=0.5) is True  # the model name comes from another node
    assert "crispness is 1.5; expected a number from 0 to 1" in check(model_name=faithful_model.name, crispness=1.5)
    refusal = check(model_name="mine-crisp.safetensors", crispness=0.5)
    assert re.fullmatch(
        r"mine-crisp.safetensors has no crisp version, so crispness has to be 0; models with one: .*mine.safetensors", refusal
    )


def test_invalid_linked_crispness_gets_the_same_message(nodes, faithful_model):
    with pytest.raises(ValueError, match=r"no crisp version, .*; models with one: .*mine.safetensors"):
        nodes.TransformerSRUpscale().upscale(random_image(), "mine-crisp.safetensors", crispness=0.5)


def test_loader_blends_both_versions(nodes, faithful_model):
    declare_torchvision_operators()
    pytest.importorskip("spandrel")
    (descriptor,) = nodes.TransformerSRModelLoader().load(faithful_model.name, 0.5)
    assert torch.equal(descriptor.model.upsample.weight, load_blend(faithful_model, 0.5).upsample.weight)


def test_mask_blends_network_pixels_into_a_bicubic_resize(nodes):
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
        ({"model_name": "page.safetensors"}, "page.safetensors: this is a web page, not weights"),
    ],
)
def test_invalid_inputs_are_rejected_before_execution(nodes, tmp_path, inputs, words):
    (tmp_path / "models" / "page.safetensors").write_text("<!DOCTYPE html><html>")
    assert words in nodes.TransformerSRUpscale.VALIDATE_INPUTS(**inputs)


def test_valid_sizes_are_accepted(nodes):
    check = nodes.TransformerSRUpscale.VALIDATE_INPUTS
    assert check("mine.safetensors", size_by="width and height", width=0, height=300) is True
    assert check("mine.safetensors", size_by="model scale", width=0, height=0) is True
    assert check(None, size_by="width and height", width=None, height=0) is True  # the width comes from another node


def test_file_that_is_not_a_model_is_reported_once(nodes, tmp_path, caplog):
    (tmp_path / "models" / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    torch.save({"body.0.weight": torch.zeros(1)}, tmp_path / "models" / "esrgan.pth")
    for second in range(2):
        assert "pointer.pth" not in nodes._available(second)
    (record,) = caplog.records
    assert "pointer.pth is not listed as a model: this is a Git LFS pointer" in record.getMessage()


def test_errors_are_raised_as_builtin_exceptions(nodes, tmp_path):
    (tmp_path / "models" / "transformersr-damaged.pt").write_bytes(b"PK\x03\x04")
    for options in ({"model_name": "transformersr-damaged.pt"}, {"model_name": "mine.safetensors", "memory_gb": 1e-9}):
        with pytest.raises(ValueError, match=r"damaged|memory") as caught:
            nodes.TransformerSRUpscale().upscale(random_image(), **options)
        assert type(caught.value) is ValueError


@pytest.mark.parametrize(("core", "category"), [(None, "loaders"), (type("Core", (), {"CATEGORY": "model/loaders"}), "model/loaders")])
def test_loader_node_uses_the_category_of_the_core_loader(tmp_path, monkeypatch, core, category):
    nodes = comfyui_standin.install(monkeypatch, tmp_path, loader=core)
    assert category == nodes.TransformerSRModelLoader.CATEGORY


@pytest.mark.parametrize("start", [0.0, 0.2])
def test_video_node_writes_the_same_file_as_the_cli(nodes, tmp_path, start):
    from transformersr.upscale.video import upscale_video

    source, weights = make_video(tmp_path / "in.mp4", size=(32, 24), frames=5), tmp_path / "models" / "mine.safetensors"
    video = comfyui_standin.VideoFromFile(str(source), start)
    options = {"size_by": "longest side", "longest_side": 50, "quality": 90}
    (result,) = nodes.TransformerSRUpscaleVideo().upscale(video, weights.name, **options)["result"]
    upscale_video(source, tmp_path / "out.mp4", Upscaler.from_pretrained(weights, "cpu"), size=(38, 50), quality=90)
    assert Path(result.file).read_bytes() == (tmp_path / "out.mp4").read_bytes()
    assert [path.name for path in (tmp_path / "temp").iterdir()] == [Path(result.file).name]


def test_cancelled_video_leaves_no_file(nodes, tmp_path, monkeypatch):
    calls = []

    def cancelled_in_the_second_frame():
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("cancelled")

    monkeypatch.setattr(sys.modules["comfy.model_management"], "throw_exception_if_processing_interrupted", cancelled_in_the_second_frame)
    video = comfyui_standin.VideoFromFile(str(make_video(tmp_path / "in.mp4", size=(32, 24), frames=5)))
    with pytest.raises(RuntimeError, match="cancelled"):
        nodes.TransformerSRUpscaleVideo().upscale(video, "mine.safetensors")
    assert list((tmp_path / "temp").iterdir()) == []
