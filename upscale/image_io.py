"""Picture files and PIL images to float arrays and back, so that what a picture carried is still there after upscaling.

What each format keeps of it:

- PNG: everything in `Carried`, with 8 or 16 bits.
- TIFF: ICC, EXIF, XMP and dpi; text as in JPEG; 16 bits where grey without alpha, otherwise 8.
- WebP: ICC, EXIF and XMP; text as in JPEG, without the comment; 8 bits. Grey becomes colour, and a grey ICC profile is dropped.
- JPEG: ICC, EXIF, XMP and dpi; the comment, and of the text what has a place in `EXIF_TEXT`; 8 bits. Alpha is put on white.
- BMP: dpi; 8 bits. Alpha is put on white.

Never kept: further frames or pages, palettes, CMYK and Lab (which become sRGB), IPTC, and chunks of one vendor. EXIF data stay byte for
byte, except in TIFF and where text is added to them: then their thumbnail goes.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, UnidentifiedImageError

from ..arch.atomic import write_aside

logger = logging.getLogger(__name__)

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF", "bmp": "BMP"}
"""Suffixes that can be written, with Pillow's names of the formats."""
READABLE = (*(f".{suffix}" for suffix in FORMATS), ".gif", ".avif")
"""Suffixes of pictures to look for in folders. What a file holds is told by its content alone."""
SIDE_LIMITS = {"JPEG": 65500, "WEBP": 16383}
"""The longest sides that the encoders take."""
BYTE_LIMITS = {"TIFF": 2**32 - 2**24, "BMP": 2**32 - 2**24}
"""Bytes of pixels that leave the rest of the file within its 32-bit offsets."""
MARKER_LIMIT = 65533
"""Bytes in one marker segment of a JPEG file."""
TEXT_LIMIT = 2**26
"""Bytes of one decompressed text or profile of a PNG. Pillow's own 2**20 would refuse the whole picture for a long workflow."""
BAND_PIXELS = 2**21
"""Pixels converted at once, so that a large picture is in memory as itself and not as every step on the way."""

USER_COMMENT, EXIF_IFD, GPS_IFD, INTEROP_IFD, XMP_TAG = 0x9286, 0x8769, 0x8825, 0xA005, 700
EXIF_TEXT = {
    "parameters": (USER_COMMENT, ""),  # as WebUI writes it into JPEG and WebP
    "prompt": (0x0110, "prompt:"),  # as ComfyUI writes it into WebP
    "workflow": (0x010F, "workflow:"),
    "Description": (0x010E, ""),
    "Author": (0x013B, ""),
    "Copyright": (0x8298, ""),
    "Software": (0x0131, ""),
}
"""For formats without text chunks: the EXIF tag that takes a text unless it is in use, and what is written before the text."""
DESCRIPTIVE_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, EXIF_IFD, GPS_IFD)
"""TIFF tags about the picture. The others are about how a file stores it, and would break another file."""

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
"""Pillow decodes 16-bit colour to its high bytes. Decoded in the opposite byte order, the same file gives the low bytes. Grey with alpha
is decoded as if it were 8-bit RGBA, which has as many bits: the four channels then are the four bytes of a pixel."""
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""What Pillow raises on broken files."""
_pillow_settings = threading.RLock()


class PictureError(ValueError):
    """A picture that cannot be read or written as asked. The message names it and says why."""


@dataclass
class Carried:
    """What goes with the pixels of a picture."""

    format: str | None = None
    """Pillow's name of the format it came in, such as "PNG"; None for an image made in memory."""
    grey: bool = False
    """It was stored as grey, and is written as grey."""
    bits: int = 8
    """8, or 16 where the channels were deeper than 8 bits."""
    animated: bool = False
    """There were further frames or pages, which are not here."""
    icc_profile: bytes | None = None
    exif: bytes | None = None
    """Begins with `Exif\\0\\0`. The orientation in it is upright, as the pixels are."""
    xmp: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)
    """Text chunks of a PNG ("parameters", "prompt", "workflow", ...). The comment of a JPEG or GIF is "Comment"."""
    dpi: tuple[float, float] | None = None
    color_chunks: dict[bytes, bytes] = field(default_factory=dict)
    """The chunks sRGB, gAMA and cHRM of a PNG."""


