"""Convert image files and PIL images to float arrays and back, keeping what an image carries besides its pixels (see `metadata`).

What each format keeps of the pixels:

- PNG: 8 or 16 bits.
- TIFF: 16 bits for grey without alpha, otherwise 8.
- WebP: 8 bits. Grey becomes colour.
- JPEG and BMP: 8 bits. Transparent images are composited onto white.

Never kept: frames or pages after the first, palettes, CMYK and Lab (which become sRGB).
"""

from __future__ import annotations

import logging
import math
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter, BytesIO, FileIO, UnsupportedOperation
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from .atomic import write_aside
from .color import CodedColor, read_coded_color
from .exif import descriptive_exif
from .image_safety import ImageError, check_readable, check_scans, image_errors, open_file, open_image, pillow_settings
from .metadata import Carried, pil_info, read_carried, save_options

logger = logging.getLogger(__name__)

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF", "bmp": "BMP"}
"""Suffixes that can be written, with Pillow's names of the formats."""
SIDE_LIMITS = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}
"""The longest sides that the encoders accept."""
BYTE_LIMITS = {"TIFF": 2**32 - 2**24, "BMP": 2**32 - 2**24}
"""Largest size of the pixel data that keeps the rest of the file within its 32-bit offsets."""
BAND_PIXELS = 2**21
"""Pixels to convert at once, so that memory does not hold every intermediate step of a large image."""

_NUMERIC_MODES = ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_CONVERTED_MODES = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
_PNG_GREY_STEPS = {"L;2": 85, "L;4": 17}
_LOW_IF_NATIVE = "16B" if sys.byteorder == "little" else "16L"
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": f"RGB;{_LOW_IF_NATIVE}",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": f"RGBA;{_LOW_IF_NATIVE}",
    "LA;16B": "RGBA",
}
"""Raw modes that decode the low bytes. Pillow decodes 16-bit colour to its high bytes; in the opposite byte order, the same file gives the
low bytes. Grey with alpha is decoded as if it were 8-bit RGBA, which has as many bits: the four channels are the four bytes of a pixel."""


@dataclass
class ImageData:
    """Float32 in [0, 1]: colour `(h, w, 3)`, sRGB-encoded unless a profile says otherwise and not premultiplied, and alpha `(h, w)`.

    Alpha is None if the image has no transparency. A grey image has three equal channels.
    """

    color: np.ndarray
    alpha: np.ndarray | None
    carried: Carried


# --- reading -------------------------------------------------------------------------------------


def read_image(path: str | Path) -> ImageData:
    """Read an image upright and at its full bit depth. Of several frames or pages, only the first is read.

    Raises ImageError for a file that is not a complete image or is too large for this machine, and OSError if it cannot be opened.
    """
    with open_file(path) as file:
        return read_image_from(file, path)


def read_image_from(file: BinaryIO, name: str | Path) -> ImageData:
    """Read an image like `read_image`, but from an open file; `name` is used in messages."""
    with image_errors(name, file):
        with pillow_settings():
            decoded = _decode(open_image(file, name), name, file)
        return _convert(decoded)


def convert_frame(image: Image.Image, name: str | Path) -> ImageData:
    """Convert the current frame of an open animated image."""
    return _convert(_decode(image, name, in_animation=True))


def from_pil(image: Image.Image) -> ImageData:
    """Convert the current frame of a PIL image of any mode, upright. PIL images have 16 bits per channel in grey modes only."""
    name = getattr(image, "filename", "") or "the image"
    with image_errors(name):
        with pillow_settings():
            decoded = _decode(image, name)
        return _convert(decoded)


@dataclass
class _Decoded:
    """A loaded image, with the information that Pillow drops when it loads one."""

    image: Image.Image
    name: str | Path
    rawmode: str
    low: Image.Image | None
    animated: bool
    tiff_exif: bytes | None
    coded_color: CodedColor | None


def _decode(image: Image.Image, name: str | Path, file: BinaryIO | None = None, in_animation: bool = False) -> _Decoded:
    check_readable(image, name)
    if file is not None and image.format in ("JPEG", "MPO"):
        check_scans(file, name)
    animated = image.format != "MPO" and getattr(image, "is_animated", False)  # the other images of an MPO are previews
    if animated and not in_animation:  # without their number: counting them can take minutes
        logger.warning("%s has several frames or pages; only one of them is used", name)
    tiles = getattr(image, "tile", [])
    rawmode = _rawmode(tiles[0]) if tiles else ""
    tiff_exif = descriptive_exif(image.getexif()) if image.format == "TIFF" and (tiles or not animated) else None
    coded_color = _coded_color(image, file)
    image.load()
    low = _decode_low_bytes(file, rawmode) if file is not None and rawmode in _LOW_BYTES else None
    return _Decoded(image, name, rawmode, low, animated, tiff_exif, coded_color)


