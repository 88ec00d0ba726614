"""docs/api.md: its examples run and it covers every option."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from transformersr.upscale.cli import upscale

from command_line import run
from synthetic_images import synthetic_image

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
RESULT = re.compile(r"# (\w+\.\w+) next to it")
"""The comment on a command that names the file it writes."""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("transformersr")]  # commands with several processes are tested in test_processes.py


@pytest.fixture
def workspace(cwd):
    """A working directory with the page's image and folder of images."""
    (cwd / "images").mkdir()
    for path in ("image.png", "images/a.png", "images/b.png"):
        synthetic_image(0, 24).save(cwd / path)
    return cwd


def pipeline(prompt, output_type="pil"):
    """Stand in for a diffusers pipeline, with its three output types."""
    image = synthetic_image(0, 16)
    array = np.stack([np.asarray(image, np.float32) / 255] * 2)
    images = {"pil": [image], "np": array, "pt": torch.from_numpy(array).permute(0, 3, 1, 2)}
    return SimpleNamespace(images=images[output_type])


def test_python_examples_run_in_order(workspace):
    names = {"pipeline": pipeline, "prompt": "1girl"}
    for block in blocks("python"):
        exec(compile(block, "docs/api.md", "exec"), names)
    assert names["large"].shape == (2, 3, 32, 32)
    assert (workspace / "large.png").exists()


@pytest.mark.parametrize("command", commands())
def test_commands_run(workspace, command):
    words = shlex.split(command, comments=True)
    videos = [word for word in words if word.startswith("video.")]
    if videos:
        pytest.importorskip("av")
        from video_files import make_video

        make_video(workspace / videos[0])
    result = run(*words[1:])
    assert result.exit_code == 0, result.output
    if written := RESULT.search(command):
        assert (workspace / written[1]).exists()


def test_results_are_named_in_comments():
    assert any(map(RESULT.search, commands()))


def test_every_upscale_option_is_documented():
    options = [name for parameter in upscale.params for name in parameter.opts if name.startswith("--")]
    assert [name for name in options if name not in PAGE] == []
