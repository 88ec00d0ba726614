"""spandrel and the programs that use it: only our own detector matches our files, and it matches all of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from transformersr.arch import VARIANTS, TransformerSR

from peers import declare_torchvision_operators
from plain_v1 import newer_keys, random_state
from random_models import V1, V2, random_model


@pytest.fixture(scope="module")
def registry():
    declare_torchvision_operators()
    return pytest.importorskip("spandrel", reason="spandrel is not installed").MAIN_REGISTRY


CONFIGS = [V1, V2, dataclasses.replace(V2, scale=1), dataclasses.replace(VARIANTS["tiny"], scale=3)]


@pytest.mark.parametrize("config", CONFIGS, ids=["v1", "v2", "v2-x1", "tiny-x3"])
def test_no_other_detector_matches_our_keys(registry, config):
    state = TransformerSR(config).state_dict()
    matching = {entry.architecture.id for entry in registry.architectures() if entry.detect(state)}
    assert matching <= {"TransformerSR"}
    assert len(registry.architectures()) > 20  # the built-in detectors are present


@pytest.fixture
def loader(registry):
    from spandrel import ModelLoader

    from transformersr.upscale.spandrel_arch import register

    register()
    register()
    return ModelLoader()


@pytest.mark.parametrize("config", CONFIGS[:3], ids=["v1", "v2", "v2-x1"])
def test_our_models_load_and_run(loader, config):
    model, image = random_model(config), torch.rand(1, 3, 21, 13)
    loaded = loader.load_from_state_dict(model.state_dict())
    assert (loaded.architecture.id, loaded.scale, loaded.input_channels) == ("TransformerSR", config.scale, 3)
    assert (loaded(image) - model(image).clamp(0, 1)).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", [dict, newer_keys], ids=["older", "newer"])
@pytest.mark.parametrize("wrap", [False, True])
def test_both_original_layouts_match_only_our_detector(registry, loader, layout, wrap):
    state = layout(random_state(pairs=1, dim=32, scale=2))
    assert [entry.architecture.id for entry in registry.architectures() if entry.detect(state)] == ["TransformerSR"]
    loaded = loader.load_from_state_dict({"params_ema": {f"module.{name}": tensor for name, tensor in state.items()}} if wrap else state)
    assert (loaded.architecture.id, loaded.scale, loaded.model.config.num_heads) == ("TransformerSR", 2, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_float32(loader, dtype):
    model, image = random_model(V2), torch.rand(1, 3, 32, 32)
    half = loader.load_from_state_dict(model.state_dict()).to(dtype)(image.to(dtype)).float()
    assert (half - model(image).clamp(0, 1)).abs().max() < 0.05