def _coded_color(image: Image.Image, file: BinaryIO | None) -> CodedColor | None:
    """Read the colour code points, which Pillow ignores, from the file of an image that is not loaded yet."""
    file = file or getattr(image, "fp", None)
    with suppress(OSError, ValueError, AttributeError):
        position = file.tell()  # type: ignore[union-attr]
        try:
            return read_coded_color(file, image.format)  # type: ignore[arg-type]
        finally:
            file.seek(position)  # type: ignore[union-attr]
    return None


def _rawmode(tile: Any) -> str:
    args = tile[3] if isinstance(tile[3], (tuple, list)) else (tile[3],)
    return args[0] if args and isinstance(args[0], str) else ""


def _decode_low_bytes(file: BinaryIO, rawmode: str) -> Image.Image:
    file.seek(0)
    image = Image.open(file)
    image.tile = [_replace_rawmode(tile, _LOW_BYTES[rawmode]) for tile in image.tile]
    image.load()
    return image


def _replace_rawmode(tile: Any, rawmode: str) -> Any:
    args = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _convert(decoded: _Decoded) -> ImageData:
    image, mode, full = decoded.image, _numpy_mode(decoded.image), _full_scale(decoded)
    transparent, transform = _transparent_value(decoded), _transform_to_srgb(decoded)
    grey = (mode not in ("RGB", "RGBA") or decoded.rawmode == "LA;16B") and image.format != "GIF"  # Pillow calls some palettes L
    bits = 16 if full == 65535 or image.mode == "F" else 8
    carried, orientation = read_carried(image, decoded.tiff_exif, decoded.coded_color, grey=grey, bits=bits, animated=decoded.animated)
    shape = image.size if orientation >= 5 else image.size[::-1]
    color, alpha = np.empty((*shape, 3), np.float32), None
    for rows in _row_bands(image.height, image.width):
        samples = _read_rows(decoded, mode, transform, rows)
        if samples.dtype == np.float32 and not np.isfinite(samples).all():
            raise ImageError(f"{decoded.name}: the image has values that are infinite or not numbers; expected finite values")
        channels = samples.shape[2]
        values = np.clip(samples[..., : 1 if channels < 3 else 3], 0, full)
        np.divide(values, full, out=_stored_view(color, orientation)[rows], dtype=np.float32)
        if transparent is not None or channels in (2, 4):
            alpha = np.empty(shape, np.float32) if alpha is None else alpha
            opacity = samples[..., -1] / np.float32(full) if transparent is None else (samples != transparent).any(axis=2)
            _stored_view(alpha, orientation)[rows] = opacity
    if alpha is not None and (transparent is not None or image.mode == "P") and alpha.min() == 1:
        alpha = None  # a value is declared transparent but does not occur
    return ImageData(color, alpha, carried)


def _numpy_mode(image: Image.Image) -> str:
    """Return a mode that numpy can read and that keeps everything in the image's own mode."""
    if image.mode == "P":
        declared = isinstance(image.info.get("transparency"), (int, bytes))
        return "RGBA" if declared or (image.palette is not None and image.palette.mode == "RGBA") else "RGB"
    return image.mode if image.mode in _NUMERIC_MODES else _CONVERTED_MODES.get(image.mode, "RGB")


def _full_scale(decoded: _Decoded) -> int:
    """Return the value of white. For modes I and F it is not specified, and guessed from the brightest value: 1 (F only), 255 or 65535."""
    image = decoded.image
    if decoded.low is not None or image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return 65535
    if image.mode not in ("I", "F"):
        return 255
    scales = {1: 2.0, 255: 511.0, 65535: 131071.0} if image.mode == "F" else {255: 255.0, 65535: 65535.0}  # floats may overshoot
    brightest: Any = image.getextrema()[1]
    if brightest > scales[65535]:
        raise ImageError(f"{decoded.name}: expected values up to 65535, got {brightest}; scale the image to 16 bits first")
    return next((full for full, highest in scales.items() if brightest <= highest), 65535)


