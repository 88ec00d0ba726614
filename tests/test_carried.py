"""What goes with an image is found by the programs that look for it, and fits the image that it is with."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from transformersr.upscale import color
from transformersr.upscale.image_io import Carried, ImageData, from_pil, read_image, to_pil, write_image

SETTINGS = "masterpiece, ねこ\nNegative prompt: blurry\nSteps: 20, Sampler: Euler"
WORKFLOW, PROMPT = '{"nodes": []}', '{"1": {}}'
AVIF = pytest.param("avif", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF"))


def image(**carried):
    return ImageData(np.full((6, 8, 3), 0.5, np.float32), None, Carried(**carried))


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_chunk(path, name):
    data = path.read_bytes()
    place = data.find(name)
    return None if place < 0 else data[place + 4 : place + 4 + int.from_bytes(data[place - 4 : place], "big")]


def png_with(path, *extra):
    """A plain PNG with chunks behind its header."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 90, 30)).save(buffer, "PNG")
    data = buffer.getvalue()
    path.write_bytes(data[:33] + b"".join(chunk(*one) for one in extra) + data[33:])
    return path


# Prompts and workflows


def comfy_exif():
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = f"workflow:{WORKFLOW}", f"prompt:{PROMPT}"
    return exif.tobytes()


def webui_exif(kind=b"UNICODE\0", coding="utf-16-be", text=SETTINGS):
    exif = Image.Exif()
    exif[0x8769] = {0x9286: kind + text.encode(coding)}
    return exif.tobytes()