@dataclass
class Picture:
    """Float32 in [0, 1]: colour `(h, w, 3)`, sRGB-encoded unless a profile says otherwise and not premultiplied, and alpha `(h, w)`.

    Alpha is None where the picture has no transparency. A grey picture has three equal channels.
    """

    color: np.ndarray
    alpha: np.ndarray | None
    carried: Carried


# Reading


def read_picture(path: str | Path) -> Picture:
    """Read a picture upright and with all its bits; of several frames or pages the first.

    Raises PictureError for a file that is not a whole picture, and OSError for one that cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        if not file.read(1):
            raise PictureError(f"{path}: the file is empty")
        file.seek(0)
        with _refusing_damage(path):
            decoded = _decode(Image.open(file), path, file)
    return _convert(decoded)


def from_pil(image: Image.Image) -> Picture:
    """Convert a PIL image of any mode, upright, at its current frame. PIL images have 16 bits in grey only."""
    name = getattr(image, "filename", "") or "the image"
    with _refusing_damage(name):
        decoded = _decode(image, name)
    return _convert(decoded)


@contextmanager
def _refusing_damage(name: str | Path) -> Iterator[None]:
    """Turn Pillow's many errors into ours. Whatever its host has set: half a picture is an error, and long text is none."""
    with _pillow_settings:
        hosts = ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = max(TEXT_LIMIT, hosts[1]), max(4 * TEXT_LIMIT, hosts[2])
        try:
            yield
        except Image.DecompressionBombError as error:
            remedy = "if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS, otherwise cut it into parts"
            raise PictureError(f"{name}: too large to be safe; {remedy} ({error})") from error
        except UnidentifiedImageError as error:
            expected = "expected PNG, JPEG, WebP, TIFF, BMP, GIF or another format that Pillow reads"
            raise PictureError(f"{name}: not a picture, or damaged at its beginning; {expected}") from error
        except _DAMAGE as error:
            raise PictureError(f"{name}: the picture is truncated or damaged and cannot be read whole ({error})") from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = hosts


@dataclass
class _Decoded:
    """A loaded image, with what Pillow forgets when loading it."""

    image: Image.Image
    name: str | Path
    rawmode: str
    low: Image.Image | None
    animated: bool
    tiff_exif: bytes | None


def _decode(image: Image.Image, name: str | Path, file: BinaryIO | None = None) -> _Decoded:
    animated = image.format != "MPO" and getattr(image, "is_animated", False)  # the further pictures of an MPO are its previews
    if animated:
        logger.warning("%s has %s frames or pages; one of them is used", name, getattr(image, "n_frames", "several"))
    tiles = getattr(image, "tile", [])
    rawmode = _rawmode(tiles[0]) if tiles else ""
    tiff_exif = _descriptive(image.getexif()) if image.format == "TIFF" and (tiles or not animated) else None
    image.load()
    low = _decode_low_bytes(file, rawmode) if file is not None and rawmode in _LOW_BYTES else None
    return _Decoded(image, name, rawmode, low, animated, tiff_exif)


def _rawmode(tile: Any) -> str:
    args = tile[3] if isinstance(tile[3], (tuple, list)) else (tile[3],)
    return args[0] if args and isinstance(args[0], str) else ""


def _decode_low_bytes(file: BinaryIO, rawmode: str) -> Image.Image:
    file.seek(0)
    image = Image.open(file)
    image.tile = [_with_rawmode(tile, _LOW_BYTES[rawmode]) for tile in image.tile]
    image.load()
    return image


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    args = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _convert(decoded: _Decoded) -> Picture:
    image, mode, full = decoded.image, _mode_to_take(decoded.image), _full_scale(decoded)
    key, transform = _transparent_value(decoded), _transform_to_srgb(decoded)
    grey = (mode not in ("RGB", "RGBA") or decoded.rawmode == "LA;16B") and image.format != "GIF"  # Pillow calls some palettes L
    carried, orientation = _carried(decoded, grey, full)
    shape = image.size if orientation >= 5 else image.size[::-1]
    color, alpha = np.empty((*shape, 3), np.float32), None
    for rows in _row_bands(image.height, image.width):
        samples = _samples(decoded, mode, transform, rows)
        if samples.dtype == np.float32 and not np.isfinite(samples).all():
            raise PictureError(f"{decoded.name}: the picture has values that are infinite or not numbers")
        channels = samples.shape[2]
        light = np.clip(samples[..., : 1 if channels < 3 else 3], 0, full)
        np.divide(light, full, out=_as_stored(color, orientation)[rows], dtype=np.float32)
        if key is not None or channels in (2, 4):
            alpha = np.empty(shape, np.float32) if alpha is None else alpha
            opacity = samples[..., -1] / np.float32(full) if key is None else (samples != key).any(axis=2)
            _as_stored(alpha, orientation)[rows] = opacity
    if alpha is not None and (key is not None or image.mode == "P") and alpha.min() == 1:
        alpha = None  # a value is declared transparent and does not occur
    return Picture(color, alpha, carried)


