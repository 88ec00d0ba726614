"""The command line in a shell: pipes, signals, exit codes, standard input and output."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from command_line import list_files, run, run_process
from image_files import save_image

PROGRAM = Path(__file__).parent / "programs" / "upscale_and_announce.py"

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs signals and file names as on Linux")


# --- shells --------------------------------------------------------------------------------------


@linux
def test_unencodable_file_names_are_escaped(cwd, model):
    os.mkdir("猫")
    save_image(cwd / "猫" / os.fsdecode(b"\xff.png"))
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    (path,) = (cwd / "猫").iterdir()
    done = run_process("upscale", path, "-m", model, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(list_files(cwd / "猫")) == 2
    assert rb"\udcff_x2.png" in done.stdout
    checked = run_process("check", "猫", env=environment)
    assert b"Traceback" not in checked.stderr


@linux
def test_closed_pipe_is_not_an_error(cwd, model):
    save_image(cwd / "a.png")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "transformersr", "upscale", "a.png", "-m", model], stdout=closed, stderr=subprocess.PIPE, timeout=120
        )
    assert done.stderr == b""
    assert done.returncode == 0
    assert (cwd / "a_x2.png").exists()


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_signals_give_the_exit_codes_shells_expect(cwd, model, number, code):
    """A shell loop stops if its command died of SIGINT, and continues if the command exited with a code."""
    Image.effect_noise((1500, 1500), 60).convert("RGB").save("a.png")
    process = subprocess.Popen(
        [sys.executable, PROGRAM, "upscale", "a.png", "-m", model, "-o", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # scripts start background commands with SIGINT ignored
    )
    assert process.stdout.readline() == b"reading\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert list_files(cwd / "out") == []


def test_missing_arguments_and_unknown_options_exit_with_2(cwd):
    for arguments in (["upscale"], ["upscale", "a.png", "--nonsense"], ["nonsense"], ["upscale", "a.png", "--format", "tiff"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Error: " in result.output


# --- standard input and output -------------------------------------------------------------------


def png(size=(9, 8), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 90, 30)).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("format", "expected"), [("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG")])
def test_image_goes_from_stdin_to_stdout(cwd, model, format, expected):
    done = run("upscale", "-", "-o", "-", "-m", model, "--format", format, input=png())
    assert (done.exit_code, done.stderr_bytes) == (0, b"")
    with Image.open(io.BytesIO(done.stdout_bytes)) as result:
        result.load()
        assert (result.format, result.size) == (expected, (18, 16))
    assert list_files(cwd) == []


def test_stdin_or_stdout_may_be_replaced_by_a_file(cwd, model):
    save_image(cwd / "a.png")
    assert Image.open(io.BytesIO(run_process("upscale", "a.png", "-o", "-", "-m", model).stdout)).size == (18, 16)
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
    ids=["not an image", "empty", "truncated", "two inputs", "a folder", "into a folder"],
)
def test_invalid_stream_use_writes_nothing(cwd, model, caplog, arguments, content, words):
    save_image(cwd / "a.png")
    save_image(cwd / "in" / "b.png")
    done = run("upscale", *arguments, "-m", model, input=content)
    assert (done.exit_code, done.stdout_bytes) == (1, b"")
    assert words in done.stderr + caplog.text
    assert len(list_files(cwd)) == 2
