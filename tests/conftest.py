"""Settings and fixtures for all tests."""

import dataclasses

import pytest
import torch

from transformersr.arch import VARIANTS
from transformersr.upscale.checkpoint import save_model
from transformersr.upscale.upscaler import Upscaler

from random_models import V2, random_model
from synthetic_images import synthetic_image

torch.set_num_threads(1)  # these networks are so small that starting threads takes longer than running them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of six small images."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(6):
        synthetic_image(index).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Path of the weights of a small x2 network."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(random_model(V2), path)
    return str(path)


@pytest.fixture(scope="module")
def upscaler():
    """A small x2 network that changes a bicubic result only slightly."""
    return Upscaler(random_model(V2, size=0.01))


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """An empty folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_network(monkeypatch):
    """The variant `tiny` becomes a network that trains within milliseconds."""
    monkeypatch.setitem(VARIANTS, "tiny", dataclasses.replace(V2, blocks="RWC"))
