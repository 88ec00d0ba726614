"""Metadata of an image: ICC profile, EXIF, XMP, text, resolution and colour chunks, read from Pillow and passed back to it.

What each format keeps:

- PNG: everything in `Carried`.
- TIFF: ICC, EXIF, XMP and dpi; text as in JPEG, without the comment.
- WebP: ICC, EXIF and XMP; text as in JPEG, without the comment. A grey ICC profile is dropped, as grey becomes colour.
- JPEG: ICC, EXIF, XMP and dpi; the comment, and the text that `EXIF_TEXT` has a tag for.
- GIF: the comment.
- BMP: dpi.

Colour code points of a PNG or an AVIF become an ICC profile in the other formats. A warning names what a format cannot store. IPTC and
vendor-specific chunks are never kept. EXIF data are preserved byte for byte, except in TIFF and where text is added to them. In all
formats, sizes in them are updated to those of the image, and the thumbnail is removed.
"""

from __future__ import annotations

import logging
import re
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image, PngImagePlugin

from .color import ADOBE_GAMMA, ADOBE_RGB, CodedColor, make_profile, profile_from_chunks
from .exif import (
    EXIF_TEXT,
    XMP_TAG,
    add_text,
    decode_text,
    descriptive_exif,
    exif_block,
    is_adobe_rgb,
    parse_exif,
    reset_orientation,
    resize_exif,
    text_from_exif,
)

logger = logging.getLogger(__name__)

MARKER_LIMIT = 65533
"""Bytes that fit into one marker segment of a JPEG file."""
EXIF_LIMIT = 2**24
"""Limit for EXIF data in other formats: a PNG's text may be compressed to a thousandth of its size, but EXIF data are not compressed."""
LONG_TEXT = 2**20
"""Text longer than this many characters is compressed in a PNG, for the same reason. Shorter text stays readable for other programs."""
JPEG_PROFILE = 255 * 65519
"""Bytes of an ICC profile that fit into a JPEG file, whose segments are numbered up to 255."""
TECHNICAL_TEXT = ("date:", "png:", "exif:", "pdf:", "icc:", "Raw profile", "Creation Time", "Software")
"""Prefixes of the names of texts that programs write about the file itself. They can be dropped without a warning."""

_XMP_START = b"http://ns.adobe.com/xap/1.0/\0"
"""First bytes of XMP data in a JPEG."""
_XMP_KEY = "XML:com.adobe.xmp"
"""Name of the PNG text chunk that holds XMP."""


@dataclass
class Carried:
    """Metadata that an image carries besides its pixels."""

    format: str | None = None
    """Pillow's name of the source format, such as "PNG"; None for an image made in memory."""
    grey: bool = False
    """The image was stored as grey, and is written as grey."""
    bits: int = 8
    """8, or 16 if the channels had more than 8 bits."""
    animated: bool = False
    """The source has more frames or pages, which were not read."""
    icc_profile: bytes | None = None
    exif: bytes | None = None
    """Begins with `Exif\\0\\0`. Its orientation is upright, like the pixels."""
    xmp: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)
    """Text chunks of a PNG ("parameters", "prompt", "workflow", ...). The comment of a JPEG or GIF is "Comment"."""
    dpi: tuple[float, float] | None = None
    color_chunks: dict[bytes, bytes] = field(default_factory=dict)
    """The sRGB, gAMA and cHRM chunks of a PNG."""
    coded_color: CodedColor | None = None
    """Code points from the cICP chunk of a PNG or the nclx box of an AVIF; None if they mean sRGB."""


# --- reading -------------------------------------------------------------------------------------


def read_carried(
    image: Image.Image, tiff_exif: bytes | None, coded_color: CodedColor | None = None, *, grey: bool, bits: int, animated: bool
) -> tuple[Carried, int]:
    """Return the metadata of a loaded image, and the orientation, 1 to 8, in which its pixels are stored.

    `tiff_exif` is the `descriptive_exif` of a TIFF, taken before it was loaded. The keyword arguments are passed through to the result.
    """
    info, text = image.info, _text(image)
    xmp_text, exif_text = text.pop(_XMP_KEY, None), text.pop("Raw profile type exif", None)
    xmp, xmp_orientation = _reset_xmp_orientation(info.get("xmp") or _xmp_from_old_pillow(image) or xmp_text)
    exif, orientation = reset_orientation(tiff_exif or exif_block(info.get("exif"), exif_text))
    text = {**text_from_exif(exif), **text}
    dpi = info.get("dpi")
    profile = _usable_profile(image, grey)
    if coded_color is not None and (coded_color.is_srgb or (profile and image.format != "PNG")):
        coded_color = None
    if profile is None and coded_color is None and not grey and is_adobe_rgb(exif):
        profile = make_profile(ADOBE_RGB, ADOBE_GAMMA)
    carried = Carried(
        format="JPEG" if image.format == "MPO" else image.format,
        grey=grey,
        bits=bits,
        animated=animated,
        icc_profile=profile,
        exif=exif,
        xmp=xmp,
        text=text,
        dpi=(float(dpi[0]), float(dpi[1])) if isinstance(dpi, tuple) and all(0 < number < 1e6 for number in dpi) else None,
        color_chunks=_color_chunks(info),
        coded_color=coded_color,
    )
    return carried, 1 if image.format == "TIFF" else orientation or xmp_orientation or 1  # Pillow rotates TIFF itself


