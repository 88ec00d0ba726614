"""Open untrusted image files with Pillow: its settings, its errors, and limits that keep a file from exhausting memory or time.

The size of an image is limited by free memory, not by Pillow's limit, which is the same on every machine.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from .files import is_special, unsupported
from .memory import free_memory

TEXT_LIMIT = 2**25
"""Limit in bytes for the decompressed text or profile of a PNG. Pillow's own 2**20 for one text would reject images with long workflows."""
PIXEL_BYTES = 16
"""Memory needed to read one pixel: Pillow's four bytes plus three floats."""
MIN_PIXEL_LIMIT, DEFAULT_PIXEL_LIMIT = 2**24, 2**28
"""Pixel limit however little memory seems to be free, and pixel limit if the free memory is unknown."""
MAX_SCANS = 1000
"""Scans that a JPEG may have. A scan can be as small as a hundred bytes, yet takes a second on a large image; encoders write ten."""
TILE_PIXELS = 2**22
"""Up to this many pixels, a TIFF's tile may be larger than its image."""
PROGRAMS = ("EPS", "WMF")
"""Formats whose files are programs, which Pillow passes to another program, such as Ghostscript, to run."""

FOREIGN_CONTENT = {
    rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)": unsupported("HEIC"),
    rb"....ftypavi[fs]": unsupported("AVIF"),
    rb"....ftyp|\x1a\x45\xdf\xa3": "this is a video, not an image; if it is meant as one, rename it with a suffix such as .mp4 or .mkv",
    rb"\xff\x0a|\0\0\0\x0cJXL ": unsupported("JPEG XL"),
    rb"II\xbc\x01": unsupported("JPEG XR"),
    rb"%PDF": unsupported("PDF"),
    rb"\s*<(\?xml|svg)": unsupported("an SVG vector drawing"),
    rb"\s*<(!doctype html|html|!DOCTYPE|HTML)": "this is a web page, not an image; download the image itself",
    rb"\x76\x2f\x31\x01": unsupported("OpenEXR"),
    rb"version https://git-lfs": "this is a Git LFS pointer, not an image; run `git lfs pull` to get the image",
}
"""First bytes of files that are often mistaken for images, with the message for each."""

_settings_lock = threading.RLock()
"""Held while Pillow's settings, which are global to the process, are changed."""


def _renew_lock() -> None:
    global _settings_lock
    _settings_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # the old lock may be held by a thread that does not exist in the child


class ImageError(ValueError):
    """An image that cannot be read or written as asked. The message names it and says why."""


# --- opening -------------------------------------------------------------------------------------


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open an image file. Raises ImageError for a pipe or a device, instead of waiting for it, and OSError."""
    path = Path(path)
    if is_special(path):
        raise ImageError(f"{path}: this is a pipe or a device; expected a file")
    with path.open("rb") as file:
        yield file


def open_image(file: BinaryIO, name: str | Path) -> Image.Image:
    """Open a file with Pillow without decoding its pixels. Raises ImageError for a file that is not safe to decode."""
    file.seek(0)
    if not file.read(1):
        raise ImageError(f"{name}: the file is empty")
    file.seek(0)
    image = Image.open(file)
    check_readable(image, name)
    return image


@contextmanager
def pillow_settings() -> Iterator[None]:
    """Override the host's settings of Pillow: truncated images are errors, long text is allowed, and memory limits an image's size."""
    with _settings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long warnings about damaged metadata, and warnings about large images
        before = ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = max(TEXT_LIMIT, before[1]), max(TEXT_LIMIT, before[2])
        Image.MAX_IMAGE_PIXELS = max_pixels()  # applies to images inside icons and to frames; `check_readable` checks the image itself
        try:
            yield
        finally:
            (
                ImageFile.LOAD_TRUNCATED_IMAGES,
                PngImagePlugin.MAX_TEXT_CHUNK,
                PngImagePlugin.MAX_TEXT_MEMORY,
                Image.MAX_IMAGE_PIXELS,
            ) = before


@contextmanager
def image_errors(name: str | Path, file: BinaryIO | None = None) -> Iterator[None]:
    """Turn Pillow's many errors into ImageError. If Pillow cannot identify an open `file`, the message says what it is, if known."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError(f"{name}: too large for the free memory; free some memory or split the image into parts") from error
    except UnidentifiedImageError as error:
        expected = "expected PNG, JPEG, WebP, TIFF, BMP, GIF or another format that Pillow reads"
        raise ImageError(f"{name}: {_identify(file) or f'not an image, or damaged at its beginning; {expected}'}") from error
    except Exception as error:  # Pillow's fifty decoders raise all kinds of exceptions
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{name}: the image is truncated or damaged ({reason}); get the file again") from error


def _identify(file: BinaryIO | None) -> str | None:
    """Say by its first bytes what a file is that Pillow does not read. Returns None if that is unknown."""
    if file is None:
        return None
    file.seek(0)
    head = file.read(64)
    return next((message for pattern, message in FOREIGN_CONTENT.items() if re.match(pattern, head, re.DOTALL)), None)


# --- limits --------------------------------------------------------------------------------------


def max_pixels() -> int:
    """Return the number of pixels of the largest image that fits into free memory."""
    free = free_memory(torch.device("cpu"))
    return DEFAULT_PIXEL_LIMIT if free is None else max(MIN_PIXEL_LIMIT, free // PIXEL_BYTES)


def check_readable(image: Image.Image, name: str | Path) -> None:
    """Raise ImageError, before any pixels are decoded, for an image that is a program or is too large."""
    if image.format in PROGRAMS:
        raise ImageError(f"{name}: {image.format} files are programs, which are not run here; save the image as PNG")
    check_pixels(name, image.width, image.height)
    tags: Any = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags:
        width, height = (tags.get(tag, 0) for tag in (322, 323))
        if width * height > max(TILE_PIXELS, 2 * image.width * image.height):
            raise ImageError(f"{name}: its tiles of {width}x{height} pixels are larger than the image; save it as PNG")


def check_scans(file: BinaryIO, name: str | Path) -> None:
    """Raise ImageError for an open JPEG with more scans than `MAX_SCANS`."""
    position, scans, last_byte = file.tell(), 0, b""
    file.seek(0)
    while chunk := file.read(2**20):
        scans += (last_byte + chunk).count(b"\xff\xda")
        last_byte = chunk[-1:]
    file.seek(position)
    if scans > MAX_SCANS:
        raise ImageError(f"{name}: it has {scans} scans; expected at most {MAX_SCANS}; save it as PNG")


def check_pixels(name: str | Path, width: int, height: int) -> None:
    """Raise ImageError for an image or a video frame that is too large for the free memory."""
    if width * height > (limit := max_pixels()):
        needed, free = (pixels * PIXEL_BYTES / 2**30 for pixels in (width * height, limit))
        raise ImageError(
            f"{name}: {width}x{height} pixels need {needed:.1f} GiB of memory, and only {free:.1f} GiB are free; "
            "free some memory or split the image into parts"
        )