def _transparent_value(decoded: _Decoded) -> np.ndarray | None:
    """Return the grey or colour value that is declared transparent, on the scale of the samples, or None."""
    mode, value = decoded.image.mode, decoded.image.info.get("transparency")
    if mode == "RGB" and isinstance(value, (tuple, list)) and len(value) == 3:
        return np.array(value)
    if not isinstance(value, int) or _numpy_mode(decoded.image) not in ("L", "I", "I;16", "I;16L", "I;16B", "I;16N"):
        return None
    return np.array([255 * bool(value) if mode == "1" else value * _PNG_GREY_STEPS.get(decoded.rawmode, 1)])


def _transform_to_srgb(decoded: _Decoded) -> ImageCms.ImageCmsTransform | None:
    image, profile = decoded.image, decoded.image.info.get("icc_profile")
    if image.mode not in ("CMYK", "LAB") or not isinstance(profile, bytes):
        return None
    try:
        return ImageCms.buildTransform(ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), image.mode, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("%s: its ICC profile does not fit its %s pixels and is ignored (%s)", decoded.name, image.mode, error)
        return None


def _read_rows(decoded: _Decoded, mode: str, transform: ImageCms.ImageCmsTransform | None, rows: slice) -> np.ndarray:
    """Return rows of the image as stored: `(rows, w, channels)`, 1 to 4 channels of grey or colour, alpha last."""
    box = (0, rows.start, decoded.image.width, rows.stop)
    band: Any = decoded.image.crop(box)
    if decoded.low is not None:
        low = np.asarray(decoded.low.crop(box))
        if decoded.rawmode == "LA;16B":
            return np.ascontiguousarray(low).view(">u2")
        return np.asarray(band).astype(np.uint16) * np.uint16(256) + low
    if transform is not None:
        band = ImageCms.applyTransform(band, transform)
    elif band.mode != mode:
        band = band.convert(mode)
    samples = np.asarray(band)
    return samples if samples.ndim == 3 else samples[..., None]