def _text(image: Image.Image) -> dict[str, str]:
    """Return the text chunks of a PNG, including a copied or converted one, and the comment of other formats."""
    foreign = image.format not in (None, "PNG") or "compression" in image.info
    text = {} if foreign else {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    comment = image.info.get("comment")
    if isinstance(comment, bytes) and comment.rstrip(b"\0"):
        text.setdefault("Comment", decode_text(comment.rstrip(b"\0")))
    return text


def _xmp_from_old_pillow(image: Image.Image) -> bytes | None:
    tiff_xmp = getattr(image, "tag_v2", {}).get(XMP_TAG)
    if isinstance(tiff_xmp, bytes):
        return tiff_xmp
    segments = [data for name, data in getattr(image, "applist", ()) if name == "APP1" and data.startswith(_XMP_START)]
    return segments[0][len(_XMP_START) :] if segments else None


def resize_xmp(xmp: bytes | None, width: int, height: int) -> bytes | None:
    """Set the sizes in XMP data to those given, and remove the thumbnails, like `resize_exif`."""
    if xmp is None:
        return None
    for names, side in ((rb"tiff:ImageWidth|exif:PixelXDimension", width), (rb"tiff:ImageLength|exif:PixelYDimension", height)):
        xmp = re.sub(rb'((?:%s)(?:="|>))\d+' % names, rb"\g<1>%d" % side, xmp)
    return re.sub(rb"<(xmp:Thumbnails|xapGImg:image)\b.*?</\1>", b"", xmp, flags=re.DOTALL)


def _reset_xmp_orientation(xmp: Any) -> tuple[bytes | None, int | None]:
    """Set the orientation in XMP data to upright, leaving all other bytes as they are. Returns the data and the old orientation."""
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if not isinstance(xmp, bytes):
        return None, None
    pattern = rb'(tiff:Orientation(?:="|>))([1-8])'
    match = re.search(pattern, xmp)
    return (re.sub(pattern, rb"\g<1>1", xmp), int(match[2])) if match else (xmp, None)


def _usable_profile(image: Image.Image, grey: bool) -> bytes | None:
    """Return the ICC profile if it applies to our pixels, which are RGB or grey."""
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


# --- writing -------------------------------------------------------------------------------------


def pil_info(carried: Carried, size: tuple[int, int]) -> dict[str, Any]:
    """Convert metadata to the `info` of a Pillow image of a size (width, height)."""
    profile = carried.icc_profile or (carried.coded_color and not carried.grey and carried.coded_color.profile()) or None
    exif, xmp = resize_exif(carried.exif, *size), resize_xmp(carried.xmp, *size)
    return {**carried.text, **_drop_none({"icc_profile": profile, "exif": exif, "xmp": xmp, "dpi": carried.dpi})}


def save_options(carried: Carried, format: str, quality: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments for Pillow's `save` of an image of a size (width, height); `format` is Pillow's name.

    Logs a warning for everything that the format cannot store, or has no room for.
    """
    carried = replace(carried, exif=resize_exif(carried.exif, *size), xmp=resize_xmp(carried.xmp, *size))
    profile, dpi = carried.icc_profile, carried.dpi
    options: dict[str, Any]
    if format == "PNG":
        return _drop_none({"pnginfo": _png_info(carried), "icc_profile": profile, "exif": carried.exif, "dpi": dpi})
    _warn_of_losses(carried, format)
    profile = profile or _build_profile(carried, format)
    if format == "TIFF":
        tags = descriptive_exif(parse_exif(_exif_with_text(carried, format)), carried.xmp)
        options = {"exif": None if tags is None else parse_exif(tags), "icc_profile": profile, "dpi": dpi}
    elif format == "WEBP":
        profile = None if profile is not None and profile[16:20] == b"GRAY" else profile
        encoding = {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
        options = {"exif": _exif_with_text(carried, format), "icc_profile": profile, "xmp": carried.xmp, "method": 4, **encoding}
    elif format == "BMP":
        options = {"dpi": dpi}
    elif format == "GIF":
        options = {"comment": _comment(carried)}
    else:
        segments = {"exif": _exif_with_text(carried, format), "extra": _xmp_segment(carried.xmp), "comment": _comment(carried)}
        if profile is not None and len(profile) > JPEG_PROFILE:
            logger.warning("the ICC profile of %d bytes is not written: JPEG takes up to %d", len(profile), JPEG_PROFILE)
            profile = None
        options = {**segments, "icc_profile": profile, "dpi": dpi, "quality": quality, "subsampling": 0}
    return _drop_none(options)


def _comment(carried: Carried) -> bytes | None:
    return carried.text.get("Comment", "").encode("utf-8", "replace")[:MARKER_LIMIT] or None


def _build_profile(carried: Carried, format: str) -> bytes | None:
    """Build an ICC profile from the code points or colour chunks of the source, for formats that only store profiles."""
    coded = carried.coded_color
    if coded is None or carried.grey:
        return None if carried.grey else profile_from_chunks(carried.color_chunks)
    profile = coded.profile()
    if profile is None:
        space = f"HDR ({coded.hdr})" if coded.hdr else f"primaries {coded.primaries} with transfer function {coded.transfer}"
        logger.warning("the colour space is %s, which %s files cannot store; write a PNG to keep the colours right", space, format)
    return profile


def _warn_of_losses(carried: Carried, format: str) -> None:
    kept_text = {"JPEG": (*EXIF_TEXT, "Comment"), "GIF": ("Comment",), "BMP": ()}.get(format, tuple(EXIF_TEXT))
    lost = [repr(key)[:80] for key in carried.text if key not in kept_text and not key.startswith(TECHNICAL_TEXT)]
    if format in ("GIF", "BMP"):
        data = {"an ICC profile": carried.icc_profile or carried.coded_color, "EXIF data": carried.exif, "XMP data": carried.xmp}
        lost += [name for name, value in data.items() if value is not None]
    elif format == "WEBP" and carried.icc_profile is not None and carried.icc_profile[16:20] == b"GRAY":
        lost.append("a grey ICC profile")
    if lost:
        logger.warning("not written, because %s files cannot store it: %s", format, ", ".join(lost))


def _drop_none(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _png_info(carried: Carried) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    coded = {} if carried.coded_color is None else {b"cICP": carried.coded_color.chunk()}
    for name, data in {**carried.color_chunks, **coded}.items():
        info.add(name, data)
    for key, value in carried.text.items():
        if 0 < len(key) < 80 and all(ord(char) < 256 for char in key):
            info.add_text(key, value, zip=len(value) > LONG_TEXT)  # as tEXt, or as iTXt if not Latin-1
        else:
            logger.warning("text %.80r is not written: names in a PNG must have 1 to 79 Latin-1 characters", key)
    if carried.xmp is not None:
        info.add_itxt(_XMP_KEY, carried.xmp, zip=len(carried.xmp) > LONG_TEXT)
    return info


def _xmp_segment(xmp: bytes | None) -> bytes | None:
    """Return the JPEG marker segment for XMP data. Returns None if there are none or they are too long."""
    if not xmp:
        return None
    data = _XMP_START + xmp
    if len(data) > MARKER_LIMIT:
        logger.warning("the XMP data of %d bytes are not written: JPEG takes up to %d", len(data), MARKER_LIMIT)
        return None
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


def _exif_with_text(carried: Carried, format: str) -> bytes | None:
    """Return the EXIF block with all texts that `EXIF_TEXT` has a free tag for."""
    limit = MARKER_LIMIT if format == "JPEG" else EXIF_LIMIT
    exif = carried.exif
    if exif is not None and len(exif) > limit:
        logger.warning("the EXIF data of %d bytes are not written: %s takes up to %d", len(exif), format, limit)
        exif = None
    for key in [key for key in EXIF_TEXT if key in carried.text]:
        longer = add_text(exif, *EXIF_TEXT[key], carried.text[key])
        if longer is not None and len(longer) > limit:
            logger.warning("text %r is not written: EXIF data would have %d bytes, and %s takes up to %d", key, len(longer), format, limit)
        else:
            exif = longer
    return exif
