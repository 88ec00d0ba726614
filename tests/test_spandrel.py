"""No other network's detector takes our files for its own."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import pytest
import torch

from transformersr.arch import VARIANTS, TransformerSR

from models import V1, V2


@pytest.fixture(scope="module")
def registry():
    for operator in ("nms", "qnms"):
        with suppress(RuntimeError):  # a torchvision built for CUDA lacks these beside a CPU torch, and its import fails
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("spandrel", reason="spandrel is not installed").MAIN_REGISTRY


CONFIGS = [V1, V2, dataclasses.replace(V2, scale=1), dataclasses.replace(VARIANTS["tiny"], scale=3)]


@pytest.mark.parametrize("config", CONFIGS, ids=["v1", "v2", "v2-x1", "tiny-x3"])
def test_no_built_in_detector_matches_our_keys(registry, config):
    state = TransformerSR(config).state_dict()
    matching = [one.architecture.id for one in registry.architectures() if one.detect(state)]
    assert matching == []
    assert len(registry.architectures()) > 20  # the detectors were there to match
