"""The command line and the file system: which files are found, how they are named, where results go."""

from __future__ import annotations

import pytest
from PIL import Image, features

from transformersr.upscale.files import expand, search

from command_line import list_files, run
from image_files import save_image
from synthetic_images import synthetic_image

# --- which files are found -------------------------------------------------------------------------


SUFFIXES = ["jfif", "jpe", "tga", "ppm", "pgm", "qoi", "apng", "pcx", "ico", "sgi", "im", "dds", "tif", "bmp", "gif", "webp"]


@pytest.mark.parametrize(
    "suffix", [*SUFFIXES, *(["jp2"] if features.check("jpg_2000") else []), *(["avif"] if features.check("avif") else [])]
)
def test_folder_search_finds_every_format_pillow_reads(cwd, model, suffix):
    Image.init()
    if f".{suffix}" not in Image.EXTENSION or Image.EXTENSION[f".{suffix}"] not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    save_image(cwd / "in" / f"a.{suffix}", (16, 16))
    result = run("upscale", "in", "-m", model, "-o", "out")
    assert (result.exit_code, list_files(cwd / "out")) == (0, ["a.png"]), result.output


def test_unsupported_images_are_named_with_advice(cwd, model, caplog):
    save_image(cwd / "in" / "a.png")
    for name in ("b.heic", "c.jxl", "d.CR2"):
        (cwd / "in" / name).write_bytes(bytes(100))
    (cwd / "in" / "e.png").symlink_to(cwd / "nothing.png")
    result = run("upscale", "in", "-m", model, "-o", "out")
    assert result.exit_code == 1
    assert "1 of 5 images done" in result.stdout
    for words in (
        "b.heic: this is HEIC",
        "c.jxl: this is JPEG XL",
        "d.CR2: this is a camera's raw format",
        "e.png: a link to a file that does not exist",
    ):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"\0\0\0\x18ftypheic", "HEIC"), (b"\xff\x0a" + bytes(20), "JPEG XL"), (b"<!DOCTYPE html>", "a web page"), (b"%PDF-1.4", "PDF")],
)
def test_wrong_content_is_identified_in_the_message(cwd, model, caplog, content, kind):
    (cwd / "a.jpg").write_bytes(content)
    assert run("upscale", "a.jpg", "-m", model).exit_code == 1
    assert f"a.jpg: this is {kind}" in caplog.text


def test_skipped_files_are_counted(cwd, model, caplog):
    save_image(cwd / "in" / "a.png")
    save_image(cwd / "in" / ".hidden.png")
    for name in ("b.mp4", "c.MKV", "d.blend", "notes.txt"):
        (cwd / "in" / name).write_bytes(b"x")
    result = run("upscale", "in", "-m", model, "-o", "out")
    assert result.exit_code == 0  # skipped files are not errors
    assert "2 videos skipped; name a video explicitly" in caplog.text
    assert "1 file skipped without an image suffix (.blend)" in caplog.text
    assert "1 hidden image skipped" in caplog.text


# --- links ---------------------------------------------------------------------------------------


@pytest.fixture
def linked(cwd):
    save_image(cwd / "data" / "own.png")
    save_image(cwd / "store" / "deep" / "far.png")
    (cwd / "data" / "more").symlink_to(cwd / "store")
    return cwd / "data"


def test_linked_folder_is_searched_once(linked, model):
    (linked / "again").symlink_to(linked.parent / "store")
    (linked / "part").symlink_to(linked.parent / "store" / "deep")
    found = search(linked)
    assert sorted(path.name for path in found.images) == ["far.png", "own.png"]
    assert found.repeated_links
    assert run("upscale", linked, "-m", model, "-o", "out").exit_code == 0
    assert len(list_files(linked.parent / "out")) == 2


@pytest.mark.parametrize("target", ["data", ".", "data/sub"])
def test_symlink_loops_end(linked, target):
    (linked / "sub").mkdir()
    (linked / "sub" / "loop").symlink_to(linked.parent / target)
    (linked.parent / "store" / "back").symlink_to(linked)
    found = search(linked)
    assert sorted(path.name for path in found.images) == ["far.png", "own.png"]
    assert linked / "sub" / "loop" in found.repeated_links


def test_training_and_check_follow_linked_folders(linked):
    from transformersr.training.data.folders import find_images

    assert [path.name for path in find_images(linked)] == ["far.png", "own.png"]
    for seed, path in enumerate(find_images(linked)):
        synthetic_image(seed, 64).save(path)  # so that they are not duplicates
    assert "2 images can be used" in run("check", linked, "--size", "tiny", "--scale", "2", "--patch", "8").output


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["[2024] set", "a [b] c/[x]", "star*", "what?"])
def test_brackets_in_folder_names_are_not_patterns(cwd, model, folder):
    for name in "ab":
        save_image(cwd / folder / f"{name}.png")
    assert run("upscale", f"{folder}/*.png", "-m", model, "-o", "out").exit_code == 0
    assert list_files(cwd / "out") == ["a.png", "b.png"]


def test_file_patterns_and_literal_brackets_both_work(cwd):
    for name in ("[x] 1.png", "[x] 2.png", "x1.png", "y.jpg"):
        save_image(cwd / name)
    assert [path.name for path in expand("[x] *.png")] == ["[x] 1.png", "[x] 2.png"]
    assert [path.name for path in expand("[xy]*")] == ["x1.png", "y.jpg"]
    assert [path.name for path in expand("[x] 1.png")] == ["[x] 1.png"]


@pytest.mark.parametrize("name", ["-x.png", "--help.png", "%03d.png", "a:b.png", "~a.png", "$HOME.png", "#a.png", "a b.png"])
def test_special_characters_in_file_names_are_literal(cwd, model, name):
    save_image(cwd / name)
    assert run("upscale", name, "-m", model, "-o", "out").exit_code == 0
    assert list_files(cwd / "out") == [name]


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        (["a.png"], "out.heic", "cannot be written as .heic"),
        (["a.png"], "out.tga", "cannot be written as .tga"),
        (["a.png"], "out.mp4", "cannot be written as .mp4"),
        (["a.png", "b.png"], "two.png", "there are 2 inputs; give a folder"),
        (["in"], "out.webp", "the input is a folder; give a folder"),
        (["*.png"], "out.png", "there are 2 inputs; give a folder"),
    ],
)
def test_invalid_output_names_are_rejected(cwd, model, inputs, output, words):
    for name in ("a.png", "b.png", "in/c.png"):
        save_image(cwd / name)
    before = list_files(cwd)
    result = run("upscale", *inputs, "-m", model, "-o", output)
    assert result.exit_code == 1
    assert words in result.output
    assert list_files(cwd) == before
    assert not (cwd / output).exists()


def test_still_image_as_gif_is_rejected(cwd, model, caplog):
    save_image(cwd / "a.png")
    assert run("upscale", "a.png", "-m", model, "-o", "out.gif").exit_code == 1
    assert "only written for animated images; expected png" in caplog.text
    assert not (cwd / "out.gif").exists()


def test_output_folder_may_have_an_image_suffix(cwd, model):
    save_image(cwd / "a.png")
    assert run("upscale", "a.png", "-m", model, "-o", "set.png/").exit_code == 0
    assert list_files(cwd / "set.png") == ["a.png"]
    assert run("upscale", "a.png", "-m", model, "-o", "set.png", "--resume").exit_code == 0
