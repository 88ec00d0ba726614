"""Export of a run's weights: as safetensors, into a host's folder, as ONNX."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
import torch
from click.testing import CliRunner

from transformersr.arch import TransformerSRConfig
from transformersr.training.cli_results import average, export
from transformersr.training.results.average import average_weights, parse_share
from transformersr.training.results.export import export_weights, find_weights, install_weights, model_folder, model_name
from transformersr.training.results.onnx_export import export_onnx, require_onnx
from transformersr.upscale.checkpoint import load_model, read_checkpoint, save_model
from transformersr.upscale.models import list_models

from random_models import V2, random_model

SETTINGS = {"size": "tiny", "init": "/home/someone/secret/x4-tiny.safetensors", "feature_file": "C:\\me\\vgg19.pth", "preset": "clean"}


@pytest.fixture
def run(tmp_path):
    """The folder of a run with saved weights."""
    run = tmp_path / "runs" / "anime lines"
    run.mkdir(parents=True)
    record = {"training": json.dumps({"step": 500, "scores": {"psnr_y": 30.0}, "settings": SETTINGS})}
    save_model(random_model(V2), run / "best.safetensors", metadata=record)
    save_model(random_model(V2, seed=1), run / "last.safetensors")
    (run / "config.json").write_text(json.dumps(SETTINGS))
    return run


def training_record(path):
    return json.loads(read_checkpoint(path).metadata["training"])


def test_export_writes_fp16_with_its_training_record_and_prints_the_checksum(run):
    result = CliRunner().invoke(export, [str(run)], catch_exceptions=False)
    target = run / "x2-anime-lines.safetensors"
    size, error = target.stat().st_size, result.output.splitlines()[-1]
    assert result.output.startswith(f"{target}\n{size:,} bytes, sha256 {hashlib.sha256(target.read_bytes()).hexdigest()}\n")
    assert "at most" in error
    assert read_checkpoint(target).weights["conv_first.weight"].dtype == torch.float16
    assert load_model(target).config == V2
    assert training_record(target)["scores"] == {"psnr_y": 30.0}


def test_exported_files_contain_no_local_paths(run):
    exported = export_weights(run / "best.safetensors", run / "one.safetensors").path
    assert training_record(exported)["settings"] == {**SETTINGS, "init": "x4-tiny.safetensors", "feature_file": "vgg19.pth"}
    older = export_weights(run / "last.safetensors", run / "other.safetensors").path  # contains no training record
    assert training_record(older)["settings"]["preset"] == "clean"
    assert b"secret" not in older.read_bytes()


def test_fp32_export_is_exact(run):
    exported = export_weights(find_weights(run, last=True), run / "exact.safetensors", "fp32")
    assert exported.error == 0
    original = load_model(run / "last.safetensors").state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in load_model(exported.path).state_dict().items())


def test_weights_beyond_fp16_range_are_rejected_without_leftovers(run):
    model = random_model(V2)
    with torch.no_grad():
        model.conv_first.bias[0] = 70_000
    save_model(model, run / "best.safetensors")
    with pytest.raises(ValueError, match="--dtype fp32"):
        export_weights(run / "best.safetensors", run / "large.safetensors")
    assert {path.name for path in run.iterdir()} == {"best.safetensors", "last.safetensors", "config.json"}


def test_export_never_overwrites(run):
    (run / "mine.safetensors").write_bytes(b"mine")
    result = CliRunner().invoke(export, [str(run), "--out", str(run / "mine.safetensors")])
    assert isinstance(result.exception, FileExistsError)
    assert (run / "mine.safetensors").read_bytes() == b"mine"


def test_model_names_combine_scale_and_run_name(run):
    assert model_name(run / "best.safetensors") == "x2-anime-lines"
    save_model(random_model(V2), run / "webtoon_x2.safetensors")
    assert model_name(run / "webtoon_x2.safetensors") == "webtoon_x2"
    with pytest.raises(FileNotFoundError, match="saved weights"):
        find_weights(run.parent)


# --- hosts ---------------------------------------------------------------------------------------


@pytest.fixture
def hosts(tmp_path):
    """Folders laid out like ComfyUI and a WebUI."""
    for folder in ("ComfyUI/comfy", "ComfyUI/models/upscale_models", "ComfyUI/output", "webui/modules", "webui/models/ESRGAN", "Images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "webui" / "webui.py").touch()
    for folder in ("Desktop/custom_nodes", "Desktop/models", "shared/models/upscale_models", "D/ComfyUI_windows_portable/ComfyUI/comfy"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "D" / "ComfyUI_windows_portable" / "ComfyUI" / "models").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    {
        "ComfyUI": "ComfyUI/models/upscale_models",
        ".": "ComfyUI/models/upscale_models",
        "ComfyUI/models": "ComfyUI/models/upscale_models",
        "ComfyUI/models/upscale_models": "ComfyUI/models/upscale_models",
        "Desktop": "Desktop/models/upscale_models",  # contains no ComfyUI code
        "Desktop/models": "Desktop/models/upscale_models",
        "shared/models": "shared/models/upscale_models",
        "D": "D/ComfyUI_windows_portable/ComfyUI/models/upscale_models",
        "D/ComfyUI_windows_portable": "D/ComfyUI_windows_portable/ComfyUI/models/upscale_models",
        "webui": "webui/models/TransformerSR",
        "webui/models/ESRGAN": "webui/models/TransformerSR",
    }.items(),
)
def test_host_folders_are_recognised(hosts, given, expected):
    assert model_folder(hosts / given) == (hosts / expected).resolve()


@pytest.mark.parametrize("given", ["Images", "ComfyUI/output", "none"])
def test_unknown_install_folder_is_rejected(hosts, run, given):
    result = CliRunner().invoke(export, [str(run), "--install", str(hosts / given)])
    assert isinstance(result.exception, ValueError)
    assert "expected the folder of ComfyUI" in str(result.exception)


def test_installed_model_is_listed(hosts, run):
    CliRunner().invoke(export, [str(run), "--install", str(hosts / "webui")], catch_exceptions=False)
    assert "x2-anime-lines.safetensors" in list_models([hosts / "webui" / "models" / "TransformerSR"])
    assert {path.name for path in run.iterdir()} == {"best.safetensors", "last.safetensors", "config.json"}


def test_installing_keeps_other_files_and_is_idempotent(hosts, run):
    folder = hosts / "ComfyUI" / "models" / "upscale_models"
    (folder / "x2-anime-lines.safetensors").write_bytes(b"other weights")
    names = [install_weights(run / f"{one}.safetensors", folder, "x2-anime-lines").path.name for one in ("best", "best", "last", "best")]
    assert names == [f"x2-anime-lines-{number}.safetensors" for number in (2, 2, 3, 2)]
    assert (folder / "x2-anime-lines.safetensors").read_bytes() == b"other weights"
    assert len(list(folder.iterdir())) == 3


# --- ONNX ----------------------------------------------------------------------------------------


def test_onnx_export_without_its_packages_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr("transformersr.training.results.onnx_export.find_spec", lambda name: None)
    result = CliRunner().invoke(export, [str(run), "--onnx", str(run / "a.onnx")])
    assert 'pip install "transformersr[onnx]"' in str(result.exception)
    with pytest.raises(ValueError, match=r"\.onnx"):
        require_onnx(run / "a.zip")


def test_onnx_model_matches_at_every_size(tmp_path):
    """With plain and shifted windows at scale 1, where one feature covers 2x2 pixels."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="ONNX is an extra")
    import onnx

    config = TransformerSRConfig("v2", scale=1, embed_dim=8, num_heads=2, blocks="WCWC", window_size=4, mlp_ratio=2)
    checks = export_onnx(random_model(config), tmp_path / "net.onnx", {"training": "{}"})
    assert len(checks) == 3
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model)
    assert [side.dim_param for side in model.graph.input[0].type.tensor_type.shape.dim][2:] == ["height", "width"]
    assert TransformerSRConfig.from_json({one.key: one.value for one in model.metadata_props}["config"]) == config


