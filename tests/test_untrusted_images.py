"""Untrusted images: bombs and damaged files are rejected early, and file names are printed safely in one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transformersr.upscale import image_safety
from transformersr.upscale.checkpoint import save_model
from transformersr.upscale.image_io import ImageData, check_target, format_of, read_image, write_image
from transformersr.upscale.image_safety import ImageError
from transformersr.upscale.messages import one_line
from transformersr.upscale.metadata import Carried
from transformersr.upscale.upscaler import Upscaler

from image_files import SIGNATURE, chunk
from random_models import V2, random_model
from synthetic_images import synthetic_image
from untrusted_files import FEW, assert_rejected, read_or_reject


def encode(format: str, size: tuple[int, int] = (40, 30), **options) -> bytes:
    file = io.BytesIO()
    synthetic_image(1, max(size)).crop((0, 0, *size)).save(file, format=format, **options)
    return file.getvalue()


FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "ICO", "TGA", "PCX", "PPM", "SGI", "DDS", "BLP", "QOI"]
FORMATS += ["MSP", "SPIDER", "XBM"]
Image.init()
WRITABLE = [format for format in FORMATS if format in Image.SAVE and format in Image.OPEN]  # older Pillow versions support fewer
MODES = {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}


def encode_any(format: str) -> bytes:
    file = io.BytesIO()
    synthetic_image(1, 40).convert(MODES.get(format, "RGB")).save(file, format=format)
    return file.getvalue()


@pytest.mark.parametrize("format", WRITABLE)
def test_formats_are_detected_by_content_and_truncation_is_rejected(tmp_path, format):
    whole = encode_any(format)
    path = tmp_path / "image.jpg"
    path.write_bytes(whole)
    assert read_image(path).color.shape[2] == 3
    for length in {*range(1, len(whole), 1024), len(whole) // 2}:
        path.write_bytes(whole[:length])
        read_or_reject(path, ImageError, read_image)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000)])
def test_images_of_extreme_shape_are_upscaled(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    upscaled = Upscaler(random_model(V2)).upscale_image(read_image(tmp_path / "a.png"))
    assert upscaled.color.shape == (2 * size[1], 2 * size[0], 3)


PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file closefile\nshowpage\n%%EOF\n"


def test_postscript_is_rejected_and_not_run(tmp_path, monkeypatch):
    """Pillow passes PostScript to Ghostscript, whatever the suffix of the file."""
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("a program was started"))
    (tmp_path / "cute.png").write_bytes(PROGRAM)
    assert "programs, which are not run here; save the image as PNG" in assert_rejected(tmp_path / "cute.png", ImageError, read_image)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data or zlib.compress(b"")), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(*parts) for parts in chunks)


BOMBS = {
    "png": png(2**31 - 1, 2**31 - 1),
    "ppm": b"P6 3000000 3000000 255\n",
    "gif": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0),
    "qoi": b"qoif" + struct.pack(">IIBB", 2**31, 2**31, 3, 0),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_decompression_bombs_are_rejected_from_the_header(tmp_path, monkeypatch, bomb):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(image_safety, "free_memory", lambda device: 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / f"a.{bomb}").write_bytes(BOMBS[bomb])
    assert_rejected(tmp_path / f"a.{bomb}", ImageError, read_image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_images_beyond_pillows_limit_are_read_if_memory_allows(tmp_path, monkeypatch):
    """Pillow rejects images above 179 megapixels, such as 3400x3400 upscaled by 4."""
    (tmp_path / "a.png").write_bytes(png(13600, 13600))
    monkeypatch.setattr(image_safety, "free_memory", lambda device: 2**33)
    assert "is truncated or damaged" in assert_rejected(tmp_path / "a.png", ImageError, read_image)  # the file has no pixel data
    monkeypatch.setattr(image_safety, "free_memory", lambda device: 2**31)
    assert "13600x13600 pixels need 2.8 GiB of memory, and only 2.0 GiB are free" in assert_rejected(
        tmp_path / "a.png", ImageError, read_image
    )


def test_format_size_limits_are_checked_before_upscaling(tmp_path):
    for file, side in (("a.webp", 16384), ("a.jpg", 65501)):
        with pytest.raises(ImageError, match=rf"{file}: .* write it as png"):
            check_target(file, format_of(tmp_path / file), 1, side)
        check_target(file, format_of(tmp_path / file), 1, side - 1)
        check_target("a.png", "PNG", 1, side)


def tiled_tiff(side: int) -> bytes:
    """Encode an 8x8 image in a tile of the given size."""
    values = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 500, 325: 10}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + entries).ljust(500, b"\0") + zlib.compress(bytes(100))


def many_scans(scans: int) -> bytes:
    """Encode a progressive JPEG that repeats its last scan many times."""
    whole = encode("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + scans * whole[last:-2] + whole[-2:]


def long_text(letters: int) -> bytes:
    """Encode a PNG with a compressed text of equal letters."""
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * letters, 9))
    return png(4, 4).replace(b"\0\0\0\x08IDAT", text + b"\0\0\0\x08IDAT")


EXPANDING = {
    "a.tif": (tiled_tiff(46000), "tiles of 46000x46000 pixels are larger than the image"),
    "a.jpg": (many_scans(1000), "scans; expected at most 1000"),
    "a.png": (long_text(2**26), "Decompressed"),
}


@pytest.mark.parametrize("file", EXPANDING)
def test_small_files_that_expand_are_rejected(tmp_path, file):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content, words = EXPANDING[file]
    (tmp_path / file).write_bytes(content)
    assert words in assert_rejected(tmp_path / file, ImageError, read_image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_large_text_and_profiles_stay_compressed_in_results(tmp_path, caplog):
    """A text of 4 million equal letters takes 4 KB in a PNG."""
    carried = Carried(text={"parameters": "a" * 2**22}, icc_profile=(bytes(16) + b"RGB ").ljust(2**24 + 2**23, b"a"))
    for suffix in ("png", "jpg", "webp", "tif"):
        write_image(ImageData(np.zeros((2, 2, 3), np.float32), None, carried), tmp_path / f"a.{suffix}")
        again = read_image(tmp_path / f"a.{suffix}").carried
        assert again.icc_profile == (None if suffix == "jpg" else carried.icc_profile)
    assert read_image(tmp_path / "a.png").carried.text == carried.text
    assert (tmp_path / "a.png").stat().st_size < 2**16
    assert "the ICC profile of 25165824 bytes is not written: JPEG takes up to 16707345" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_pipes_and_broken_links_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "expected a file" in assert_rejected(tmp_path / "pipe.png", ImageError, read_image)
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(OSError, match=r"circle\.png"):
        read_image(tmp_path / "circle.png")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that allows any name")
@pytest.mark.parametrize("file", [b"caf\xe9.png", b"two\nlines\x1b[31m.png", b"n" * 250 + b".png", b"%s %d {} $(touch ran).png"])
def test_unusual_file_names_are_read_and_printed_in_one_line(tmp_path, file):
    path = tmp_path / os.fsdecode(file)
    path.write_bytes(encode("PNG"))
    assert read_image(path).color.shape == (30, 40, 3)
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert one_line(str(caught.value)).isprintable()


OPTIONS = {"TIFF": {"compression": "tiff_lzw"}}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that allows any name")
def test_escape_sequences_in_file_names_are_not_printed(tmp_path):
    path = tmp_path / "two\nlines\x1b[2J.gif"
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    red.save(path, save_all=True, append_images=[blue])  # gives a warning with the name
    save_model(random_model(V2), tmp_path / "model.safetensors")
    command = ["-m", "transformersr", "upscale", str(path), "-o", str(tmp_path / "a.jpg"), "-m", str(tmp_path / "model.safetensors")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert r"two\nlines\x1b[2J.gif has several frames" in done.stderr
    assert "\x1b[2J" not in done.stderr


SEEDS = [
    encode(format, **OPTIONS.get(format, {})) for format in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "AVIF", "DDS") if format in WRITABLE
]


@FEW
@given(seed=st.sampled_from(SEEDS), changes=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=8)), min_size=1, max_size=5))
def test_fuzzed_image_is_rejected_or_read(tmp_path, seed, changes):
    data = bytearray(seed)
    for start, piece in changes:
        data[start : start + len(piece)] = piece
    (tmp_path / "a.png").write_bytes(data)
    read_or_reject(tmp_path / "a.png", ImageError, read_image)
