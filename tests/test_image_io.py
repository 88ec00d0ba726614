"""Image files and PIL images: pixels exact, and what goes with them still there."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from transformersr.upscale import image_io
from transformersr.upscale.image_io import Carried, ImageData, ImageError, from_pil, read_image, to_pil, write_image
from transformersr.upscale.transparency import bleed

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
ORIENTED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
ORIENTED |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}
"""What a viewer does to stored pixels."""


def noise(*shape: int, bits: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, shape, dtype=np.uint16 if bits == 16 else np.uint8)


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, x + y], axis=2).astype(np.uint8)


def plain_png(samples: np.ndarray, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A 16-bit PNG written straight from the specification, with filter 0."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [samples[top::down, left::right].astype(">u2") for left, top, right, down in passes]
    data = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    return SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def chunks(path: Path) -> dict[bytes, bytes]:
    data, found, at = path.read_bytes(), {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found[data[at + 4 : at + 8]] = found.get(data[at + 4 : at + 8], b"") + data[at + 8 : at + 8 + length]
        at += length + 12
    return found


def exif(orientation: int = 1, **details: bytes) -> bytes:
    block = Image.Exif()
    block[0x0112], block[0x010F] = orientation, "Camera"
    if details:
        block[0x8769] = {0x9286: details["comment"]}
    return block.tobytes()


def written(image: ImageData, path: Path, **options) -> ImageData:
    write_image(image, path, **options)
    return read_image(path)


def image_data(color: np.ndarray, alpha: np.ndarray | None = None, **carried) -> ImageData:
    return ImageData(color.astype(np.float32), None if alpha is None else alpha.astype(np.float32), Carried(**carried))


# Pixels


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_eight_bits_come_back_exactly(tmp_path, monkeypatch, mode, suffix):
    monkeypatch.setattr(image_io, "BAND_PIXELS", 40)  # several bands
    image = Image.fromarray(noise(9, 17, 4)).convert(mode)
    again = to_pil(written(from_pil(image), tmp_path / f"a.{suffix}", quality=100))
    kept = mode if suffix != "webp" else mode.replace("LA", "RGBA").replace("L", "RGB")
    assert again.mode == kept
    assert np.array_equal(again, image.convert(kept))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_bmp_is_exact_without_transparency(tmp_path, mode):
    image = Image.fromarray(smooth()).convert(mode)
    again = to_pil(written(from_pil(image), tmp_path / "a.bmp"))
    assert np.array_equal(again, image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_mode_looks_as_pillow_shows_it(mode):
    image = Image.fromarray(smooth()).convert(mode)
    result = to_pil(from_pil(image))
    assert result.mode == {"1": "L", "L": "L", "LA": "LA", "PA": "RGBA", "RGBA": "RGBA"}.get(mode, "RGB")
    assert np.array_equal(result, image.convert(result.mode))


@pytest.mark.parametrize(("mode", "straight"), [("RGBa", "RGBA"), ("La", "LA")])
def test_premultiplied_colour_is_straightened(mode, straight):
    image = Image.fromarray(np.full((2, 3, 4), 128, np.uint8)).convert(straight)
    assert np.abs(np.asarray(to_pil(from_pil(image.convert(mode)))).astype(int) - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_sixteen_bit_grey_is_read_in_either_byte_order(mode):
    values = noise(5, 6, bits=16)
    image = Image.new(mode, (6, 5))
    image.frombytes(values.astype({"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")).tobytes())
    result = from_pil(image)
    assert (result.carried.grey, result.carried.bits) == (True, 16)
    assert np.array_equal(np.rint(result.color[..., 0] * 65535), values)


@pytest.mark.parametrize(("mode", "white", "bits"), [("I", 255, 8), ("I", 65535, 16), ("F", 1, 16), ("F", 255, 16), ("F", 65535, 16)])
def test_white_of_wide_modes_follows_the_brightest_value(mode, white, bits):
    image = Image.fromarray(np.array([[0, white]], np.int32 if mode == "I" else np.float32))
    result = from_pil(image)
    assert result.color[0, :, 0].tolist() == [0, 1]
    assert (result.carried.grey, result.carried.bits) == (True, bits)


def test_values_without_meaning_are_refused():
    with pytest.raises(ImageError, match="65535"):
        from_pil(Image.fromarray(np.array([[2**20]], np.int32)))
    with pytest.raises(ImageError, match="not numbers"):
        from_pil(Image.fromarray(np.array([[0, np.nan]], np.float32)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_sixteen_bit_png_keeps_every_bit(tmp_path, monkeypatch, channels, interlaced):
    monkeypatch.setattr(image_io, "BAND_PIXELS", 50)
    samples = noise(11, 13, channels, bits=16)
    (tmp_path / "a.png").write_bytes(plain_png(samples, interlaced))
    for result in (read_image(tmp_path / "a.png"), written(read_image(tmp_path / "a.png"), tmp_path / "b.png")):
        assert (result.carried.grey, result.carried.bits, result.alpha is None) == (channels < 3, 16, channels in (1, 3))
        assert np.array_equal(np.rint(result.color * 65535)[..., : 1 if channels < 3 else 3], samples[..., : 1 if channels < 3 else 3])
        assert result.alpha is None or np.array_equal(np.rint(result.alpha * 65535), samples[..., -1])
    assert chunks(tmp_path / "b.png")[b"IHDR"][8] == 16


def test_sixteen_bit_png_is_what_pillow_reads(tmp_path):
    color = np.linspace(0, 1, 40 * 50 * 3).reshape(40, 50, 3)
    write_image(image_data(color, bits=16), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(image, (np.rint(color * 65535).astype(int) >> 8).astype(np.uint8))


def test_sixteen_bit_grey_tiff_stays_so(tmp_path):
    values = noise(5, 6, bits=16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    for name in ("b.tif", "b.png"):
        result = written(read_image(tmp_path / "a.tif"), tmp_path / name)
        assert (result.carried.grey, result.carried.bits) == (True, 16)
        assert np.array_equal(np.rint(result.color[..., 2] * 65535), values)


def test_values_are_rounded_and_clipped(tmp_path):
    color = np.array([-1, 0.4, 0.6, 254.4, 254.6, 300])[None, :, None].repeat(3, axis=2) / np.float32(255)
    for carried in (Carried(), Carried(bits=16), Carried(grey=True)):
        image = to_pil(ImageData(color.astype(np.float32), None, carried))
        assert np.asarray(image.convert("L"))[0].tolist() == [0, 0, 1, 254, 255, 255]
    deep = written(image_data(color * 255 / 65535, bits=16), tmp_path / "a.png")
    assert np.rint(deep.color[0, :, 0] * 65535).tolist() == [0, 0, 1, 254, 255, 300]


def test_grey_is_the_average_of_the_channels():
    assert np.asarray(to_pil(image_data(np.array([[[0.1, 0.2, 0.6]]]), grey=True))).item() == round(0.3 * 255)


@pytest.mark.parametrize("bits", [8, 16])
def test_values_that_are_not_numbers_are_not_written(tmp_path, bits):
    with pytest.raises(ValueError, match="not numbers"):
        write_image(image_data(np.full((2, 2, 3), np.nan), bits=bits), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# Transparency


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_transparency_of_a_palette_becomes_alpha(tmp_path, transparency):
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
def test_one_transparent_value_becomes_alpha(tmp_path, image, value):
    image.save(tmp_path / "a.png", transparency=value)
    assert read_image(tmp_path / "a.png").alpha.tolist() == [[1, 0]]


def test_one_transparent_value_of_few_bits_becomes_alpha(tmp_path):
    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tRNS", b"\0\x0b"), (b"IDAT", zlib.compress(b"\0\xab")), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(SIGNATURE + b"".join(chunk(*part) for part in parts))
    assert read_image(tmp_path / "a.png").alpha.tolist() == [[1, 0]]


@pytest.mark.parametrize("samples", [[[[1, 2, 3], [1, 2, 4]]], [[[5], [700]]]])
def test_one_transparent_value_of_sixteen_bits_becomes_alpha(tmp_path, samples):
    transparent = np.array(samples[0][1], ">u2").tobytes()
    (tmp_path / "a.png").write_bytes(plain_png(np.array(samples), extra=chunk(b"tRNS", transparent)))
    assert read_image(tmp_path / "a.png").alpha.tolist() == [[1, 0]]


def test_a_transparent_value_that_does_not_occur_is_no_transparency(tmp_path):
    Image.fromarray(np.array([[5, 7]], np.uint8)).save(tmp_path / "a.png", transparency=9)
    assert read_image(tmp_path / "a.png").alpha is None


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_transparency_is_put_on_white_with_a_warning_where_there_is_none(tmp_path, caplog, suffix):
    result = written(image_data(np.zeros((8, 8, 3)), np.full((8, 8), 0.25)), tmp_path / f"a.{suffix}")
    assert result.alpha is None
    assert abs(result.color - 0.75).max() < 0.01
    assert "composited onto white" in caplog.text


# What goes with the pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_are_turned_upright_and_the_tag_with_them(tmp_path, monkeypatch, orientation, bits):
    monkeypatch.setattr(image_io, "BAND_PIXELS", 20)
    stored = noise(5, 7, 4, bits=bits)
    path = tmp_path / "a.png"
    path.write_bytes(plain_png(stored, extra=chunk(b"eXIf", exif(orientation)[6:])))
    if bits == 8:
        Image.fromarray(stored).save(path, exif=exif(orientation))
    result = read_image(path)
    assert np.array_equal(np.rint(np.dstack([result.color, result.alpha]) * (2**bits - 1)), ORIENTED[orientation](stored))
    assert result.carried.exif == exif(1)


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_tiff_is_turned_once(tmp_path, orientation):
    stored = noise(5, 7, 3)
    Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation, 0x010F: "Camera"})
    result = read_image(tmp_path / "a.tif")
    assert np.array_equal(np.rint(result.color * 255), ORIENTED[orientation](stored))
    assert dict(to_pil(result).getexif()) == {0x010F: "Camera"}


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_in_xmp_counts_where_exif_has_none(tmp_path, orientation):
    stored = noise(5, 7, 3)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    Image.fromarray(stored).save(tmp_path / "a.png", pnginfo=info)
    result = read_image(tmp_path / "a.png")
    assert np.array_equal(np.rint(result.color * 255), ORIENTED[orientation](stored))
    assert (result.carried.xmp, result.carried.text) == (b'<x tiff:Orientation="1"/>', {})


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("bits", [8, 16])
def test_profile_exif_xmp_and_resolution_are_kept(tmp_path, suffix, bits):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = image_data(smooth() / 255, bits=bits, icc_profile=profile, exif=exif(comment=b"ASCII\0\0\0hello"), xmp=b"<x/>", dpi=(300, 150))
    result = written(source, tmp_path / f"a.{suffix}").carried
    read = Image.Exif()
    read.load(result.exif)
    assert read[0x010F] == "Camera"
    assert read.get_ifd(0x8769)[0x9286] == b"ASCII\0\0\0hello"
    assert (result.icc_profile, result.xmp) == (profile, b"<x/>")
    assert result.dpi == (None if suffix == "webp" else pytest.approx((300, 150), abs=0.02))


@pytest.mark.parametrize("bits", [8, 16])
def test_png_text_is_kept(tmp_path, bits):
    text = {"parameters": "a cat\nSteps: 20", "prompt": '{"1": "ねこ"}', "Naïve": "ÿ"}
    source = image_data(smooth() / 255, bits=bits, text=text)
    assert written(source, tmp_path / "a.png").carried.text == text
    assert {b"tEXt", b"iTXt"} < set(chunks(tmp_path / "a.png"))
    assert to_pil(source).info == text
    assert from_pil(to_pil(source).convert("L")).carried.text == text


@pytest.mark.parametrize("bits", [8, 16])
def test_colour_chunks_of_a_png_are_kept(tmp_path, bits):
    gamma, white = struct.pack(">I", 100000), struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    source = plain_png(noise(2, 2, 3, bits=16), extra=chunk(b"gAMA", gamma) + chunk(b"cHRM", white))
    (tmp_path / "a.png").write_bytes(source)
    result = read_image(tmp_path / "a.png")
    result.carried.bits = bits
    write_image(result, tmp_path / "b.png")
    found = chunks(tmp_path / "b.png")
    assert (found[b"gAMA"], found[b"cHRM"]) == (gamma, white)


def test_long_text_does_not_cost_the_image(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    Image.fromarray(smooth()).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"(?i)too large"):
        Image.open(tmp_path / "a.png").load()
    assert len(read_image(tmp_path / "a.png").carried.text["workflow"]) == 2_000_000


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_parameters_become_the_user_comment_and_stay_there(tmp_path, suffix):
    source = image_data(smooth() / 255, text={"parameters": "ねこ, cat", "workflow": '{"a": 1}'}, exif=exif())
    result = written(source, tmp_path / f"a.{suffix}")
    again = written(result, tmp_path / "b.png")
    for block in (result.carried.exif, again.carried.exif):
        read = Image.Exif()
        read.load(block)
        assert read.get_ifd(0x8769)[0x9286] == b"UNICODE\0" + "ねこ, cat".encode("utf-16-be")
        assert read[0x010F] == "Camera"  # in use, so the workflow has no place


def test_user_comment_in_use_stays(tmp_path):
    block = exif(comment=b"ASCII\0\0\0hello")
    assert written(image_data(smooth() / 255, text={"parameters": "cat"}, exif=block), tmp_path / "a.jpg").carried.exif == block


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_that_is_not_ascii_is_kept(tmp_path, suffix):
    block = Image.Exif()
    block[0x013B] = "José".encode()
    source = written(
        image_data(smooth() / 255, text={"parameters": "cat", "Copyright": "©"}, exif=block.tobytes()), tmp_path / f"a.{suffix}"
    )
    result = written(source, tmp_path / f"b.{suffix}").carried
    assert "José".encode() in result.exif
    assert suffix == "png" or "©".encode() in result.exif


def test_comfyui_finds_its_workflow_in_webp(tmp_path):
    write_image(image_data(smooth() / 255, text={"prompt": '{"a": 1}', "workflow": '{"b": 2}'}), tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as image:
        assert dict(image.getexif()) == {0x010F: 'workflow:{"b": 2}', 0x0110: 'prompt:{"a": 1}'}


def test_text_too_long_for_jpeg_is_left_out_with_a_warning(tmp_path, caplog):
    text = {"workflow": "x" * 70_000, "parameters": "cat"}
    result = written(image_data(smooth() / 255, text=text, xmp=b"y" * 70_000), tmp_path / "a.jpg")
    assert b"c\0a\0t" in result.carried.exif
    assert "'workflow' is not written" in caplog.text
    assert "XMP data of" in caplog.text


def test_comment_goes_from_jpeg_to_png_and_back(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", comment="hé".encode())
    result = written(written(read_image(tmp_path / "a.jpg"), tmp_path / "b.png"), tmp_path / "c.jpg")
    assert result.carried.text == {"Comment": "hé"}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_stop_writing(tmp_path):
    source = image_data(smooth() / 255, text={"parameters": "cat"}, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    for suffix in ("png", "jpg", "webp", "tif"):
        assert written(source, tmp_path / f"a.{suffix}").color.shape == (48, 64, 3)


# Colour spaces


def test_lab_with_a_profile_becomes_srgb(tmp_path):
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(smooth()), ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(lab).tobytes()
    result = from_pil(image)
    assert abs(result.color - smooth() / 255).max() < 0.1
    assert result.carried.icc_profile is None


def test_a_profile_that_does_not_fit_is_dropped(caplog):
    image = Image.fromarray(smooth()).convert("CMYK")
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = from_pil(image)
    assert np.array_equal(to_pil(result), image.convert("RGB"))
    assert result.carried.icc_profile is None
    assert "does not fit" in caplog.text


# Files that are refused, or half used


def test_only_the_first_frame_of_an_animation_is_read(tmp_path, caplog):
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
def test_truncated_files_are_refused(tmp_path, monkeypatch, suffix, lenient):
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
def test_files_that_are_no_images_are_refused(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=f"a.png: .*{message}"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_is_reported_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "a.png")


def test_memory_and_not_pillow_decides_how_large_an_image_may_be(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(image_io, "BAND_PIXELS", 100)  # Pillow 9.5 asks at each band too, which otherwise is far below any limit
    assert read_image(tmp_path / "a.png").color.shape == (100, 100, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(image_io, "MIN_PIXEL_LIMIT", 9999)
    monkeypatch.setattr(image_io, "free_memory", lambda device: 2**10)
    with pytest.raises(ImageError, match=r"a.png: 100x100 pixels need 0.0 GiB of memory, and only 0.0 GiB are free; .* into parts"):
        read_image(tmp_path / "a.png")


def test_the_content_counts_and_not_the_suffix(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", format="PNG")
    assert read_image(tmp_path / "a.jpg").carried.format == "PNG"


# Writing


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path):
    for name in ("a.xyz", "a"):
        with pytest.raises(ImageError, match="png, jpg, jpeg, webp, tif, tiff, bmp"):
            write_image(image_data(smooth() / 255), tmp_path / name)


def test_a_given_format_counts_more_than_the_suffix(tmp_path):
    assert written(image_data(smooth() / 255), tmp_path / "a.png", format="jpeg").carried.format == "JPEG"


@pytest.mark.parametrize(("suffix", "side", "limit"), [("webp", 16384, "16383"), ("jpg", 65501, "65500")])
def test_sides_beyond_a_format_are_refused(tmp_path, suffix, side, limit):
    with pytest.raises(ImageError, match=f"{limit}.*png"):
        write_image(image_data(np.zeros((1, side, 3))), tmp_path / f"a.{suffix}")
    write_image(image_data(np.zeros((1, int(limit), 3))), tmp_path / f"a.{suffix}")


def test_jpeg_has_colour_in_full_size_and_quality_counts(tmp_path):
    source = image_data(noise(32, 32, 3) / 255)
    write_image(source, tmp_path / "a.jpg")
    write_image(source, tmp_path / "b.jpg", quality=50)
    with Image.open(tmp_path / "a.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
    assert (tmp_path / "b.jpg").stat().st_size < (tmp_path / "a.jpg").stat().st_size


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(image_data(smooth() / 255), path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected color \(h, w, 3\)"):
        to_pil(image_data(np.zeros((4, 4))))
    with pytest.raises(ValueError, match=r"expected color \(h, w, 3\)"):
        to_pil(image_data(np.zeros((4, 4, 3)), np.zeros((2, 2))))


def test_an_unloaded_image_is_read_from_its_stream():
    stream = io.BytesIO()
    Image.fromarray(smooth()).save(stream, "PNG")
    assert np.array_equal(to_pil(from_pil(Image.open(stream))), smooth())


# Colour under transparency


def test_bleed_keeps_what_is_visible_and_hides_the_rest():
    color, alpha = np.ones((37, 53, 3), np.float32), np.zeros((37, 53), np.float32)
    color[10:20, 5:30], alpha[10:20, 5:30] = (0.25, 0.5, 0.75), 0.5
    result = bleed(color, alpha)
    assert result.dtype == np.float32
    assert np.array_equal(result[alpha > 0], color[alpha > 0])
    assert np.allclose(result, (0.25, 0.5, 0.75), atol=1e-6)


def test_bleed_takes_the_nearer_colour():
    color, alpha = np.zeros((16, 64, 3), np.float32), np.zeros((16, 64), np.float32)
    color[:, -1], alpha[:, [0, -1]] = 1, 1
    row = bleed(color, alpha)[8, :, 0]
    assert row[1] < 0.1
    assert row[-2] > 0.9
    assert np.all(np.diff(row) >= -1e-6)


@pytest.mark.parametrize("value", [0, 1])
def test_bleed_without_anything_to_do_changes_nothing(value):
    color = np.random.default_rng(0).random((5, 3, 3), dtype=np.float32)
    assert np.array_equal(bleed(color, np.full((5, 3), value, np.float32)), color)