def _stored_view(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of an upright array in the order in which a file with this EXIF orientation stores it."""
    view = upright.swapaxes(0, 1) if orientation >= 5 else upright
    view = view[::-1] if orientation in (3, 4, 6, 7) else view
    return view[:, ::-1] if orientation in (2, 3, 7, 8) else view


def _row_bands(height: int, width: int) -> list[slice]:
    step = max(1, BAND_PIXELS // width)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


# --- writing -------------------------------------------------------------------------------------


def to_pil(image: ImageData) -> Image.Image:
    """Convert to an 8-bit PIL image: L or LA for grey, otherwise RGB or RGBA. Its `info` holds the text, profile, EXIF, XMP and dpi."""
    pil = to_image(image)
    pil.info.update(pil_info(image.carried, pil.size))
    return pil


def write_image(image: ImageData, path: str | Path, format: str | None = None, quality: int = 95) -> None:
    """Write an image atomically. The format follows from the suffix unless given.

    The docstrings of this module and of `metadata` say what each format keeps. `quality`, 1 to 100, applies to JPEG and to WebP, where 100
    is lossless.
    """
    path = Path(path)
    format = format_of(path, format)
    with write_aside(path) as aside, WriterWithoutFileno(FileIO(aside, "wb")) as file:
        write_image_to(image, file, path, format, quality)


def write_image_to(image: ImageData, file: BinaryIO, name: str | Path, format: str, quality: int = 95) -> None:
    """Write an image like `write_image`, but to an open file; `format` is Pillow's name, and `name` is used in messages."""
    opaque = format in ("JPEG", "BMP")
    channels = _channels(image, opaque)
    bits = 16 if image.carried.bits == 16 and (format == "PNG" or (format == "TIFF" and channels == 1)) else 8
    height, width = image.color.shape[:2]
    _check_size(name, format, height, width, channels * bits // 8)
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}")
    if opaque and image.alpha is not None and image.alpha.min() < 1:
        logger.warning("%s: %s has no transparency; the image is composited onto white", name, format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's long warnings about damaged metadata
        options = save_options(image.carried, format, quality, (width, height))
        if format == "PNG" and bits == 16:
            _write_16bit_png(image, file, options)
        else:
            to_image(image, bits, opaque).save(file, format=format, **options)


class WriterWithoutFileno(BufferedWriter):
    """Hides the file descriptor from Pillow, whose encoders would write to it directly and ignore partial writes on a full disk."""

    def fileno(self) -> int:
        raise UnsupportedOperation


def format_of(path: Path, format: str | None = None) -> str:
    """Return Pillow's name of the format to write. Raises ImageError if it cannot be written."""
    suffix = (format or path.suffix).lower().lstrip(".")
    if suffix not in FORMATS:
        raise ImageError(f"{path}: expected a format among {', '.join(FORMATS)}, got {suffix or 'no suffix'}")
    return FORMATS[suffix]


def check_target(name: str | Path, format: str, height: int, width: int) -> None:
    """Raise ImageError if a format cannot hold an image of this size; to be called before upscaling."""
    _check_size(name, format, height, width, 1)


def _check_size(path: str | Path, format: str, height: int, width: int, pixel_bytes: int) -> None:
    if max(height, width) > SIDE_LIMITS.get(format, math.inf):
        raise ImageError(f"{path}: {format} takes sides up to {SIDE_LIMITS[format]} pixels, got {width}x{height}; write it as png")
    if height * width * pixel_bytes > BYTE_LIMITS.get(format, math.inf):
        raise ImageError(f"{path}: {format} files are limited to 4 GiB, and {width}x{height} pixels need more; write it as png")


def _channels(image: ImageData, opaque: bool = False) -> int:
    """Return the number of channels to write. Raises ValueError if the arrays do not form an image."""
    color, alpha = image.color, image.alpha
    if color.ndim != 3 or color.shape[2] != 3 or not color.size or (alpha is not None and alpha.shape != color.shape[:2]):
        raise ValueError(f"expected color (h, w, 3) and alpha (h, w) or None, got {color.shape} and {getattr(alpha, 'shape', None)}")
    return (1 if image.carried.grey else 3) + (alpha is not None and not opaque)


def to_image(image: ImageData, bits: int = 8, opaque: bool = False) -> Image.Image:
    """Convert the pixels to a PIL image, without metadata."""
    height, width = image.color.shape[:2]
    pixels = np.empty((height, width, _channels(image, opaque)), np.uint16 if bits == 16 else np.uint8)
    for rows in _row_bands(height, width):
        pixels[rows] = _quantize_rows(image, rows, 2**bits - 1, opaque)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _quantize_rows(image: ImageData, rows: slice, full: int, opaque: bool = False) -> np.ndarray:
    """Return rows in the channels to write, rounded to integers up to `full`; if `opaque`, composited onto white."""
    samples = image.color[rows]
    if image.carried.grey:
        samples = samples.mean(axis=2, keepdims=True)
    if image.alpha is not None:
        alpha = image.alpha[rows][..., None]
        samples = samples * alpha + (1 - alpha) if opaque else np.concatenate([samples, alpha], axis=2)
    if not np.isfinite(samples).all():
        raise ValueError("the image to write has values that are infinite or not numbers; expected values in [0, 1]")
    return np.rint(np.clip(samples, 0, 1) * full)


# --- PNG with 16 bits ----------------------------------------------------------------------------


def _write_16bit_png(image: ImageData, file: BinaryIO, options: dict[str, Any]) -> None:
    """Write a 16-bit PNG, which Pillow cannot: it makes the chunks of a one-pixel image, and we replace the header and the pixels."""
    height, width = image.color.shape[:2]
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[_channels(image)]
    file.write(b"\x89PNG\r\n\x1a\n")
    for name, data, _ in PngImagePlugin.getchunks(Image.new("RGB", (1, 1)), **options):
        if name == b"IHDR":
            data = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
        for chunk in _deflate_rows(image) if name == b"IDAT" else [data]:
            PngImagePlugin.putchunk(file, name, chunk)


def _deflate_rows(image: ImageData) -> Iterator[bytes]:
    height, width = image.color.shape[:2]
    pixel_bytes = 2 * _channels(image)
    deflate, above = zlib.compressobj(), np.zeros((1, width * pixel_bytes), np.uint8)
    for rows in _row_bands(height, width):
        data = _quantize_rows(image, rows, 65535).astype(">u2", order="C").view(np.uint8).reshape(-1, width * pixel_bytes)
        yield deflate.compress(_filter_rows(data, above, pixel_bytes).tobytes())
        above = data[-1:]
    yield deflate.flush()


def _filter_rows(data: np.ndarray, above: np.ndarray, pixel_bytes: int) -> np.ndarray:
    """Filter rows of bytes by the pixel to the left (PNG filter 1) or above (2), whichever is smaller; each begins with its filter."""
    left = np.zeros_like(data)
    left[:, pixel_bytes:] = data[:, :-pixel_bytes]
    choices = np.stack([data - left, data - np.concatenate([above, data[:-1]])])
    best = np.minimum(choices, -choices).sum(axis=2, dtype=np.int64).argmin(axis=0)
    return np.concatenate([(best + 1).astype(np.uint8)[:, None], choices[best, np.arange(len(data))]], axis=1)