def _mode_to_take(image: Image.Image) -> str:
    """The mode that numpy can take and that has all there is in the image's own."""
    if image.mode == "P":
        declared = isinstance(image.info.get("transparency"), (int, bytes))
        return "RGBA" if declared or (image.palette is not None and image.palette.mode == "RGBA") else "RGB"
    return image.mode if image.mode in _NUMERIC_MODES else _CONVERTED_MODES.get(image.mode, "RGB")


def _full_scale(decoded: _Decoded) -> int:
    """The value of white. For modes I and F nothing says it: then it is 1 (F only), 255 or 65535, as the brightest value suggests."""
    image = decoded.image
    if decoded.low is not None or image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return 65535
    if image.mode not in ("I", "F"):
        return 255
    scales = {1: 2.0, 255: 511.0, 65535: 131071.0} if image.mode == "F" else {255: 255.0, 65535: 65535.0}  # floats may overshoot a little
    brightest: Any = image.getextrema()[1]
    if brightest > scales[65535]:
        raise PictureError(f"{decoded.name}: expected values up to 65535, got {brightest}; scale the picture to 16 bits first")
    return next((full for full, highest in scales.items() if brightest <= highest), 65535)


def _transparent_value(decoded: _Decoded) -> np.ndarray | None:
    """The one value of grey or colour that is declared transparent, scaled as the samples are."""
    mode, value = decoded.image.mode, decoded.image.info.get("transparency")
    if mode == "RGB" and isinstance(value, (tuple, list)) and len(value) == 3:
        return np.array(value)
    if not isinstance(value, int) or _mode_to_take(decoded.image) not in ("L", "I", "I;16", "I;16L", "I;16B", "I;16N"):
        return None
    return np.array([255 * bool(value) if mode == "1" else value * _PNG_GREY_STEPS.get(decoded.rawmode, 1)])


def _transform_to_srgb(decoded: _Decoded) -> ImageCms.ImageCmsTransform | None:
    image, profile = decoded.image, decoded.image.info.get("icc_profile")
    if image.mode not in ("CMYK", "LAB") or not isinstance(profile, bytes):
        return None
    try:
        return ImageCms.buildTransform(ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), image.mode, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("%s: its ICC profile does not fit its %s pixels and is not used (%s)", decoded.name, image.mode, error)
        return None


