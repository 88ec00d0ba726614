"""Names, folders and streams as people and shells use them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image, features

from transformersr.arch import save_model
from transformersr.upscale.cli import main
from transformersr.upscale.files import expand, search

from random_models import V2, random_model
from synthetic_images import synthetic_image

linux = pytest.mark.skipif(sys.platform != "linux", reason="signals and names as on Linux")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(random_model(V2), path)
    return str(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image(path, size=(9, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 90, 30)).save(path)
    return path


def run(*arguments, **options):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False, **options)


def program(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "transformersr", *map(str, arguments)], capture_output=True, timeout=120, **options)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Nothing is left out in silence


SUFFIXES = ["jfif", "jpe", "tga", "ppm", "pgm", "qoi", "apng", "pcx", "ico", "sgi", "im", "dds", "tif", "bmp", "gif", "webp"]


@pytest.mark.parametrize(
    "suffix", [*SUFFIXES, *(["jp2"] if features.check("jpg_2000") else []), *(["avif"] if features.check("avif") else [])]
)
def test_a_folder_is_searched_for_all_that_pillow_reads(here, model, suffix):
    Image.init()
    if f".{suffix}" not in Image.EXTENSION or Image.EXTENSION[f".{suffix}"] not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    image(here / "in" / f"a.{suffix}", (16, 16))
    result = run("upscale", "in", "-m", model, "-o", "out")
    assert (result.exit_code, names(here / "out")) == (0, ["a.png"]), result.output


def test_images_that_nothing_reads_are_named_with_what_to_do(here, model, caplog):
    image(here / "in" / "a.png")
    for name in ("b.heic", "c.jxl", "d.CR2"):
        (here / "in" / name).write_bytes(bytes(100))
    (here / "in" / "e.png").symlink_to(here / "nothing.png")
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
def test_an_image_that_is_another_thing_is_called_so(here, model, caplog, content, kind):
    (here / "a.jpg").write_bytes(content)
    assert run("upscale", "a.jpg", "-m", model).exit_code == 1
    assert f"a.jpg: this is {kind}" in caplog.text


def test_files_that_are_passed_over_are_counted(here, model, caplog):
    image(here / "in" / "a.png")
    image(here / "in" / ".hidden.png")
    for name in ("b.mp4", "c.MKV", "d.blend", "notes.txt"):
        (here / "in" / name).write_bytes(b"x")
    result = run("upscale", "in", "-m", model, "-o", "out")
    assert result.exit_code == 0  # nothing that was asked for is missing
    assert "2 videos skipped; name a video explicitly" in caplog.text
    assert "1 file skipped without an image suffix (.blend)" in caplog.text
    assert "1 hidden image skipped" in caplog.text


# Links


@pytest.fixture
def linked(here):
    image(here / "data" / "own.png")
    image(here / "store" / "deep" / "far.png")
    (here / "data" / "more").symlink_to(here / "store")
    return here / "data"


def test_a_linked_folder_is_entered_once(linked, model):
    (linked / "again").symlink_to(linked.parent / "store")
    (linked / "part").symlink_to(linked.parent / "store" / "deep")
    found = search(linked)
    assert sorted(path.name for path in found.images) == ["far.png", "own.png"]
    assert found.repeated_links
    assert run("upscale", linked, "-m", model, "-o", "out").exit_code == 0
    assert len(names(linked.parent / "out")) == 2


@pytest.mark.parametrize("target", ["data", ".", "data/sub"])
def test_circles_end(linked, target):
    (linked / "sub").mkdir()
    (linked / "sub" / "loop").symlink_to(linked.parent / target)
    (linked.parent / "store" / "back").symlink_to(linked)
    found = search(linked)
    assert sorted(path.name for path in found.images) == ["far.png", "own.png"]
    assert linked / "sub" / "loop" in found.repeated_links


def test_training_and_check_see_linked_folders(linked):
    from transformersr.training.data.folders import find_images

    assert [path.name for path in find_images(linked)] == ["far.png", "own.png"]
    for seed, path in enumerate(find_images(linked)):
        synthetic_image(seed, 64).save(path)  # two that do not look alike
    assert "2 images can be used" in run("check", linked, "--size", "tiny", "--scale", "2", "--patch", "8").output


# Names


@pytest.mark.parametrize("folder", ["[2024] set", "a [b] c/[x]", "star*", "what?"])
def test_brackets_in_a_folders_name_are_no_pattern(here, model, folder):
    for name in "ab":
        image(here / folder / f"{name}.png")
    assert run("upscale", f"{folder}/*.png", "-m", model, "-o", "out").exit_code == 0
    assert names(here / "out") == ["a.png", "b.png"]


def test_patterns_of_files_still_work(here):
    for name in ("[x] 1.png", "[x] 2.png", "x1.png", "y.jpg"):
        image(here / name)
    assert [path.name for path in expand("[x] *.png")] == ["[x] 1.png", "[x] 2.png"]
    assert [path.name for path in expand("[xy]*")] == ["x1.png", "y.jpg"]
    assert [path.name for path in expand("[x] 1.png")] == ["[x] 1.png"]


@pytest.mark.parametrize("name", ["-x.png", "--help.png", "%03d.png", "a:b.png", "~a.png", "$HOME.png", "#a.png", "a b.png"])
def test_a_files_name_is_taken_for_a_name(here, model, name):
    image(here / name)
    assert run("upscale", name, "-m", model, "-o", "out").exit_code == 0
    assert names(here / "out") == [name]


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
def test_a_files_name_for_a_folder_is_refused(here, model, inputs, output, words):
    for name in ("a.png", "b.png", "in/c.png"):
        image(here / name)
    before = names(here)
    result = run("upscale", *inputs, "-m", model, "-o", output)
    assert result.exit_code == 1
    assert words in result.output
    assert names(here) == before
    assert not (here / output).exists()


def test_a_still_as_a_gif_is_refused(here, model, caplog):
    image(here / "a.png")
    assert run("upscale", "a.png", "-m", model, "-o", "out.gif").exit_code == 1
    assert "only written for animated images; expected png" in caplog.text
    assert not (here / "out.gif").exists()


def test_a_folder_may_be_called_like_a_file(here, model):
    image(here / "a.png")
    assert run("upscale", "a.png", "-m", model, "-o", "set.png/").exit_code == 0
    assert names(here / "set.png") == ["a.png"]
    assert run("upscale", "a.png", "-m", model, "-o", "set.png", "--resume").exit_code == 0


# Shells


@linux
def test_a_name_that_the_output_cannot_say_is_escaped(here, model):
    os.mkdir("猫")
    image(here / "猫" / os.fsdecode(b"\xff.png"))
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    (path,) = (here / "猫").iterdir()
    done = program("upscale", path, "-m", model, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(names(here / "猫")) == 2
    assert rb"\udcff_x2.png" in done.stdout
    checked = program("check", "猫", env=environment)
    assert b"Traceback" not in checked.stderr


@linux
def test_a_closed_pipe_is_no_error(here, model):
    image(here / "a.png")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "transformersr", "upscale", "a.png", "-m", model], stdout=closed, stderr=subprocess.PIPE, timeout=120
        )
    assert done.stderr == b""
    assert done.returncode == 0
    assert (here / "a_x2.png").exists()


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_ends_the_program_as_shells_expect(here, model, number, code):
    """A loop of the shell ends if the command ended by SIGINT, and goes on if it made an exit code of it."""
    Image.effect_noise((1500, 1500), 60).convert("RGB").save("a.png")
    process = subprocess.Popen(
        [sys.executable, "-c", WHEN_AT_WORK, "upscale", "a.png", "-m", model, "-o", "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"at work\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert names(here / "out") == []


WHEN_AT_WORK = """
from transformersr.upscale import batch, cli
read = batch.read_image_from
def reading(*args):
    print("at work", flush=True)
    return read(*args)
