"""`Upscaler`: the result has the type and layout of the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from transformersr import Upscaler
from transformersr.training.data.degradation import downscale
from transformersr.training.results.metrics import psnr, shift
from transformersr.training.results.validate import to_tensor
from transformersr.upscale.batch import Job, run_jobs
from transformersr.upscale.checkpoint import save_model
from transformersr.upscale.image_io import ImageData, read_image, write_image
from transformersr.upscale.metadata import Carried
from transformersr.upscale.upscaler import available_models, crisp_version, default_model, find_device, find_dtype, find_model, parse_bytes

from random_models import V2, random_model
from synthetic_images import synthetic_image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_pil_images_keep_their_mode(upscaler, mode):
    result = upscaler(Image.effect_noise((13, 7), 50).convert(mode))
    assert (result.mode, result.size) == (mode, (26, 14))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 13), (7, 13, 1), (7, 13, 3), (7, 13, 4)])
def test_arrays_keep_layout_and_dtype(upscaler, dtype, shape):
    peak = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    image = (np.random.default_rng(0).random(shape) * peak).astype(dtype)
    result = upscaler(image)
    assert result.shape == (14, 26, *shape[2:])
    assert result.dtype == (np.float32 if peak == 1 else dtype)
    assert result.min() >= 0
    assert result.max() <= peak


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_keep_layout_and_dtype(upscaler, channels, dtype):
    result = upscaler(torch.rand(2, channels, 7, 13).to(dtype))
    assert result.shape == (2, channels, 14, 26)
    assert result.dtype == dtype


def test_tensors_may_be_uint8_or_single_and_arrays_may_be_batches(upscaler):
    images = torch.randint(0, 256, (2, 3, 7, 13), dtype=torch.uint8)
    large = upscaler(images)
    assert large.dtype == torch.uint8
    assert torch.equal(large, (upscaler(images / 255) * 255).round().to(torch.uint8))
    assert torch.equal(upscaler(images[1]), upscaler(images[1:])[0])
    array = images.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(upscaler(array), large.permute(0, 2, 3, 1).numpy())


def test_repr_is_readable_and_other_types_are_rejected_with_advice(upscaler):
    assert repr(upscaler) == "Upscaler(scale=2, device='cpu', dtype=torch.float32, memory=None)"
    with pytest.raises(TypeError, match=r"is a str.*PIL\.Image\.open"):
        upscaler("image.png")
    with pytest.raises(TypeError, match=r"is a list.*one by one"):
        upscaler([Image.new("RGB", (4, 4))])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_large_batch_is_split_and_written_into_out(upscaler, monkeypatch, channels):
    images, shares = torch.rand(5, channels, 7, 13), []
    expected = upscaler(images)
    monkeypatch.setattr("transformersr.upscale.upscaler.BATCH_PIXELS", 2 * 14 * 26)
    buffer = torch.empty(5, 14, 26, channels, dtype=torch.float64)
    result = upscaler.upscale_batch(images, on_progress=lambda done, total: shares.append(done / total), out=buffer.movedim(-1, 1))
    assert result.data_ptr() == buffer.data_ptr()
    assert (buffer.movedim(-1, 1) - expected).abs().max() <= 1e-5
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) >= 9  # three batches, each with two channel blocks and the end
    with pytest.raises(ValueError, match="out has shape"):
        upscaler.upscale_batch(images, out=buffer)


def test_memory_required_is_the_largest_pass_or_the_budget(upscaler):
    ask = upscaler.memory_required
    assert ask(1, 100, 100) < ask(1, 200, 100) < ask(1, 200, 100, factor=4) < ask(1, 200, 100, factor=8)
    assert ask(1, 100, 100) < ask(8, 100, 100) == ask(8, 100, 100, size=(200, 200))
    assert Upscaler(upscaler.model, memory=1234).memory_required(8, 100, 100) == 1234


def test_pil_array_and_tensor_results_agree(upscaler):
    image = Image.effect_noise((16, 16), 50).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)[None] / 255
    from_array = upscaler(array)
    assert np.array_equal(np.asarray(upscaler(image)), from_array)
    assert np.array_equal((upscaler(tensor)[0].permute(1, 2, 0) * 255).round().byte().numpy(), from_array)


def test_uint16_has_finer_levels_than_uint8(upscaler):
    ramp = np.linspace(30000, 31000, 64).astype(np.uint16)
    assert len(np.unique(upscaler(np.broadcast_to(ramp, (16, 64))))) > 100


def test_hidden_colour_does_not_change_visible_pixels(upscaler):
    image = np.zeros((24, 24, 4), np.uint8)
    image[:, :12] = (200, 100, 50, 255)
    hidden = image.copy()
    hidden[:, 12:, :3] = (0, 255, 0)
    assert np.array_equal(upscaler(image), upscaler(hidden))


@pytest.mark.parametrize(
    ("options", "expected"), [({}, (14, 26)), ({"factor": 3}, (21, 39)), ({"factor": 1.5}, (10, 20)), ({"size": (50, 9)}, (50, 9))]
)
def test_factor_and_size_give_the_requested_size(upscaler, options, expected):
    assert upscaler(np.zeros((7, 13, 3), np.uint8), **options).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), {}, r"\(h, w, c\)"),
        (np.zeros((4, 4, 3), np.int64), {}, "uint8"),
        (np.zeros((0, 4, 4), np.uint8), {"size": (4, 4)}, "at least 1x1"),
        (torch.zeros(4, 4), {}, r"\(b, c, h, w\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), {}, "int64"),
        (torch.zeros(1, 8, 8, 3), {}, r"channels last.*movedim\(-1, -3\)"),
        (np.zeros((2, 4, 4, 5), np.uint8), {}, r"\(b, h, w, c\)"),
        (np.zeros((4, 4, 3), np.uint8), {"factor": 2, "size": (8, 8)}, "one of them"),
        (np.zeros((4, 4, 3), np.uint8), {"factor": -1}, "above 0"),
        (np.zeros((4, 4, 3), np.uint8), {"size": (0, 8)}, "at least 1x1"),
    ],
)
def test_invalid_images_and_sizes_are_rejected(upscaler, image, options, words):
    with pytest.raises(ValueError, match=words):
        upscaler(image, **options)


def test_default_model_has_the_smallest_sufficient_scale(monkeypatch):
    from transformersr.upscale import upscaler

    monkeypatch.setattr(upscaler, "available_models", lambda: {"x4-base": None, "x4-tiny": None, "x2-tiny": None})
    chosen = {factor: upscaler.default_model(factor) for factor in (None, 1.0, 1.5, 2.0, 2.1, 4.0, 8.0)}
    assert chosen == {None: "x4-base", 1.0: "x2-tiny", 1.5: "x2-tiny", 2.0: "x2-tiny", 2.1: "x4-base", 4.0: "x4-base", 8.0: "x4-base"}


def test_default_model_for_crispness_has_a_crisp_version():
    assert crisp_version(available_models()["x2-tiny"]) is None
    assert default_model(2.0, crispness=0.5) == "x4-base"


def test_from_pretrained_takes_files_and_lists_valid_choices(tmp_path):
    save_model(random_model(V2), tmp_path / "mine.safetensors")
    assert Upscaler.from_pretrained(tmp_path / "mine.safetensors", "cpu", "fp32", "1G").memory == 2**30
    with pytest.raises(FileNotFoundError, match="x4-base"):
        find_model("no-such-model")
    with pytest.raises(ValueError, match="expected auto"):
        find_device("cuda:77")
    assert find_dtype(torch.bfloat16, torch.device("cpu")) == find_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    for dtype in ("int8", torch.int8):
        with pytest.raises(ValueError, match="fp16"):
            find_dtype(dtype, torch.device("cpu"))


def test_default_model_is_shipped_with_the_package():
    upscaler = Upscaler.from_pretrained(device="cpu")
    assert next(iter(available_models().values())) == find_model()
    assert upscaler.scale == 4


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "area"])
def test_default_model_beats_bicubic_without_a_shift(method):
    upscaler = Upscaler.from_pretrained(device="cpu")
    gt = synthetic_image(3, 256)
    small = downscale(gt, 4, method)
    ours, bicubic = (to_tensor(image) for image in (upscaler(small), small.resize(gt.size, Image.Resampling.BICUBIC)))
    assert psnr(ours, to_tensor(gt)) > psnr(bicubic, to_tensor(gt)) + 1
    assert np.abs(shift(ours, to_tensor(gt), 4)).max() < 0.05  # for one image; below 0.01 over many


@pytest.mark.parametrize(
    ("text", "count"), [("2G", 2**31), ("1.5GiB", 3 * 2**29), ("800M", 800 * 2**20), ("1000", 1000), (77, 77), (None, None)]
)
def test_memory_sizes_are_parsed(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["much", "2X", "", "1.2.3G"])
def test_invalid_memory_sizes_are_rejected(text):
    with pytest.raises(ValueError, match="2G"):
        parse_bytes(text)


def test_ensemble_is_invariant_to_rotation_and_mirroring():
    image = torch.rand(1, 3, 9, 14)
    single, ensemble = Upscaler(random_model(V2)), Upscaler(random_model(V2), ensemble=True)
    turned = torch.rot90(image.flip(3), 1, (2, 3))
    expected = torch.rot90(ensemble(image).flip(3), 1, (2, 3))
    assert torch.allclose(ensemble(turned), expected, atol=1e-5)
    assert not torch.allclose(single(turned), expected, atol=1e-3)


def test_ensemble_progress_reaches_the_end():
    calls = []
    Upscaler(random_model(V2), ensemble=True)(torch.rand(1, 3, 9, 14), on_progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (1000, 1000)


@pytest.fixture
def both_versions(tmp_path):
    save_model(random_model(V2, seed=0), tmp_path / "mine.safetensors")
    save_model(random_model(V2, seed=1), tmp_path / "mine-crisp.safetensors")
    return tmp_path


def test_crispness_blends_the_weights_of_two_models(both_versions):
    faithful, half, crisp = (
        Upscaler.from_pretrained(both_versions / "mine.safetensors", "cpu", crispness=value).model for value in (0, 0.5, 1)
    )
    alone = Upscaler.from_pretrained(both_versions / "mine-crisp.safetensors", "cpu").model
    assert torch.equal(crisp.upsample.weight, alone.upsample.weight)
    assert torch.allclose(half.upsample.weight, (faithful.upsample.weight + crisp.upsample.weight) / 2)


def test_crispness_out_of_range_or_without_a_crisp_version_is_rejected(both_versions):
    with pytest.raises(ValueError, match="from 0 to 1"):
        Upscaler.from_pretrained(both_versions / "mine.safetensors", crispness=1.1)
    with pytest.raises(ValueError, match="no crisp version"):
        Upscaler.from_pretrained(both_versions / "mine-crisp.safetensors", crispness=0.3)


@pytest.mark.parametrize("transparent", [False, True])
def test_upscaled_file_keeps_16_bit_colour(tmp_path, transparent):
    color = np.random.default_rng(0).random((9, 7, 3), np.float32)
    write_image(ImageData(color, color[..., 0] if transparent else None, Carried(bits=16)), tmp_path / "in.png")
    assert run_jobs([Job(tmp_path / "in.png", tmp_path / "out.png")], Upscaler(random_model(V2))) == []
    large = read_image(tmp_path / "out.png")
    assert (large.color.shape, large.carried.bits, large.alpha is not None) == ((18, 14, 3), 16, transparent)