def _samples(decoded: _Decoded, mode: str, transform: ImageCms.ImageCmsTransform | None, rows: slice) -> np.ndarray:
    """Rows of the image as stored: `(rows, w, channels)`, 1 to 4 channels of grey or colour, alpha last."""
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


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an upright array in the order in which a file with this EXIF orientation stores it."""
    view = upright.swapaxes(0, 1) if orientation >= 5 else upright
    view = view[::-1] if orientation in (3, 4, 6, 7) else view
    return view[:, ::-1] if orientation in (2, 3, 7, 8) else view


def _row_bands(height: int, width: int) -> list[slice]:
    step = max(1, BAND_PIXELS // width)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


# What goes with the pixels


def _carried(decoded: _Decoded, grey: bool, full: int) -> tuple[Carried, int]:
    """What an image carries, and the orientation in which its pixels are stored."""
    image, info, text = decoded.image, decoded.image.info, _text(decoded.image)
    xmp_text, exif_text = text.pop("XML:com.adobe.xmp", None), text.pop("Raw profile type exif", None)
    xmp, xmp_orientation = _take_xmp_orientation(info.get("xmp") or _xmp_of_older_pillow(image) or xmp_text)
    exif, orientation = _take_orientation(decoded.tiff_exif or _exif_block(info.get("exif"), exif_text))
    dpi = info.get("dpi")
    carried = Carried(
        format="JPEG" if image.format == "MPO" else image.format,
        grey=grey,
        bits=16 if full == 65535 or image.mode == "F" else 8,
        animated=decoded.animated,
        icc_profile=_fitting_profile(image, grey),
        exif=exif,
        xmp=xmp,
        text=text,
        dpi=(float(dpi[0]), float(dpi[1])) if isinstance(dpi, tuple) and all(0 < number < 1e6 for number in dpi) else None,
        color_chunks=_color_chunks(info),
    )
    return carried, 1 if image.format == "TIFF" else orientation or xmp_orientation or 1  # Pillow itself turns TIFF


def _text(image: Image.Image) -> dict[str, str]:
    """The text chunks of a PNG, also of one that was copied or converted since, and the comment of other formats."""
    foreign = image.format not in (None, "PNG") or "compression" in image.info
    text = {} if foreign else {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    comment = image.info.get("comment")
    if isinstance(comment, bytes) and comment.rstrip(b"\0"):
        text.setdefault("Comment", _decoded_text(comment.rstrip(b"\0")))
    return text


def _decoded_text(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _xmp_of_older_pillow(image: Image.Image) -> bytes | None:
    tiff_xmp = getattr(image, "tag_v2", {}).get(XMP_TAG)
    if isinstance(tiff_xmp, bytes):
        return tiff_xmp
    start = b"http://ns.adobe.com/xap/1.0/\0"
    return next((data[len(start) :] for name, data in getattr(image, "applist", ()) if name == "APP1" and data.startswith(start)), None)


def _exif_block(exif: Any, raw_profile: str | None) -> bytes | None:
    """An EXIF block with its prefix, if need be from the text in which ImageMagick puts it; None where there is none."""
    if not exif and raw_profile:
        try:
            exif = bytes.fromhex("".join(raw_profile.split("\n")[3:]))
        except ValueError:
            return None
    while isinstance(exif, bytes) and exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    return b"Exif\0\0" + exif if isinstance(exif, bytes) and exif.startswith((b"II*\0", b"MM\0*")) else None


def _take_orientation(exif: bytes | None) -> tuple[bytes | None, int | None]:
    """The EXIF block with an upright orientation, otherwise byte for byte the same, and the orientation it had."""
    if exif is None:
        return None, None
    order = ">" if exif[6:8] == b"MM" else "<"
    try:
        ifd = 6 + struct.unpack_from(f"{order}I", exif, 10)[0]
        for entry in range(ifd + 2, ifd + 2 + 12 * struct.unpack_from(f"{order}H", exif, ifd)[0], 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == 0x0112:
                number, upright = f"{order}{'I' if kind == 4 else 'H'}", bytearray(exif)
                struct.pack_into(number, upright, entry + 8, 1)
                orientation = struct.unpack_from(number, exif, entry + 8)[0]
                return bytes(upright), orientation if 1 <= orientation <= 8 else 1
    except struct.error:
        logger.warning("the EXIF data are damaged, and kept as they are")
    return exif, None


def _take_xmp_orientation(xmp: Any) -> tuple[bytes | None, int | None]:
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if not isinstance(xmp, bytes):
        return None, None
    pattern = rb'(tiff:Orientation(?:="|>))([1-8])'
    found = re.search(pattern, xmp)
    return (re.sub(pattern, rb"\g<1>1", xmp), int(found[2])) if found else (xmp, None)


def _fitting_profile(image: Image.Image, grey: bool) -> bytes | None:
    """The ICC profile if it is about pixels such as we have, which are RGB or grey."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or image.mode in ("CMYK", "LAB"):
        return None
    return profile if profile[16:20] == b"RGB " or (grey and profile[16:20] == b"GRAY") else None