# --- averages ------------------------------------------------------------------------------------


def test_average_is_the_weighted_mean(run):
    out = run / "mean.safetensors"
    result = CliRunner().invoke(average, [f"{run}=3", str(run / "last.safetensors"), "--out", str(out)], catch_exceptions=False)
    assert str(out) in result.output
    tensors = zip(*(load_model(path).parameters() for path in (run / "best.safetensors", run / "last.safetensors", out)), strict=True)
    assert all(torch.allclose(mean, 0.75 * best + 0.25 * last, atol=1e-6) for best, last, mean in tensors)
    networks = training_record(out)["average"]
    assert [one["file"] for one in networks] == ["anime lines/best.safetensors", "anime lines/last.safetensors"]
    assert [one["share"] for one in networks] == [0.75, 0.25]
    assert networks[1]["training"] == {"settings": {**SETTINGS, "init": "x4-tiny.safetensors", "feature_file": "vgg19.pth"}}


def test_negative_shares_subtract(run):
    best, last = run / "best.safetensors", run / "last.safetensors"
    average_weights([(best, 1), (last, 1), (best, -1)], run / "same.safetensors")
    assert [one["share"] for one in training_record(run / "same.safetensors")["average"]] == [1, 1, -1]
    pairs = zip(load_model(last).parameters(), load_model(run / "same.safetensors").parameters(), strict=True)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)


def test_a_mean_in_a_mean_counts_as_its_networks(run):
    best, last, mean = (run / f"{name}.safetensors" for name in ("best", "last", "mean"))
    average_weights([(best, 3), (last, 1)], mean)
    average_weights([(mean, 1), (last, 1)], run / "again.safetensors")
    first, again = training_record(mean)["average"], training_record(run / "again.safetensors")["average"]
    assert [(one["file"], one["share"]) for one in again] == [(first[0]["file"], 0.375), (first[1]["file"], 0.125), (first[1]["file"], 0.5)]
    assert [one["training"] for one in again[:2]] == [one["training"] for one in first]


def test_average_refuses_what_has_no_mean(run):
    best, other = run / "best.safetensors", run / "other.safetensors"
    save_model(random_model(dataclasses.replace(V2, embed_dim=2 * V2.embed_dim)), other)
    with pytest.raises(ValueError, match="not of the same network"):
        average_weights([(best, 1), (other, 1)], run / "mean.safetensors")
    with pytest.raises(ValueError, match="add up to 0"):
        average_weights([(best, 1), (best, -1)], run / "mean.safetensors")
    with pytest.raises(FileExistsError):
        average_weights([(best, 1), (best, 1)], other)
    for source in (f"{best}=half", f"{best}=nan"):
        with pytest.raises(ValueError, match=r"expected FILE or FILE=SHARE"):
            parse_share(source)
    assert not (run / "mean.safetensors").exists()