batch.read_image_from = reading
cli.main()
"""


def test_missing_arguments_and_unknown_options_are_usage_errors(here):
    for arguments in (["upscale"], ["upscale", "a.png", "--nonsense"], ["nonsense"], ["upscale", "a.png", "--format", "tiff"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Error: " in result.output


# Standard input and output


def png(size=(9, 8), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 90, 30)).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("format", "expected"), [("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG")])
def test_an_image_goes_from_standard_input_to_standard_output(here, model, format, expected):
    done = run("upscale", "-", "-o", "-", "-m", model, "--format", format, input=png())
    assert (done.exit_code, done.stderr_bytes) == (0, b"")
    with Image.open(io.BytesIO(done.stdout_bytes)) as result:
        result.load()
        assert (result.format, result.size) == (expected, (18, 16))
    assert names(here) == []


def test_either_may_be_a_file(here, model):
    image(here / "a.png")
    assert Image.open(io.BytesIO(program("upscale", "a.png", "-o", "-", "-m", model).stdout)).size == (18, 16)
    assert Image.open(io.BytesIO(run("upscale", "-", "-m", model, input=png()).stdout_bytes)).size == (18, 16)
    done = run("upscale", "-", "-o", "b.webp", "-m", model, input=png())
    assert (done.exit_code, done.stdout) == (0, "b.webp\n")
    assert Image.open("b.webp").format == "WEBP"


@pytest.mark.parametrize(
    ("arguments", "content", "words"),
    [
        (["-", "-o", "-"], b"no image", "<standard input>: not an image"),
        (["-", "-o", "-"], b"", "<standard input>: the file is empty"),
        (["-", "-o", "-"], png()[:45], "<standard input>: the image is truncated"),
        (["-", "a.png", "-o", "-"], png(), "give a single image"),
        (["in", "-o", "-"], b"", "give a single image"),
        (["-", "-o", "folder/"], png(), "expected a file name or -"),
    ],
    ids=["no image", "nothing", "half an image", "two inputs", "a folder", "into a folder"],
)
def test_mistakes_with_standard_streams_write_nothing(here, model, caplog, arguments, content, words):
    image(here / "a.png")
    image(here / "in" / "b.png")
    done = run("upscale", *arguments, "-m", model, input=content)
    assert (done.exit_code, done.stdout_bytes) == (1, b"")
    assert words in done.stderr + caplog.text
    assert len(names(here)) == 2
