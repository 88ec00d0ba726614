"""Image files and PIL images: pixels are exact, transparency is kept, damaged files are refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from transformersr.upscale import image_io, image_safety
from transformersr.upscale.image_io import ImageData, from_pil, read_image, to_pil, write_image
from transformersr.upscale.image_safety import ImageError
from transformersr.upscale.metadata import Carried
from transformersr.upscale.transparency import bleed

from image_files import SIGNATURE, chunk, chunks, image_data, noise, plain_png, smooth, write_and_read

# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_8_bit_roundtrip_is_exact(tmp_path, monkeypatch, mode, suffix):
    monkeypatch.setattr(image_io, "BAND_PIXELS", 40)  # several bands
    image = Image.fromarray(noise(9, 17, 4)).convert(mode)
    again = to_pil(write_and_read(from_pil(image), tmp_path / f"a.{suffix}", quality=100))
    kept = mode if suffix != "webp" else mode.replace("LA", "RGBA").replace("L", "RGB")
    assert again.mode == kept
    assert np.array_equal(again, image.convert(kept))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_bmp_roundtrip_is_exact(tmp_path, mode):
    image = Image.fromarray(smooth()).convert(mode)
    again = to_pil(write_and_read(from_pil(image), tmp_path / "a.bmp"))
    assert np.array_equal(again, image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_mode_matches_pillow_conversion(mode):
    image = Image.fromarray(smooth()).convert(mode)
    result = to_pil(from_pil(image))
    assert result.mode == {"1": "L", "L": "L", "LA": "LA", "PA": "RGBA", "RGBA": "RGBA"}.get(mode, "RGB")
    assert np.array_equal(result, image.convert(result.mode))


@pytest.mark.parametrize(("mode", "straight"), [("RGBa", "RGBA"), ("La", "LA")])
def test_premultiplied_colour_becomes_straight(mode, straight):
    image = Image.fromarray(np.full((2, 3, 4), 128, np.uint8)).convert(straight)
    assert np.abs(np.asarray(to_pil(from_pil(image.convert(mode)))).astype(int) - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bit_grey_is_read_in_either_byte_order(mode):
    values = noise(5, 6, bits=16)
    image = Image.new(mode, (6, 5))
    image.frombytes(values.astype({"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")).tobytes())
    result = from_pil(image)
    assert (result.carried.grey, result.carried.bits) == (True, 16)
    assert np.array_equal(np.rint(result.color[..., 0] * 65535), values)


@pytest.mark.parametrize(("mode", "white", "bits"), [("I", 255, 8), ("I", 65535, 16), ("F", 1, 16), ("F", 255, 16), ("F", 65535, 16)])
def test_white_level_of_wide_modes_follows_the_brightest_value(mode, white, bits):
    image = Image.fromarray(np.array([[0, white]], np.int32 if mode == "I" else np.float32))
    result = from_pil(image)
    assert result.color[0, :, 0].tolist() == [0, 1]
    assert (result.carried.grey, result.carried.bits) == (True, bits)


def test_values_out_of_range_or_not_finite_are_rejected():
    with pytest.raises(ImageError, match="65535"):
        from_pil(Image.fromarray(np.array([[2**20]], np.int32)))
    with pytest.raises(ImageError, match="not numbers"):
        from_pil(Image.fromarray(np.array([[0, np.nan]], np.float32)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_16_bit_png_keeps_every_bit(tmp_path, monkeypatch, channels, interlaced):
    monkeypatch.setattr(image_io, "BAND_PIXELS", 50)
    samples = noise(11, 13, channels, bits=16)
    (tmp_path / "a.png").write_bytes(plain_png(samples, interlaced))
    for result in (read_image(tmp_path / "a.png"), write_and_read(read_image(tmp_path / "a.png"), tmp_path / "b.png")):
        assert (result.carried.grey, result.carried.bits, result.alpha is None) == (channels < 3, 16, channels in (1, 3))
        assert np.array_equal(np.rint(result.color * 65535)[..., : 1 if channels < 3 else 3], samples[..., : 1 if channels < 3 else 3])
        assert result.alpha is None or np.array_equal(np.rint(result.alpha * 65535), samples[..., -1])
    assert chunks(tmp_path / "b.png")[b"IHDR"][8] == 16


def test_16_bit_png_is_readable_by_pillow(tmp_path):
    color = np.linspace(0, 1, 40 * 50 * 3).reshape(40, 50, 3)
    write_image(image_data(color, bits=16), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(image, (np.rint(color * 65535).astype(int) >> 8).astype(np.uint8))


def test_16_bit_grey_tiff_stays_16_bit_grey(tmp_path):
    values = noise(5, 6, bits=16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    for name in ("b.tif", "b.png"):
        result = write_and_read(read_image(tmp_path / "a.tif"), tmp_path / name)
        assert (result.carried.grey, result.carried.bits) == (True, 16)
        assert np.array_equal(np.rint(result.color[..., 2] * 65535), values)


def test_values_are_rounded_and_clipped(tmp_path):
    color = np.array([-1, 0.4, 0.6, 254.4, 254.6, 300])[None, :, None].repeat(3, axis=2) / np.float32(255)
    for carried in (Carried(), Carried(bits=16), Carried(grey=True)):
        image = to_pil(ImageData(color.astype(np.float32), None, carried))
        assert np.asarray(image.convert("L"))[0].tolist() == [0, 0, 1, 254, 255, 255]
    deep = write_and_read(image_data(color * 255 / 65535, bits=16), tmp_path / "a.png")
    assert np.rint(deep.color[0, :, 0] * 65535).tolist() == [0, 0, 1, 254, 255, 300]


def test_grey_is_the_mean_of_the_channels():
    assert np.asarray(to_pil(image_data(np.array([[[0.1, 0.2, 0.6]]]), grey=True))).item() == round(0.3 * 255)


@pytest.mark.parametrize("bits", [8, 16])
def test_nan_is_not_written(tmp_path, bits):
    with pytest.raises(ValueError, match="not numbers"):
        write_image(image_data(np.full((2, 2, 3), np.nan), bits=bits), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# --- transparency --------------------------------------------------------------------------------


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_transparency_becomes_alpha(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1, 2, 0]], np.uint8))
    image.putpalette([9, 9, 9, 50, 60, 70, 80, 90, 100])
    image.save(tmp_path / "a.png", transparency=transparency)
    result = read_image(tmp_path / "a.png")
    assert not result.carried.grey
    assert np.rint(result.alpha * 255).tolist() == [[255, 0, 255 if transparency == 1 else 128, 255]]
    assert np.rint(result.color[0, 1] * 255).tolist() == [50, 60, 70]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_grey_palette_becomes_colour(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([0, 0, 0, 1, 1, 1])
    image.save(tmp_path / f"a.{suffix}")
    assert not read_image(tmp_path / f"a.{suffix}").carried.grey


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (Image.fromarray(np.array([[5, 7]], np.uint8)), 7),
        (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), 1),
        (Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), (4, 5, 6)),
    ],
)
def test_transparent_colour_becomes_alpha(tmp_path, image, value):
    image.save(tmp_path / "a.png", transparency=value)
    assert read_image(tmp_path / "a.png").alpha.tolist() == [[1, 0]]


def test_transparent_colour_of_4_bits_becomes_alpha(tmp_path):
    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tRNS", b"\0\x0b"), (b"IDAT", zlib.compress(b"\0\xab")), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(SIGNATURE + b"".join(chunk(*part) for part in parts))
    assert read_image(tmp_path / "a.png").alpha.tolist() == [[1, 0]]


@pytest.mark.parametrize("samples", [[[[1, 2, 3], [1, 2, 4]]], [[[5], [700]]]])
def test_transparent_colour_of_16_bits_becomes_alpha(tmp_path, samples):
    transparent = np.array(samples[0][1], ">u2").tobytes()
    (tmp_path / "a.png").write_bytes(plain_png(np.array(samples), extra=chunk(b"tRNS", transparent)))
    assert read_image(tmp_path / "a.png").alpha.tolist() == [[1, 0]]


def test_unused_transparent_colour_gives_no_alpha(tmp_path):
    Image.fromarray(np.array([[5, 7]], np.uint8)).save(tmp_path / "a.png", transparency=9)
    assert read_image(tmp_path / "a.png").alpha is None


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_transparency_is_flattened_onto_white_with_a_warning(tmp_path, caplog, suffix):
    result = write_and_read(image_data(np.zeros((8, 8, 3)), np.full((8, 8), 0.25)), tmp_path / f"a.{suffix}")
    assert result.alpha is None
    assert abs(result.color - 0.75).max() < 0.01
    assert "composited onto white" in caplog.text


# --- rejected files ------------------------------------------------------------------------------


def test_first_frame_of_an_animation_is_read(tmp_path, caplog):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for suffix in ("gif", "png", "webp", "tif"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        caplog.clear()
        result = read_image(tmp_path / f"a.{suffix}")
        assert result.carried.animated
        assert result.color[0, 0].round(1).tolist() == [1, 0, 0]
        assert f"a.{suffix} has several frames" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "deep.png"])
@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.filterwarnings("ignore:Truncated File")
def test_truncated_files_are_rejected(tmp_path, monkeypatch, suffix, lenient):
    path = tmp_path / f"a.{suffix}"
    write_image(image_data(noise(40, 50, 3) / 255, bits=16 if "deep" in suffix else 8), path)
    whole = path.read_bytes()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # as hosts set it
    for part in (0.02, 0.3, 0.7, 0.97):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ImageError, match=path.name):
            read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"no image at all", "not an image")])
def test_files_that_are_not_images_are_rejected(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=f"a.png: .*{message}"):
        read_image(tmp_path / "a.png")


def test_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "a.png")


def test_image_size_limit_comes_from_free_memory(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(image_io, "BAND_PIXELS", 100)  # Pillow 9.5 checks every band as well; normally bands are far below the limit
    assert read_image(tmp_path / "a.png").color.shape == (100, 100, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(image_safety, "MIN_PIXEL_LIMIT", 9999)
    monkeypatch.setattr(image_safety, "free_memory", lambda device: 2**10)
    with pytest.raises(ImageError, match=r"a.png: 100x100 pixels need 0.0 GiB of memory, and only 0.0 GiB are free; .* into parts"):
        read_image(tmp_path / "a.png")


def test_format_is_detected_from_content(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", format="PNG")
    assert read_image(tmp_path / "a.jpg").carried.format == "PNG"


# --- writing -------------------------------------------------------------------------------------


def test_unknown_suffix_error_lists_the_supported_ones(tmp_path):
    for name in ("a.xyz", "a"):
        with pytest.raises(ImageError, match="png, jpg, jpeg, webp, tif, tiff, bmp"):
            write_image(image_data(smooth() / 255), tmp_path / name)


def test_format_argument_overrides_the_suffix(tmp_path):
    assert write_and_read(image_data(smooth() / 255), tmp_path / "a.png", format="jpeg").carried.format == "JPEG"


@pytest.mark.parametrize(("suffix", "side", "limit"), [("webp", 16384, "16383"), ("jpg", 65501, "65500")])
def test_sides_beyond_the_format_limit_are_rejected(tmp_path, suffix, side, limit):
    with pytest.raises(ImageError, match=f"{limit}.*png"):
        write_image(image_data(np.zeros((1, side, 3))), tmp_path / f"a.{suffix}")
    write_image(image_data(np.zeros((1, int(limit), 3))), tmp_path / f"a.{suffix}")


def test_jpeg_has_no_chroma_subsampling_and_obeys_quality(tmp_path):
    source = image_data(noise(32, 32, 3) / 255)
    write_image(source, tmp_path / "a.jpg")
    write_image(source, tmp_path / "b.jpg", quality=50)
    with Image.open(tmp_path / "a.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
    assert (tmp_path / "b.jpg").stat().st_size < (tmp_path / "a.jpg").stat().st_size


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(image_data(smooth() / 255), path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_invalid_array_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"expected color \(h, w, 3\)"):
        to_pil(image_data(np.zeros((4, 4))))
    with pytest.raises(ValueError, match=r"expected color \(h, w, 3\)"):
        to_pil(image_data(np.zeros((4, 4, 3)), np.zeros((2, 2))))


def test_lazy_pil_image_is_read_from_its_stream():
    stream = io.BytesIO()
    Image.fromarray(smooth()).save(stream, "PNG")
    assert np.array_equal(to_pil(from_pil(Image.open(stream))), smooth())


# --- colour under transparency -------------------------------------------------------------------


def test_bleed_keeps_visible_pixels_and_fills_the_rest():
    color, alpha = np.ones((37, 53, 3), np.float32), np.zeros((37, 53), np.float32)
    color[10:20, 5:30], alpha[10:20, 5:30] = (0.25, 0.5, 0.75), 0.5
    result = bleed(color, alpha)
    assert result.dtype == np.float32
    assert np.array_equal(result[alpha > 0], color[alpha > 0])
    assert np.allclose(result, (0.25, 0.5, 0.75), atol=1e-6)


def test_bleed_uses_the_nearest_colour():
    color, alpha = np.zeros((16, 64, 3), np.float32), np.zeros((16, 64), np.float32)
    color[:, -1], alpha[:, [0, -1]] = 1, 1
    row = bleed(color, alpha)[8, :, 0]
    assert row[1] < 0.1
    assert row[-2] > 0.9
    assert np.all(np.diff(row) >= -1e-6)


@pytest.mark.parametrize("value", [0, 1])
def test_bleed_without_partial_transparency_changes_nothing(value):
    color = np.random.default_rng(0).random((5, 3, 3), dtype=np.float32)
    assert np.array_equal(bleed(color, np.full((5, 3), value, np.float32)), color)
