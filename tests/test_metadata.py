"""Metadata: EXIF, XMP, text, orientation, resolution and colour profiles reach the written file and fit it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, features

from transformersr.upscale import color, image_io
from transformersr.upscale.image_io import ImageData, from_pil, read_image, to_pil, write_image

from image_files import chunk, chunks, image_data, noise, plain_png, smooth, write_and_read

SETTINGS = "masterpiece, ねこ\nNegative prompt: blurry\nSteps: 20, Sampler: Euler"
WORKFLOW, PROMPT = '{"nodes": []}', '{"1": {}}'
AVIF = pytest.param("avif", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF"))


GREY = np.full((6, 8, 3), 0.5)
ORIENTED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
ORIENTED |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}
"""How a viewer turns stored pixels, for each EXIF orientation."""


def exif(orientation: int = 1, **details: bytes) -> bytes:
    block = Image.Exif()
    block[0x0112], block[0x010F] = orientation, "Camera"
    if details:
        block[0x8769] = {0x9286: details["comment"]}
    return block.tobytes()


def png_with(path, *extra):
    """Write a plain PNG with extra chunks after its header."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 90, 30)).save(buffer, "PNG")
    data = buffer.getvalue()
    path.write_bytes(data[:33] + b"".join(chunk(*parts) for parts in extra) + data[33:])
    return path


# --- prompts and workflows -----------------------------------------------------------------------


def comfy_exif():
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = f"workflow:{WORKFLOW}", f"prompt:{PROMPT}"
    return exif.tobytes()


def webui_exif(kind=b"UNICODE\0", coding="utf-16-be", text=SETTINGS):
    exif = Image.Exif()
    exif[0x8769] = {0x9286: kind + text.encode(coding)}
    return exif.tobytes()