def _color_chunks(info: dict) -> dict[bytes, bytes]:
    chunks = {}
    if isinstance(info.get("srgb"), int):
        chunks[b"sRGB"] = bytes([info["srgb"]])
    if isinstance(info.get("gamma"), float):
        chunks[b"gAMA"] = struct.pack(">I", round(info["gamma"] * 100000))
    if isinstance(info.get("chromaticity"), tuple):
        chunks[b"cHRM"] = struct.pack(">8I", *(round(number * 100000) for number in info["chromaticity"]))
    return chunks


# Writing


def to_pil(picture: Picture) -> Image.Image:
    """An 8-bit image: L or LA where the picture is grey, otherwise RGB or RGBA. Its `info` has the text, profile, EXIF, XMP and dpi."""
    image, carried = _image(picture), picture.carried
    named = {"icc_profile": carried.icc_profile, "exif": carried.exif, "xmp": carried.xmp, "dpi": carried.dpi}
    image.info.update(carried.text)
    image.info.update(_without_none(named))
    return image


def write_picture(picture: Picture, path: str | Path, format: str | None = None, quality: int = 95) -> None:
    """Write a picture, whole or not at all. The format is that of the suffix unless given; the module's docstring says what it keeps.

    `quality`, 1 to 100, is for JPEG and for WebP, where 100 is lossless.
    """
    path = Path(path)
    format = _format(path, format)
    opaque = format in ("JPEG", "BMP")
    channels = _channels(picture, opaque)
    bits = 16 if picture.carried.bits == 16 and (format == "PNG" or (format == "TIFF" and channels == 1)) else 8
    _check_size(picture, path, format, channels * bits // 8)
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}")
    if opaque and picture.alpha is not None and picture.alpha.min() < 1:
        logger.warning("%s: %s has no transparency; the picture is put on white", path, format)
    options = _without_none(_options(picture.carried, format, quality))
    with write_aside(path) as aside:
        if format == "PNG" and bits == 16:
            _write_deep_png(picture, aside, options)
        else:
            _image(picture, bits, opaque).save(aside, format=format, **options)


def _format(path: Path, format: str | None) -> str:
    suffix = (format or path.suffix).lower().lstrip(".")
    if suffix not in FORMATS:
        raise PictureError(f"{path}: expected a format among {', '.join(FORMATS)}, got {suffix or 'no suffix'}")
    return FORMATS[suffix]


def _check_size(picture: Picture, path: Path, format: str, pixel_bytes: int) -> None:
    height, width = picture.color.shape[:2]
    if max(height, width) > SIDE_LIMITS.get(format, math.inf):
        raise PictureError(f"{path}: {format} takes sides up to {SIDE_LIMITS[format]} pixels, got {width}x{height}; write it as png")
    if height * width * pixel_bytes > BYTE_LIMITS.get(format, math.inf):
        raise PictureError(f"{path}: {format} files end at 4 GiB, and {width}x{height} pixels need more; write it as png")


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _channels(picture: Picture, opaque: bool = False) -> int:
    color, alpha = picture.color, picture.alpha
    if color.ndim != 3 or color.shape[2] != 3 or not color.size or (alpha is not None and alpha.shape != color.shape[:2]):
        raise ValueError(f"expected color (h, w, 3) and alpha (h, w) or None, got {color.shape} and {getattr(alpha, 'shape', None)}")
    return (1 if picture.carried.grey else 3) + (alpha is not None and not opaque)


def _image(picture: Picture, bits: int = 8, opaque: bool = False) -> Image.Image:
    height, width = picture.color.shape[:2]
    pixels = np.empty((height, width, _channels(picture, opaque)), np.uint16 if bits == 16 else np.uint8)
    for rows in _row_bands(height, width):
        pixels[rows] = _quantised(picture, rows, 2**bits - 1, opaque)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _quantised(picture: Picture, rows: slice, full: int, opaque: bool = False) -> np.ndarray:
    """Rows in the channels of a file, rounded to whole numbers up to `full`; put on white if to be opaque."""
    samples = picture.color[rows]
    if picture.carried.grey:
        samples = samples.mean(axis=2, keepdims=True)
    if picture.alpha is not None:
        alpha = picture.alpha[rows][..., None]
        samples = samples * alpha + (1 - alpha) if opaque else np.concatenate([samples, alpha], axis=2)
    if not np.isfinite(samples).all():
        raise ValueError("the picture to be written has values that are infinite or not numbers; expected values in [0, 1]")
    return np.rint(np.clip(samples, 0, 1) * full)


