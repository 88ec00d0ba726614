"""The network matches its definition, in one piece and in bands."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from transformersr.arch import VARIANTS, TransformerSR, TransformerSRConfig
from transformersr.arch.attention import ChannelAttention, gram_matrix, merge_windows, split_windows
from transformersr.arch.model import BicubicUpscale
from transformersr.arch.streaming import stream, total_rows
from transformersr.upscale.checkpoint import load_model

from plain_v1 import newer_keys, plain_v1, random_state
from random_models import V1, V2, random_model


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("window", [4, 8])
@pytest.mark.parametrize(("height", "width"), [(8, 24), (32, 16)])
def test_v1_matches_the_plain_definition(tmp_path, scale, window, height, width):
    state = random_state(pairs=2, dim=32, scale=scale)
    image = torch.rand(2, 3, height, width)
    expected = plain_v1(state, image, heads=4, window=window)
    assert expected.std() > 0.05  # large enough for the comparison to detect a difference
    for index, tensors in enumerate((state, newer_keys(state))):
        path = tmp_path / f"transformerSR_b2_d32_w{window}_h4_{index}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        model = load_model(path)
        with torch.inference_mode():
            assert (model(image) - expected).abs().max() < 1e-5
            assert (stream(model, image, 8) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        V1,
        V2,
        dataclasses.replace(V2, scale=1),
        dataclasses.replace(V2, scale=3, window_size=8),
        dataclasses.replace(V2, blocks="RR"),
        dataclasses.replace(V2, blocks="CWW"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("height", "width"), [(45, 37), (16, 64), (1, 1), (3, 50)])
def test_every_band_height_matches_the_full_image(config, height, width):
    model = random_model(config)
    image = torch.rand(2, 3, height, width)
    with torch.inference_mode():
        whole = model(image)
        assert whole.shape == (2, 3, height * config.scale, width * config.scale)
        for band_rows in (1, 3, 4, 7, 8, 13, 24, 40, 44, 48):
            assert (stream(model, image, band_rows) - whole).abs().max() <= 1e-5, band_rows


def test_row_callbacks_add_up_to_the_total():
    model = random_model(V2)
    image = torch.rand(1, 3, 45, 20)
    for band_rows in (4, 12, 1000):
        counts = []
        stream(model, image, band_rows, on_rows=counts.append)
        assert sum(counts) == total_rows(model, 45)


def test_gram_matrix_attention_equals_channel_attention():
    torch.manual_seed(0)
    attention = ChannelAttention(16, 2, correlation=True)
    torch.nn.init.normal_(attention.temperature)
    x = torch.randn(3, 6, 5, 16)
    result = attention.mix(x, *attention.mixing(gram_matrix(x)))
    q, k, v = attention.qkv(x.flatten(1, 2)).transpose(1, 2).unflatten(1, (3, 2, 8)).unbind(1)
    logits = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).transpose(-1, -2)
    mixed = (logits * attention.temperature[:, None, None]).softmax(-1) @ v
    expected = attention.proj(mixed.flatten(1, 2).transpose(1, 2)).unflatten(1, (6, 5))
    assert torch.allclose(result, expected, atol=1e-5)


def test_shifted_windows_use_mirrored_padding():
    x = torch.randn(2, 8, 12, 5)
    mirrored = torch.cat([x[:, :2].flip(1), x, x[:, -2:].flip(1)], 1)
    mirrored = torch.cat([mirrored[:, :, :2].flip(2), mirrored, mirrored[:, :, -2:].flip(2)], 2)
    assert torch.equal(split_windows(x, 4, 2, True, True), split_windows(mirrored, 4, 0, True, True))


@pytest.mark.parametrize(
    ("height", "offset", "top", "bottom"), [(8, 0, True, True), (8, 2, True, True), (6, 2, True, False), (8, 2, False, False)]
)
def test_merge_windows_inverts_split_windows(height, offset, top, bottom):
    x = torch.randn(2, height, 12, 5)
    windows = split_windows(x, 4, offset, top, bottom)
    assert windows.shape[1:] == (16, 5)
    assert torch.equal(merge_windows(windows, x, 4, offset, top), x)


def test_receptive_field_is_the_whole_image():
    model = random_model(V2)
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    model(image)[0, 0, 0, 0].backward()
    assert (image.grad != 0).all()


def test_untrained_v2_network_is_close_to_bicubic():
    image = torch.rand(1, 3, 24, 24)
    bicubic = torch.nn.functional.interpolate(image, scale_factor=4, mode="bicubic", antialias=True)  # antialias makes PyTorch use a = -1/2
    with torch.inference_mode():
        assert (TransformerSR(VARIANTS["tiny"])(image) - bicubic).abs().mean() < 0.1


def test_parameter_counts():
    counts = {name: sum(p.numel() for p in TransformerSR(config).parameters()) for name, config in VARIANTS.items()}
    assert counts == {"tiny": 351_378, "base": 659_844, "large": 9_353_968, "original": 12_753_968}


@pytest.mark.parametrize("config", [*VARIANTS.values(), V1, V2], ids=str)
def test_config_roundtrips_through_json_and_integers(config):
    assert TransformerSRConfig.from_json(config.to_json()) == config
    assert TransformerSRConfig.from_integers(config.as_integers()) == config


@pytest.mark.parametrize(
    "change", [{"embed_dim": 51}, {"design": "v3"}, {"blocks": ""}, {"scale": 0}, {"window_size": 7}, {"num_heads": "4"}]
)
def test_invalid_configs_are_rejected(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(V2, **change)


def test_gradient_checkpointing_keeps_the_gradients():
    model, image = random_model(V2).train(), torch.rand(1, 3, 16, 8)
    model(image).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing = True
    model(image).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_training_and_eval_attention_agree():
    model, image = random_model(V2), torch.rand(2, 3, 16, 24)
    assert (model.train()(image) - model.eval()(image)).abs().max() < 1e-5


def test_every_block_keeps_the_feature_shape():
    model, seen = random_model(V2), []
    for block in model.body:
        block.register_forward_hook(lambda module, args, result: seen.append((args[0].shape, result.shape)))
    model(torch.rand(1, 3, 8, 12))
    assert seen == [((1, 16, 8, 12), (1, 16, 8, 12))] * len(V2.blocks)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic_upscale_matches_pytorch(scale):
    image = torch.rand(1, 3, 9, 7)
    expected = torch.nn.functional.interpolate(image, scale_factor=scale, mode="bicubic", antialias=True)
    inner = (..., slice(2 * scale, -2 * scale), slice(2 * scale, -2 * scale))
    assert torch.allclose(BicubicUpscale(scale)(image, 0, 9)[inner], expected[inner], atol=1e-6)


def test_autocast_keeps_the_features_in_float32():
    model, image = random_model(V2), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(image)
    assert result.dtype == torch.float32
    assert (result - model(image)).abs().max() < 0.05
    result.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
