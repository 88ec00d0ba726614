"""The command line: results, overwriting, resuming, messages, and the training commands."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from transformersr.training.cli import SECTIONS
from transformersr.training.config import TrainConfig

from command_line import list_files, run


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for index, name in enumerate(["a.png", "b.jpg", "deep/c.webp"]):
        Image.new("RGB", (9 + index, 8), (200, 90, 30)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def test_result_is_written_next_to_the_input_with_its_metadata(tmp_path, model):
    info = PngInfo()
    info.add_text("parameters", "masterpiece, 1girl\nSteps: 20")
    Image.new("RGB", (9, 8), (10, 200, 30)).save(tmp_path / "girl.png", pnginfo=info)
    before = (tmp_path / "girl.png").read_bytes()
    result = run("upscale", tmp_path / "girl.png", "-m", model, "--device", "cpu")
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "girl_x2.png")
    with Image.open(tmp_path / "girl_x2.png") as image:
        assert image.size == (18, 16)
        assert image.text["parameters"].startswith("masterpiece")
    assert (tmp_path / "girl.png").read_bytes() == before


def test_format_that_contradicts_the_result_name_is_rejected(folder, model, tmp_path):
    result = run("upscale", folder / "a.png", "-m", model, "-o", tmp_path / "large.webp", "--format", "jpg")
    assert result.exit_code == 2
    assert "large.webp and --format jpg contradict each other" in result.stderr
    for name, format in (("large.jpeg", "jpg"), ("large.webp", "webp")):
        assert run("upscale", folder / "a.png", "-m", model, "-o", tmp_path / name, "--format", format).exit_code == 0


def test_folder_structure_is_kept(folder, model):
    assert run("upscale", folder, "-m", model).exit_code == 0
    assert list_files(folder.parent / "in_x2") == ["a.png", "b.png", "deep/c.png"]
    assert run("upscale", folder, "-m", model, "-o", folder / "large", "--format", "jpg", "--scale", "1.5").exit_code == 0
    assert list_files(folder / "large") == ["a.jpg", "b.jpg", "deep/c.jpg"]
    assert run("upscale", folder, "-m", model, "-o", folder / "large", "--format", "jpg", "--resume").exit_code == 0
    assert list_files(folder / "large") == ["a.jpg", "b.jpg", "deep/c.jpg"]  # its earlier results were not used as inputs


def test_glob_patterns_and_exact_sizes_work(folder, model, tmp_path):
    assert run("upscale", folder / "*.png", "-m", model, "--size", "30x20", "-o", tmp_path / "x.webp").exit_code == 0
    with Image.open(tmp_path / "x.webp") as image:
        assert image.size == (30, 20)


def test_bad_files_are_counted_and_the_rest_is_upscaled(folder, model):
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:50])
    (folder / "not.png").write_text("hello")
    result = run("upscale", folder, "-m", model)
    assert result.exit_code == 1
    assert "3 of 5 images done" in result.stdout
    assert list_files(folder.parent / "in_x2") == ["a.png", "b.png", "deep/c.png"]


def test_existing_files_are_only_overwritten_with_overwrite(folder, model):
    target = folder / "a_x2.png"
    target.write_text("precious")
    result = run("upscale", folder / "a.png", "-m", model)
    assert result.exit_code == 1
    assert target.read_text() == "precious"
    assert run("upscale", folder / "a.png", "-m", model, "--resume").exit_code == 0
    assert target.read_text() == "precious"
    assert run("upscale", folder / "a.png", "-m", model, "--overwrite").exit_code == 0
    assert Image.open(target).size == (18, 16)


def test_inputs_are_never_overwritten(folder, model):
    result = run("upscale", folder, "-o", folder, "-m", model, "--overwrite")
    assert result.exit_code == 1
    assert "would be overwritten" in result.output
    assert Image.open(folder / "a.png").size == (9, 8)


def test_output_names_do_not_depend_on_other_inputs(folder, model):
    assert run("upscale", folder, "-m", model).exit_code == 0
    before = (folder.parent / "in_x2" / "a.png").read_bytes()
    Image.new("RGB", (5, 5)).save(folder / "a.jpg")
    Image.new("RGB", (5, 5)).save(folder / "d.jpg")
    result = run("upscale", folder, "-m", model, "--resume")
    assert result.exit_code == 1
    assert "3 of 5 images done" in result.stdout
    assert list_files(folder.parent / "in_x2") == ["a.png", "b.png", "d.png", "deep/c.png"]
    assert (folder.parent / "in_x2" / "a.png").read_bytes() == before


def test_inputs_with_the_same_output_name_are_reported(folder, model, caplog):
    Image.new("RGB", (5, 5)).save(folder / "a.jpg")
    assert run("upscale", folder, "-m", model).exit_code == 1
    lines = [line for line in caplog.text.splitlines() if "would become" in line]
    assert len(lines) == 2
    assert all("a.png" in line and "a.jpg" in line and "rename one" in line for line in lines)


def test_unwritable_output_is_detected_before_upscaling(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr("transformersr.upscale.batch.open_file", lambda path: pytest.fail("an image was read"))
    (tmp_path / "file").touch()
    result = run("upscale", folder, "-m", model, "-o", tmp_path / "file" / "below")
    assert result.exit_code == 1
    assert "cannot write results there" in result.output
    assert "choose another folder" in result.output


def test_video_without_pyav_or_with_image_output_is_rejected_with_advice(folder, model, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "av", None)
    (folder / "video.mp4").touch()
    assert run("upscale", folder / "video.mp4", "-m", model).exit_code == 1
    assert "pip install" in caplog.text
    assert run("upscale", folder, "-m", model).exit_code == 0  # videos below a folder are left alone
    result = run("upscale", folder / "video.mp4", "-m", model, "-o", folder / "video.png")
    assert result.exit_code == 1
    assert ".mkv" in result.output


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM handling")
def test_sigterm_leaves_no_partial_file(folder, model, monkeypatch):
    monkeypatch.setattr("transformersr.upscale.image_io.to_image", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert run("upscale", folder, "-m", model).exit_code == 128 + signal.SIGTERM
    assert list_files(folder.parent / "in_x2") == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_16_bit_input_gives_16_bit_output(tmp_path, model):
    array = np.linspace(20000, 21000, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(array).save(tmp_path / "deep.png")
    assert run("upscale", tmp_path / "deep.png", "-m", model).exit_code == 0
    result = np.asarray(Image.open(tmp_path / "deep_x2.png"))
    assert result.dtype == np.uint16 or result.max() > 255
    assert len(np.unique(result)) > 256


def test_convert_writes_fp16_and_info_prints_it(tmp_path, model):
    assert run("convert", model, tmp_path / "half.safetensors", "--dtype", "fp16").exit_code == 0
    result = run("info", tmp_path / "half.safetensors")
    assert "float16" in result.stdout
    assert run("convert", model, tmp_path / "half.safetensors").exit_code != 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("upscale", "nothing.png"), "no such file"),
        (("upscale", ".", "-m", "nothing"), "no such model"),
        (("upscale", ".", "--memory", "much"), "such as 2G"),
        (("upscale", ".", "--device", "gpu"), "expected auto, cpu, cuda"),
        (("upscale", ".", "--dtype", "int8"), "'fp16'"),
        (("upscale", ""), "an input is empty"),
        (("upscale", ".", "-m", "."), "this is a folder"),
        (("train", ".", "--out", "run", "--preset", "photo"), "'author', 'clean'"),
        ((".",), "transformersr upscale ."),
        (("upscale", ".", "--size", "12"), "3840x2160"),
        (("upscale", ".", "--size", "0x12"), "3840x2160"),
        (("upscale", ".", "--scale", "nan"), "above 0"),
        (("upscale", ".", "--scale", "0"), "above 0"),
        (("upscale", ".", "--scale=-1"), "above 0"),
        (("upscale", ".", "--scale", "inf"), "below 1000"),
        (("upscale", ".", "--size", "4x4", "--scale", "2"), "one of them"),
        (("info", "nothing"), "nothing"),
    ],
)
def test_usage_errors_print_one_clear_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert "Traceback" not in result.output


def test_module_runs_the_cli_and_package_import_skips_torch():
    help_text = subprocess.run([sys.executable, "-m", "transformersr", "--help"], capture_output=True, text=True, check=True).stdout
    assert "upscale" in help_text
    code = "import sys, transformersr; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_check_lists_files_that_training_would_skip_or_change(folder):
    noise = Image.effect_noise((300, 300), 80).convert("RGB")
    noise.save(folder / "fine.png")
    noise.resize((280, 280)).save(folder / "duplicate.png")
    noise.convert("RGBA").save(folder / "clear.png")
    noise.rotate(90).save(folder / "held.png")
    (folder / "virus.png").write_bytes(b"MZ" + bytes(1000))
    result = run("check", folder, "--patch", 48, "--scale", 4, "--validation", "held.png")
    lines = {line.split(": ")[1].rsplit("/", 1)[-1]: line for line in result.stdout.splitlines() if ": " in line}
    assert "4 images can be used" in result.stdout
    assert "not an image" in lines["virus.png"]
    assert "smaller than a crop" in lines["a.png"]
    assert "looks the same" in lines["duplicate.png"]
    assert "transparent" in result.stdout


def test_preview_writes_a_sheet_of_crops(tmp_path):
    for index in range(2):
        Image.effect_noise((100, 100), 80).convert("RGB").save(tmp_path / f"{index}.png")
    options = ["--size", "tiny", "--scale", "2", "--patch", "16", "--validation", "0.png"]
    assert run("preview", tmp_path, "--out", tmp_path / "sheet.png", *options).exit_code == 0
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 1000
        assert image.height > 2000


def test_draw_adds_to_existing_images(tmp_path):
    assert run("draw", tmp_path / "synthetic", "--count", "1", "--size", "96").exit_code == 0
    first = (tmp_path / "synthetic" / "synthetic-0-00000.png").read_bytes()
    assert run("draw", tmp_path / "synthetic", "--count", "2", "--size", "96").exit_code == 0
    assert list_files(tmp_path / "synthetic") == ["synthetic-0-00000.png", "synthetic-0-00001.png"]
    assert (tmp_path / "synthetic" / "synthetic-0-00000.png").read_bytes() == first


def test_resume_with_a_pattern_ignores_earlier_results(folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    assert run("upscale", "*.png", "-m", model).exit_code == 0
    assert run("upscale", "*.png", "-m", model, "--resume").exit_code == 0
    assert list_files(folder) == ["a.png", "a_x2.png", "b.jpg", "deep/c.webp"]


def test_resume_counts_the_images_that_were_already_done(folder, model):
    assert run("upscale", folder / "a.png", "-o", folder.parent / "large", "-m", model).exit_code == 0
    result = run("upscale", folder, "-o", folder.parent / "large", "-m", model, "--resume")
    assert result.stdout == "3 of 3 images done, 1 of them before this run\n"


def test_current_folder_and_repeated_inputs_work(folder, model, monkeypatch):
    monkeypatch.chdir(folder / "deep")
    assert run("upscale", ".", "-m", model).exit_code == 0
    assert list_files(folder / "deep_x2") == ["c.png"]
    assert run("upscale", "c.webp", "c.webp", "-m", model).exit_code == 0
    assert list_files(folder / "deep") == ["c.webp", "c_x2.png"]


def test_resumed_training_uses_its_saved_settings(tmp_path):
    for index in range(3):
        Image.effect_noise((100, 100), 80).convert("RGB").save(tmp_path / f"{index}.png")
    options = ["--size", "tiny", "--init", "none", "--scale", "2", "--patch", "8", "--batch", "1", "--steps", "2"]
    options += ["--validation", "0.png", "--validation-crop", "64"]
    assert run("train", tmp_path, "--out", tmp_path / "run", *options).exit_code == 0
    assert run("train", "--resume", tmp_path / "run", "--steps", "3").exit_code == 0
    assert (tmp_path / "run" / "strips" / "0000003.png").exists()


def test_training_help_lists_every_setting_once_in_sections():
    lines = run("train", "--help").stdout.splitlines()
    for field in dataclasses.fields(TrainConfig):
        assert sum(re.match(rf"  --{field.name.replace('_', '-')}\b(?!-)", line) is not None for line in lines) == 1
    assert all(f"{title}:" in lines for title in ["Options", *SECTIONS.values()])