def _options(carried: Carried, format: str, quality: int) -> dict[str, Any]:
    """Arguments for Pillow's `save`; those that are None are to be left out."""
    profile, dpi = carried.icc_profile, carried.dpi
    if format == "PNG":
        return {"pnginfo": _png_info(carried), "icc_profile": profile, "exif": carried.exif, "dpi": dpi}
    if format == "BMP":
        return {"dpi": dpi}
    exif = _exif_with_text(carried, format)
    if format == "TIFF":
        tags = _descriptive(_parsed(exif), carried.xmp)
        return {"exif": None if tags is None else _parsed(tags), "icc_profile": profile, "dpi": dpi}
    if format == "WEBP":
        profile = None if profile is not None and profile[16:20] == b"GRAY" else profile
        coding = {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
        return {"exif": exif, "icc_profile": profile, "xmp": carried.xmp, "method": 4, **coding}
    comment = carried.text.get("Comment", "").encode("utf-8", "replace")[:MARKER_LIMIT] or None
    metadata = {"exif": exif, "icc_profile": profile, "extra": _xmp_segment(carried.xmp), "comment": comment, "dpi": dpi}
    return {"quality": quality, "subsampling": 0, **metadata}


def _png_info(carried: Carried) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, data in carried.color_chunks.items():
        info.add(name, data)
    for key, value in carried.text.items():
        if 0 < len(key) < 80 and all(ord(letter) < 256 for letter in key):
            info.add_text(key, value)  # as tEXt, or as iTXt what is not Latin-1
        else:
            logger.warning("text %.80r is not written: PNG takes names of 1 to 79 Latin-1 characters", key)
    if carried.xmp is not None:
        info.add_itxt("XML:com.adobe.xmp", carried.xmp)
    return info


def _exif_with_text(carried: Carried, format: str) -> bytes | None:
    """The EXIF block with the text for which it has a free place."""
    limit = MARKER_LIMIT if format == "JPEG" else 2**31
    exif = carried.exif
    if exif is not None and len(exif) > limit:
        logger.warning("EXIF data of %d bytes are not written: %s takes up to %d", len(exif), format, limit)
        exif = None
    for key in [key for key in EXIF_TEXT if key in carried.text]:
        longer = _add_to_exif(exif, *EXIF_TEXT[key], carried.text[key])
        if longer is not None and len(longer) > limit:
            logger.warning("text %r is not written: EXIF data would have %d bytes, and %s takes up to %d", key, len(longer), format, limit)
        else:
            exif = longer
    return exif


def _add_to_exif(data: bytes | None, tag: int, start: str, text: str) -> bytes | None:
    exif = _parsed(data)
    if tag != USER_COMMENT:
        if tag in exif:
            return data
        exif[tag] = (start + text).encode("utf-8", "replace")
        return exif.tobytes()
    details = dict(exif.get_ifd(EXIF_IFD))
    if tag in details:
        return data
    if INTEROP_IFD in details:
        details[INTEROP_IFD] = exif.get_ifd(INTEROP_IFD)  # in place of where it was in the old block
    exif[EXIF_IFD] = {**details, tag: b"UNICODE\0" + text.encode("utf-16-be", "replace")}
    return exif.tobytes()


def _descriptive(exif: Image.Exif, xmp: bytes | None = None) -> bytes | None:
    """The EXIF data that may go from or into a TIFF."""
    kept = Image.Exif()
    for tag in DESCRIPTIVE_TAGS:
        if tag in (EXIF_IFD, GPS_IFD) and tag in exif:  # what is nested deeper, Pillow writes to the wrong place of a TIFF
            kept[tag] = {key: _unlettered(value) for key, value in exif.get_ifd(tag).items() if key != INTEROP_IFD}
        elif tag in exif:
            kept[tag] = _unlettered(exif[tag])
    if xmp is not None:
        kept[XMP_TAG] = xmp
    return kept.tobytes() if len(kept) else None


def _unlettered(value: Any) -> Any:
    """Text that is not ASCII as its bytes: Pillow reads it as Latin-1, and would write question marks."""
    return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value


def _parsed(data: bytes | None) -> Image.Exif:
    """EXIF data to be changed and written; empty where they are damaged."""
    exif = Image.Exif()
    try:
        exif.load(data or b"")
        exif.tobytes()
    except _DAMAGE as error:
        logger.warning("the EXIF data are damaged and not written (%s)", error)
        return Image.Exif()
    for entries in (exif, *(exif.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD) if tag in exif)):
        for tag, value in list(entries.items()):
            entries[tag] = _unlettered(value)
    return exif