@pytest.mark.parametrize("suffix", ["webp", "jpg", "tif", AVIF])
def test_comfyuis_workflow_is_text_in_a_png_and_still_in_exif(tmp_path, suffix):
    Image.new("RGB", (8, 6)).save(tmp_path / f"a.{suffix}", exif=comfy_exif())
    write_image(read_image(tmp_path / f"a.{suffix}"), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        image.load()
        assert (image.text["workflow"], image.text["prompt"]) == (WORKFLOW, PROMPT)
        assert image.getexif()[0x010F] == f"workflow:{WORKFLOW}"


@pytest.mark.parametrize("suffix", ["webp", "jpg", AVIF])
@pytest.mark.parametrize(("kind", "coding"), [(b"UNICODE\0", "utf-16-be"), (b"UNICODE\0", "utf-16-le"), (b"ASCII\0\0\0", "utf-8")])
def test_settings_of_the_webui_are_text_in_a_png(tmp_path, suffix, kind, coding):
    Image.new("RGB", (8, 6)).save(tmp_path / f"a.{suffix}", exif=webui_exif(kind, coding))
    write_image(read_image(tmp_path / f"a.{suffix}"), tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").text["parameters"] == SETTINGS


def test_what_a_camera_comments_is_no_text_of_a_png(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=webui_exif(b"ASCII\0\0\0", "ascii", "a day at the sea"))
    assert read_image(tmp_path / "a.jpg").carried.text == {}


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_text_goes_from_png_to_exif_and_back_once(tmp_path, suffix):
    text = {"workflow": WORKFLOW, "prompt": PROMPT, "parameters": SETTINGS}
    write_image(image(text=text), tmp_path / f"a.{suffix}")
    first = read_image(tmp_path / f"a.{suffix}")
    assert first.carried.text == text
    write_image(first, tmp_path / "b.png")
    write_image(read_image(tmp_path / "b.png"), tmp_path / f"c.{suffix}")
    assert read_image(tmp_path / f"c.{suffix}").carried.exif == first.carried.exif


def test_a_workflow_has_another_place_where_a_camera_has_taken_its_own(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Camera", "Model"
    write_image(image(text={"workflow": WORKFLOW, "prompt": PROMPT}, exif=exif.tobytes()), tmp_path / "a.webp")
    assert Image.open(tmp_path / "a.webp").getexif()[0x010F] == "Camera"
    assert read_image(tmp_path / "a.webp").carried.text == {"workflow": WORKFLOW, "prompt": PROMPT}


def test_text_without_a_place_is_named(tmp_path, caplog):
    write_image(image(text={"invokeai_metadata": "{}", "date:create": "2026"}), tmp_path / "a.jpg")
    assert "JPEG files cannot store it: 'invokeai_metadata'" in caplog.text
    caplog.clear()
    write_image(image(text={"parameters": "cat", "Comment": "hi"}, exif=comfy_exif()), tmp_path / "a.bmp")
    assert "'parameters', 'Comment', EXIF data" in caplog.text


# Sizes and thumbnails


def thumbnailed(orientation=6, order="<"):
    """EXIF of an image of 48x32: sizes in both directories, and a thumbnail."""
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
def test_sizes_are_those_of_the_result_and_the_old_thumbnail_goes(tmp_path, suffix, order):
    Image.new("RGB", (48, 32), "red").save(tmp_path / "a.jpg", exif=thumbnailed(order=order))
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


def test_pil_images_carry_fitting_exif_too():
    image = Image.new("RGB", (48, 32))
    image.info["exif"] = thumbnailed(orientation=1)
    large = to_pil(ImageData(np.zeros((64, 96, 3), np.float32), None, from_pil(image).carried))
    assert large.getexif().get_ifd(0x8769)[0xA002] == 96
    assert not large.getexif().get_ifd(ExifTags.IFD.IFD1)


def test_sizes_in_xmp_are_those_of_the_result(tmp_path):
    xmp = b'<x tiff:ImageWidth="4" exif:PixelYDimension="3"/><tiff:ImageLength>3</tiff:ImageLength><xmp:Thumbnails>old</xmp:Thumbnails>'
    write_image(image(xmp=xmp), tmp_path / "a.png")
    result = read_image(tmp_path / "a.png").carried.xmp
    assert result == b'<x tiff:ImageWidth="8" exif:PixelYDimension="6"/><tiff:ImageLength>6</tiff:ImageLength>'


# Colour


def as_srgb(path):
    """The first pixel as a program with colour management shows it."""
    with Image.open(path) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        return np.asarray(ImageCms.profileToProfile(image.convert("RGB"), profile, ImageCms.createProfile("sRGB")))[0, 0].astype(int)


def p3_to_srgb(rgb):
    """By Apple's and the W3C's matrix of Display P3 in sRGB's light."""
    matrix = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
    values = np.array(rgb) / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = np.clip(matrix @ light, 0, 1)
    return np.rint(np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255)


P3 = b"cICP", bytes([12, 13, 0, 1])


def test_cicp_stays_in_a_png(tmp_path):
    source = read_image(png_with(tmp_path / "a.png", P3))
    for bits in (8, 16):
        source.carried.bits = bits
        write_image(source, tmp_path / "b.png")
        assert png_chunk(tmp_path / "b.png", b"cICP") == P3[1]


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
def test_cicp_becomes_a_profile_of_the_same_colours(tmp_path, suffix):
    write_image(read_image(png_with(tmp_path / "a.png", P3)), tmp_path / f"b.{suffix}", quality=100)
    assert np.abs(as_srgb(tmp_path / f"b.{suffix}") - p3_to_srgb((200, 90, 30))).max() <= 3


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_nclx_of_an_avif_becomes_cicp_and_profile(tmp_path):
    Image.new("RGB", (8, 6), (200, 90, 30)).save(tmp_path / "a.avif", quality=100)
    data = bytearray((tmp_path / "a.avif").read_bytes())
    place = data.index(b"colrnclx") + 8
    struct.pack_into(">2H", data, place, 12, 13)
    (tmp_path / "a.avif").write_bytes(data)
    source = read_image(tmp_path / "a.avif")
    write_image(source, tmp_path / "b.png")
    assert png_chunk(tmp_path / "b.png", b"cICP") == P3[1]
    write_image(source, tmp_path / "b.webp", quality=100)
    assert np.abs(as_srgb(tmp_path / "b.webp") - p3_to_srgb((200, 90, 30))).max() <= 4


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_stays_in_a_png_and_is_said_where_it_cannot(tmp_path, caplog, transfer, name):
    source = read_image(png_with(tmp_path / "a.png", (b"cICP", bytes([9, transfer, 0, 1]))))
    write_image(source, tmp_path / "b.png")
    assert png_chunk(tmp_path / "b.png", b"cICP")[1] == transfer
    assert not caplog.text
    write_image(source, tmp_path / "b.jpg")
    assert f"HDR ({name})" in caplog.text


def test_gamma_and_primaries_of_a_png_become_a_profile(tmp_path):
    white = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    source = png_with(tmp_path / "a.png", (b"cHRM", white), (b"gAMA", struct.pack(">I", 45455)))
    write_image(read_image(source), tmp_path / "b.jpg", quality=100)
    assert np.abs(as_srgb(tmp_path / "b.jpg") - p3_to_srgb((200, 90, 30))).max() <= 3
    usual = png_with(tmp_path / "c.png", (b"gAMA", struct.pack(">I", 45455)))
    write_image(read_image(usual), tmp_path / "d.jpg")
    assert "icc_profile" not in Image.open(tmp_path / "d.jpg").info


def test_adobe_rgb_of_a_camera_becomes_a_profile(tmp_path):
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 0xFFFF, 0xA005: {1: "R03"}}
    Image.new("RGB", (8, 6), (0, 200, 0)).save(tmp_path / "a.jpg", exif=exif.tobytes(), quality=100)
    write_image(read_image(tmp_path / "a.jpg"), tmp_path / "b.png")
    assert np.abs(as_srgb(tmp_path / "b.png") - [0, 201, 0]).max() <= 6  # beyond sRGB


def test_a_profile_that_is_not_written_is_named(tmp_path, caplog):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(image(icc_profile=profile), tmp_path / "a.bmp")
    assert "BMP files cannot store it: an ICC profile" in caplog.text


@pytest.mark.parametrize("primaries", sorted(color.PRIMARIES))
@pytest.mark.parametrize("transfer", [4, 8, 13])
def test_made_profiles_are_read_and_keep_white(primaries, transfer):
    if (profile := color.CodedColor(primaries, transfer).profile()) is None:
        assert primaries == 1
        assert transfer == 13
        return
    made = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    white = ImageCms.profileToProfile(Image.new("RGB", (1, 1), "white"), made, ImageCms.createProfile("sRGB"))
    assert min(white.getpixel((0, 0))) >= 254


def test_broken_numbers_of_colour_cost_nothing(tmp_path):
    for data in (b"", b"\xff\xff\xff\xff"):
        source = read_image(png_with(tmp_path / "a.png", (b"cICP", data), (b"cHRM", bytes(32))))
        write_image(source, tmp_path / "b.jpg")
        write_image(source, tmp_path / "b.png")