@pytest.mark.parametrize("suffix", ["webp", "jpg", "tif", AVIF])
def test_comfyui_workflow_in_exif_becomes_png_text(tmp_path, suffix):
    Image.new("RGB", (8, 6)).save(tmp_path / f"a.{suffix}", exif=comfy_exif())
    write_image(read_image(tmp_path / f"a.{suffix}"), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        image.load()
        assert (image.text["workflow"], image.text["prompt"]) == (WORKFLOW, PROMPT)
        assert image.getexif()[0x010F] == f"workflow:{WORKFLOW}"


@pytest.mark.parametrize("suffix", ["webp", "jpg", AVIF])
@pytest.mark.parametrize(("kind", "coding"), [(b"UNICODE\0", "utf-16-be"), (b"UNICODE\0", "utf-16-le"), (b"ASCII\0\0\0", "utf-8")])
def test_webui_parameters_become_png_text(tmp_path, suffix, kind, coding):
    Image.new("RGB", (8, 6)).save(tmp_path / f"a.{suffix}", exif=webui_exif(kind, coding))
    write_image(read_image(tmp_path / f"a.{suffix}"), tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").text["parameters"] == SETTINGS


def test_camera_comment_does_not_become_png_text(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=webui_exif(b"ASCII\0\0\0", "ascii", "a day at the sea"))
    assert read_image(tmp_path / "a.jpg").carried.text == {}


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_text_survives_png_to_exif_and_back_without_duplicates(tmp_path, suffix):
    text = {"workflow": WORKFLOW, "prompt": PROMPT, "parameters": SETTINGS}
    write_image(image_data(GREY, text=text), tmp_path / f"a.{suffix}")
    first = read_image(tmp_path / f"a.{suffix}")
    assert first.carried.text == text
    write_image(first, tmp_path / "b.png")
    write_image(read_image(tmp_path / "b.png"), tmp_path / f"c.{suffix}")
    assert read_image(tmp_path / f"c.{suffix}").carried.exif == first.carried.exif


def test_workflow_is_kept_next_to_camera_make_and_model(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Camera", "Model"
    write_image(image_data(GREY, text={"workflow": WORKFLOW, "prompt": PROMPT}, exif=exif.tobytes()), tmp_path / "a.webp")
    assert Image.open(tmp_path / "a.webp").getexif()[0x010F] == "Camera"
    assert read_image(tmp_path / "a.webp").carried.text == {"workflow": WORKFLOW, "prompt": PROMPT}


def test_text_that_a_format_cannot_store_is_reported(tmp_path, caplog):
    write_image(image_data(GREY, text={"invokeai_metadata": "{}", "date:create": "2026"}), tmp_path / "a.jpg")
    assert "JPEG files cannot store it: 'invokeai_metadata'" in caplog.text
    caplog.clear()
    write_image(image_data(GREY, text={"parameters": "cat", "Comment": "hi"}, exif=comfy_exif()), tmp_path / "a.bmp")
    assert "'parameters', 'Comment', EXIF data" in caplog.text


# --- sizes and thumbnails ------------------------------------------------------------------------


def exif_with_thumbnail(orientation=6, order="<"):
    """EXIF data of a 48x32 image, with its size in both directories and a thumbnail."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(buffer, "JPEG")

    def directory(entries, following):
        return (
            struct.pack(order + "H", len(entries))
            + b"".join(struct.pack(order + ("HHIH2x" if kind == 3 else "HHII"), tag, kind, 1, value) for tag, kind, value in entries)
            + struct.pack(order + "I", following)
        )

    details = [(0xA002, 4, 48), (0xA003, 3, 32)]
    first = [(0x0100, 3, 48), (0x0101, 3, 32), (0x0112, 3, orientation), (0x8769, 4, 0)]
    at_details = 8 + len(directory(first, 0))
    at_second = at_details + len(directory(details, 0))
    second = [(0x0103, 3, 6), (0x0201, 4, 0), (0x0202, 4, buffer.tell())]
    second[1] = (0x0201, 4, at_second + len(directory(second, 0)))
    first[3] = (0x8769, 4, at_details)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + directory(first, at_second) + directory(details, 0) + directory(second, 0) + buffer.getvalue()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("order", "<>")
def test_exif_sizes_are_updated_and_the_thumbnail_is_removed(tmp_path, suffix, order):
    Image.new("RGB", (48, 32), "red").save(tmp_path / "a.jpg", exif=exif_with_thumbnail(order=order))
    read = Image.open(tmp_path / "a.jpg").getexif()
    assert read.get_ifd(ExifTags.IFD.IFD1)[0x0202] > 100
    small = read_image(tmp_path / "a.jpg")
    large = ImageData(small.color.repeat(2, 0).repeat(2, 1), None, small.carried)
    write_image(large, tmp_path / f"b.{suffix}")
    with Image.open(tmp_path / f"b.{suffix}") as image:
        assert image.size == (64, 96)
        exif = image.getexif()
        assert exif.get(0x0112, 1) == 1
        assert (exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003]) == (64, 96)
        assert (exif.get(0x0100, 64), exif.get(0x0101, 96)) == (64, 96)
        assert suffix == "tif" or not exif.get_ifd(ExifTags.IFD.IFD1)


def test_exif_of_pil_results_is_updated():
    image = Image.new("RGB", (48, 32))
    image.info["exif"] = exif_with_thumbnail(orientation=1)
    large = to_pil(ImageData(np.zeros((64, 96, 3), np.float32), None, from_pil(image).carried))
    assert large.getexif().get_ifd(0x8769)[0xA002] == 96
    assert not large.getexif().get_ifd(ExifTags.IFD.IFD1)


def test_xmp_sizes_are_updated(tmp_path):
    xmp = b'<x tiff:ImageWidth="4" exif:PixelYDimension="3"/><tiff:ImageLength>3</tiff:ImageLength><xmp:Thumbnails>old</xmp:Thumbnails>'
    write_image(image_data(GREY, xmp=xmp), tmp_path / "a.png")
    result = read_image(tmp_path / "a.png").carried.xmp
    assert result == b'<x tiff:ImageWidth="8" exif:PixelYDimension="6"/><tiff:ImageLength>6</tiff:ImageLength>'


# --- colour --------------------------------------------------------------------------------------


def as_srgb(path):
    """Return the first pixel as sRGB, converted with the embedded profile."""
    with Image.open(path) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        return np.asarray(ImageCms.profileToProfile(image.convert("RGB"), profile, ImageCms.createProfile("sRGB")))[0, 0].astype(int)


def p3_to_srgb(rgb):
    """Convert with the Display P3 to linear sRGB matrix published by Apple and the W3C."""
    matrix = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
    values = np.array(rgb) / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = np.clip(matrix @ light, 0, 1)
    return np.rint(np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255)


P3 = b"cICP", bytes([12, 13, 0, 1])


def test_cicp_is_kept_in_png(tmp_path):
    source = read_image(png_with(tmp_path / "a.png", P3))
    for bits in (8, 16):
        source.carried.bits = bits
        write_image(source, tmp_path / "b.png")
        assert chunks(tmp_path / "b.png").get(b"cICP") == P3[1]


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
def test_cicp_becomes_an_equivalent_icc_profile(tmp_path, suffix):
    write_image(read_image(png_with(tmp_path / "a.png", P3)), tmp_path / f"b.{suffix}", quality=100)
    assert np.abs(as_srgb(tmp_path / f"b.{suffix}") - p3_to_srgb((200, 90, 30))).max() <= 3


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_nclx_becomes_cicp_or_icc_profile(tmp_path):
    Image.new("RGB", (8, 6), (200, 90, 30)).save(tmp_path / "a.avif", quality=100)
    data = bytearray((tmp_path / "a.avif").read_bytes())
    place = data.index(b"colrnclx") + 8
    struct.pack_into(">2H", data, place, 12, 13)
    (tmp_path / "a.avif").write_bytes(data)
    source = read_image(tmp_path / "a.avif")
    write_image(source, tmp_path / "b.png")
    assert chunks(tmp_path / "b.png").get(b"cICP") == P3[1]
    write_image(source, tmp_path / "b.webp", quality=100)
    assert np.abs(as_srgb(tmp_path / "b.webp") - p3_to_srgb((200, 90, 30))).max() <= 4


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_kept_in_png_and_reported_as_lost_elsewhere(tmp_path, caplog, transfer, name):
    source = read_image(png_with(tmp_path / "a.png", (b"cICP", bytes([9, transfer, 0, 1]))))
    write_image(source, tmp_path / "b.png")
    assert chunks(tmp_path / "b.png")[b"cICP"][1] == transfer
    assert not caplog.text
    write_image(source, tmp_path / "b.jpg")
    assert f"HDR ({name})" in caplog.text


def test_png_gamma_and_primaries_become_an_icc_profile(tmp_path):
    white = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    source = png_with(tmp_path / "a.png", (b"cHRM", white), (b"gAMA", struct.pack(">I", 45455)))
    write_image(read_image(source), tmp_path / "b.jpg", quality=100)
    assert np.abs(as_srgb(tmp_path / "b.jpg") - p3_to_srgb((200, 90, 30))).max() <= 3
    usual = png_with(tmp_path / "c.png", (b"gAMA", struct.pack(">I", 45455)))
    write_image(read_image(usual), tmp_path / "d.jpg")
    assert "icc_profile" not in Image.open(tmp_path / "d.jpg").info


def test_exif_adobe_rgb_becomes_an_icc_profile(tmp_path):
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 0xFFFF, 0xA005: {1: "R03"}}
    Image.new("RGB", (8, 6), (0, 200, 0)).save(tmp_path / "a.jpg", exif=exif.tobytes(), quality=100)
    write_image(read_image(tmp_path / "a.jpg"), tmp_path / "b.png")
    assert np.abs(as_srgb(tmp_path / "b.png") - [0, 201, 0]).max() <= 6  # clipped to sRGB


def test_icc_profile_that_is_not_written_is_reported(tmp_path, caplog):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(image_data(GREY, icc_profile=profile), tmp_path / "a.bmp")
    assert "BMP files cannot store it: an ICC profile" in caplog.text


@pytest.mark.parametrize("primaries", sorted(color.PRIMARIES))
@pytest.mark.parametrize("transfer", [4, 8, 13])
def test_generated_icc_profiles_are_valid_and_keep_white(primaries, transfer):
    if (profile := color.CodedColor(primaries, transfer).profile()) is None:
        assert primaries == 1
        assert transfer == 13
        return
    generated = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    white = ImageCms.profileToProfile(Image.new("RGB", (1, 1), "white"), generated, ImageCms.createProfile("sRGB"))
    assert min(white.getpixel((0, 0))) >= 254


def test_invalid_colour_chunks_are_ignored(tmp_path):
    for data in (b"", b"\xff\xff\xff\xff"):
        source = read_image(png_with(tmp_path / "a.png", (b"cICP", data), (b"cHRM", bytes(32))))
        assert write_and_read(source, tmp_path / "b.jpg").carried.icc_profile is None
        assert (write_and_read(source, tmp_path / "b.png").color == source.color).all()


# --- orientation, profiles, text -----------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_orientation_is_applied_to_pixels_and_reset_in_exif(tmp_path, monkeypatch, orientation, bits):
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
def test_tiff_orientation_is_applied_once(tmp_path, orientation):
    stored = noise(5, 7, 3)
    Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation, 0x010F: "Camera"})
    result = read_image(tmp_path / "a.tif")
    assert np.array_equal(np.rint(result.color * 255), ORIENTED[orientation](stored))
    assert dict(to_pil(result).getexif()) == {0x010F: "Camera"}


@pytest.mark.parametrize("orientation", [1, 6])
def test_xmp_orientation_is_used_if_exif_has_none(tmp_path, orientation):
    stored = noise(5, 7, 3)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    Image.fromarray(stored).save(tmp_path / "a.png", pnginfo=info)
    result = read_image(tmp_path / "a.png")
    assert np.array_equal(np.rint(result.color * 255), ORIENTED[orientation](stored))
    assert (result.carried.xmp, result.carried.text) == (b'<x tiff:Orientation="1"/>', {})


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("bits", [8, 16])
def test_icc_profile_exif_xmp_and_resolution_are_kept(tmp_path, suffix, bits):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = image_data(smooth() / 255, bits=bits, icc_profile=profile, exif=exif(comment=b"ASCII\0\0\0hello"), xmp=b"<x/>", dpi=(300, 150))
    result = write_and_read(source, tmp_path / f"a.{suffix}").carried
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
    assert write_and_read(source, tmp_path / "a.png").carried.text == text
    assert {b"tEXt", b"iTXt"} < set(chunks(tmp_path / "a.png"))
    assert to_pil(source).info == text
    assert from_pil(to_pil(source).convert("L")).carried.text == text


@pytest.mark.parametrize("bits", [8, 16])
def test_png_colour_chunks_are_kept(tmp_path, bits):
    gamma, white = struct.pack(">I", 100000), struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    source = plain_png(noise(2, 2, 3, bits=16), extra=chunk(b"gAMA", gamma) + chunk(b"cHRM", white))
    (tmp_path / "a.png").write_bytes(source)
    result = read_image(tmp_path / "a.png")
    result.carried.bits = bits
    write_image(result, tmp_path / "b.png")
    found = chunks(tmp_path / "b.png")
    assert (found[b"gAMA"], found[b"cHRM"]) == (gamma, white)


def test_long_png_text_can_be_read(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    Image.fromarray(smooth()).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"(?i)too large"):
        Image.open(tmp_path / "a.png").load()
    assert len(read_image(tmp_path / "a.png").carried.text["workflow"]) == 2_000_000


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_parameters_become_the_exif_user_comment(tmp_path, suffix):
    source = image_data(smooth() / 255, text={"parameters": "ねこ, cat", "workflow": '{"a": 1}'}, exif=exif())
    result = write_and_read(source, tmp_path / f"a.{suffix}")
    again = write_and_read(result, tmp_path / "b.png")
    for block in (result.carried.exif, again.carried.exif):
        read = Image.Exif()
        read.load(block)
        assert read.get_ifd(0x8769)[0x9286] == b"UNICODE\0" + "ねこ, cat".encode("utf-16-be")
        assert read[0x010F] == "Camera"  # in use, so the workflow cannot be stored here


def test_existing_user_comment_is_kept(tmp_path):
    block = exif(comment=b"ASCII\0\0\0hello")
    assert write_and_read(image_data(smooth() / 255, text={"parameters": "cat"}, exif=block), tmp_path / "a.jpg").carried.exif == block


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_non_ascii_exif_is_kept(tmp_path, suffix):
    block = Image.Exif()
    block[0x013B] = "José".encode()
    source = write_and_read(
        image_data(smooth() / 255, text={"parameters": "cat", "Copyright": "©"}, exif=block.tobytes()), tmp_path / f"a.{suffix}"
    )
    result = write_and_read(source, tmp_path / f"b.{suffix}").carried
    assert "José".encode() in result.exif
    assert suffix == "png" or "©".encode() in result.exif


def test_webp_exif_uses_comfyui_layout_for_workflows(tmp_path):
    write_image(image_data(smooth() / 255, text={"prompt": '{"a": 1}', "workflow": '{"b": 2}'}), tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as image:
        assert dict(image.getexif()) == {0x010F: 'workflow:{"b": 2}', 0x0110: 'prompt:{"a": 1}'}


def test_text_too_long_for_jpeg_is_dropped_with_a_warning(tmp_path, caplog):
    text = {"workflow": "x" * 70_000, "parameters": "cat"}
    result = write_and_read(image_data(smooth() / 255, text=text, xmp=b"y" * 70_000), tmp_path / "a.jpg")
    assert b"c\0a\0t" in result.carried.exif
    assert "'workflow' is not written" in caplog.text
    assert "XMP data of" in caplog.text


def test_comment_survives_jpeg_to_png_and_back(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", comment="hé".encode())
    result = write_and_read(write_and_read(read_image(tmp_path / "a.jpg"), tmp_path / "b.png"), tmp_path / "c.jpg")
    assert result.carried.text == {"Comment": "hé"}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_prevent_writing(tmp_path):
    source = image_data(smooth() / 255, text={"parameters": "cat"}, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    for suffix in ("png", "jpg", "webp", "tif"):
        assert write_and_read(source, tmp_path / f"a.{suffix}").color.shape == (48, 64, 3)


# --- colour spaces -------------------------------------------------------------------------------


def test_lab_with_an_icc_profile_becomes_srgb(tmp_path):
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(smooth()), ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(lab).tobytes()
    result = from_pil(image)
    assert abs(result.color - smooth() / 255).max() < 0.1
    assert result.carried.icc_profile is None


def test_mismatched_icc_profile_is_dropped(caplog):
    image = Image.fromarray(smooth()).convert("CMYK")
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = from_pil(image)
    assert np.array_equal(to_pil(result), image.convert("RGB"))
    assert result.carried.icc_profile is None
    assert "does not fit" in caplog.text