def _xmp_segment(xmp: bytes | None) -> bytes | None:
    data = b"http://ns.adobe.com/xap/1.0/\0" + (xmp or b"")
    if xmp is not None and len(data) > MARKER_LIMIT:
        logger.warning("XMP data of %d bytes are not written: JPEG takes up to %d", len(data), MARKER_LIMIT)
        return None
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data if xmp else None


def _write_deep_png(picture: Picture, path: Path, options: dict[str, Any]) -> None:
    """Write a 16-bit PNG, which Pillow cannot: it makes the chunks for one pixel, and header and pixels are replaced by ours."""
    height, width = picture.color.shape[:2]
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[_channels(picture)]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data, _ in PngImagePlugin.getchunks(Image.new("RGB", (1, 1)), **options):
            if name == b"IHDR":
                data = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
            for piece in _deflated_rows(picture) if name == b"IDAT" else [data]:
                PngImagePlugin.putchunk(file, name, piece)


def _deflated_rows(picture: Picture) -> Iterator[bytes]:
    height, width = picture.color.shape[:2]
    pixel_bytes = 2 * _channels(picture)
    deflate, above = zlib.compressobj(), np.zeros((1, width * pixel_bytes), np.uint8)
    for rows in _row_bands(height, width):
        data = _quantised(picture, rows, 65535).astype(">u2").view(np.uint8).reshape(-1, width * pixel_bytes)
        yield deflate.compress(_filtered(data, above, pixel_bytes).tobytes())
        above = data[-1:]
    yield deflate.flush()


def _filtered(data: np.ndarray, above: np.ndarray, pixel_bytes: int) -> np.ndarray:
    """Rows of bytes as differences from the pixel to the left (PNG filter 1) or above (2), the smaller ones, after the filter's number."""
    left = np.zeros_like(data)
    left[:, pixel_bytes:] = data[:, :-pixel_bytes]
    choices = np.stack([data - left, data - np.concatenate([above, data[:-1]])])
    best = np.minimum(choices, -choices).sum(axis=2, dtype=np.int64).argmin(axis=0)
    return np.concatenate([(best + 1).astype(np.uint8)[:, None], choices[best, np.arange(len(data))]], axis=1)


# Colour under transparency


def bleed(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour `(h, w, 3)` in which fully transparent pixels have that of near visible ones; equal to `color` where `alpha > 0`.

    A network looks at the surroundings of each pixel, and would mix in colours that nobody was meant to see.
    """
    return _filled(color, alpha) if (alpha > 0).any() else color


def _filled(color: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Pull-push: what has no weight is taken from the picture at half the size, which is filled in the same way."""
    known = weight > 0
    if known.all():
        return color
    height, width = weight.shape
    odd = ((0, height % 2), (0, width % 2))
    weight = np.pad(weight, odd)
    sums, weights = _sum_of_blocks(np.pad(color, (*odd, (0, 0))) * weight[..., None]), _sum_of_blocks(weight)
    half = _filled(sums / np.where(weights > 0, weights, 1)[..., None], weights)
    return np.where(known[..., None], color, _doubled(_doubled(half, 0), 1)[:height, :width])


def _sum_of_blocks(array: np.ndarray) -> np.ndarray:
    return array[::2, ::2] + array[1::2, ::2] + array[::2, 1::2] + array[1::2, 1::2]


def _doubled(array: np.ndarray, axis: int) -> np.ndarray:
    """Twice as long along an axis, linearly interpolated."""
    array = np.moveaxis(array, axis, 0)
    before, after = np.concatenate([array[:1], array[:-1]]), np.concatenate([array[1:], array[-1:]])
    doubled = np.stack([0.75 * array + 0.25 * before, 0.75 * array + 0.25 * after], axis=1).reshape(-1, *array.shape[1:])
    return np.moveaxis(doubled, 0, axis)
