"""What goes with the pixels of a picture: profile, EXIF, XMP, text, resolution and colour chunks, taken from Pillow and given back to it.

What each format keeps of it:

- PNG: everything in `Carried`.
- TIFF: ICC, EXIF, XMP and dpi; text as in JPEG, without the comment.
- WebP: ICC, EXIF and XMP; text as in JPEG, without the comment. A grey ICC profile is dropped, as grey becomes colour.
- JPEG: ICC, EXIF, XMP and dpi; the comment, and of the text what has a place in `EXIF_TEXT`.
- BMP: dpi.

Never kept: IPTC, and chunks of one vendor. EXIF data stay byte for byte, except in TIFF and where text is added to them: then their
thumbnail goes.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, PngImagePlugin

logger = logging.getLogger(__name__)

MARKER_LIMIT = 65533
"""Bytes in one marker segment of a JPEG file."""
EXIF_LIMIT = 2**24
"""Bytes of EXIF data in other formats: a PNG's text may be compressed to a thousandth, and here it is not."""
LONG_TEXT = 2**20
"""Letters from which text goes into a PNG compressed, for the same reason. Shorter text stays readable for programs that look for it."""
JPEG_PROFILE = 255 * 65519
"""Bytes of an ICC profile in a JPEG file, which are as many segments as there are numbers for."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""What Pillow raises on broken files."""

ORIENTATION, USER_COMMENT, EXIF_IFD, GPS_IFD, INTEROP_IFD, XMP_TAG = 0x0112, 0x9286, 0x8769, 0x8825, 0xA005, 700
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

_EXIF_START = b"Exif\0\0"
_XMP_START = b"http://ns.adobe.com/xap/1.0/\0"
"""What EXIF and XMP data begin with in a JPEG."""
_XMP_KEY = "XML:com.adobe.xmp"
"""The text chunk of a PNG that holds XMP."""


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


# --- reading -------------------------------------------------------------------------------------


def read_carried(image: Image.Image, tiff_exif: bytes | None, *, grey: bool, bits: int, animated: bool) -> tuple[Carried, int]:
    """What a loaded image carries, and the orientation, 1 to 8, in which its pixels are stored.

    `tiff_exif` is the `descriptive_exif` that a TIFF had before it was loaded; the keywords go into the result as they are.
    """
    info, text = image.info, _text(image)
    xmp_text, exif_text = text.pop(_XMP_KEY, None), text.pop("Raw profile type exif", None)
    xmp, xmp_orientation = _take_xmp_orientation(info.get("xmp") or _xmp_of_older_pillow(image) or xmp_text)
    exif, orientation = _take_orientation(tiff_exif or _exif_block(info.get("exif"), exif_text))
    dpi = info.get("dpi")
    carried = Carried(
        format="JPEG" if image.format == "MPO" else image.format,
        grey=grey,
        bits=bits,
        animated=animated,
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
    segments = [data for name, data in getattr(image, "applist", ()) if name == "APP1" and data.startswith(_XMP_START)]
    return segments[0][len(_XMP_START) :] if segments else None


def _exif_block(exif: Any, raw_profile: str | None) -> bytes | None:
    """An EXIF block with its prefix, if need be from the text in which ImageMagick puts it; None where there is none."""
    if not exif and raw_profile:
        try:
            exif = bytes.fromhex("".join(raw_profile.split("\n")[3:]))
        except ValueError:
            return None
    while isinstance(exif, bytes) and exif.startswith(_EXIF_START):
        exif = exif[len(_EXIF_START) :]
    return _EXIF_START + exif if isinstance(exif, bytes) and exif.startswith((b"II*\0", b"MM\0*")) else None


def _take_orientation(exif: bytes | None) -> tuple[bytes | None, int | None]:
    """The EXIF block with an upright orientation, otherwise byte for byte the same, and the orientation it had."""
    if exif is None:
        return None, None
    order = ">" if exif[6:8] == b"MM" else "<"
    try:
        ifd = 6 + struct.unpack_from(f"{order}I", exif, 10)[0]
        for entry in range(ifd + 2, ifd + 2 + 12 * struct.unpack_from(f"{order}H", exif, ifd)[0], 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == ORIENTATION:
                number, upright = f"{order}{'I' if kind == 4 else 'H'}", bytearray(exif)
                struct.pack_into(number, upright, entry + 8, 1)
                orientation = struct.unpack_from(number, exif, entry + 8)[0]
                return bytes(upright), orientation if 1 <= orientation <= 8 else 1
    except struct.error:
        logger.warning("the EXIF data are damaged, and kept as they are")
    return exif, None


def _take_xmp_orientation(xmp: Any) -> tuple[bytes | None, int | None]:
    """The XMP data with an upright orientation, otherwise byte for byte the same, and the orientation they had."""
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


# --- writing -------------------------------------------------------------------------------------


def pil_info(carried: Carried) -> dict[str, Any]:
    """What is carried, by the names that it has in the `info` of a Pillow image."""
    named = {"icc_profile": carried.icc_profile, "exif": carried.exif, "xmp": carried.xmp, "dpi": carried.dpi}
    return {**carried.text, **_without_none(named)}


def save_options(carried: Carried, format: str, quality: int) -> dict[str, Any]:
    """Arguments for Pillow's `save`; `format` is its name of the format. A warning tells what the format could hold but has no room for."""
    profile, dpi = carried.icc_profile, carried.dpi
    options: dict[str, Any]
    if format == "PNG":
        options = {"pnginfo": _png_info(carried), "icc_profile": profile, "exif": carried.exif, "dpi": dpi}
    elif format == "TIFF":
        tags = descriptive_exif(_parsed(_exif_with_text(carried, format)), carried.xmp)
        options = {"exif": None if tags is None else _parsed(tags), "icc_profile": profile, "dpi": dpi}
    elif format == "WEBP":
        profile = None if profile is not None and profile[16:20] == b"GRAY" else profile
        coding = {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
        options = {"exif": _exif_with_text(carried, format), "icc_profile": profile, "xmp": carried.xmp, "method": 4, **coding}
    elif format == "BMP":
        options = {"dpi": dpi}
    else:
        comment = carried.text.get("Comment", "").encode("utf-8", "replace")[:MARKER_LIMIT] or None
        segments = {"exif": _exif_with_text(carried, format), "extra": _xmp_segment(carried.xmp), "comment": comment}
        if profile is not None and len(profile) > JPEG_PROFILE:
            logger.warning("the ICC profile of %d bytes is not written: JPEG takes up to %d", len(profile), JPEG_PROFILE)
            profile = None
        options = {**segments, "icc_profile": profile, "dpi": dpi, "quality": quality, "subsampling": 0}
    return _without_none(options)


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _png_info(carried: Carried) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, data in carried.color_chunks.items():
        info.add(name, data)
    for key, value in carried.text.items():
        if 0 < len(key) < 80 and all(ord(letter) < 256 for letter in key):
            info.add_text(key, value, zip=len(value) > LONG_TEXT)  # as tEXt, or as iTXt what is not Latin-1
        else:
            logger.warning("text %.80r is not written: PNG takes names of 1 to 79 Latin-1 characters", key)
    if carried.xmp is not None:
        info.add_itxt(_XMP_KEY, carried.xmp, zip=len(carried.xmp) > LONG_TEXT)
    return info


def _xmp_segment(xmp: bytes | None) -> bytes | None:
    """The marker segment of a JPEG for XMP data; None where there are none, or too many."""
    if not xmp:
        return None
    data = _XMP_START + xmp
    if len(data) > MARKER_LIMIT:
        logger.warning("XMP data of %d bytes are not written: JPEG takes up to %d", len(data), MARKER_LIMIT)
        return None
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


def _exif_with_text(carried: Carried, format: str) -> bytes | None:
    """The EXIF block with the text for which it has a free place."""
    limit = MARKER_LIMIT if format == "JPEG" else EXIF_LIMIT
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
    """The EXIF block with one text more, or as it is where the tag is in use."""
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


# --- EXIF, both ways -----------------------------------------------------------------------------


def descriptive_exif(exif: Image.Exif, xmp: bytes | None = None) -> bytes | None:
    """The EXIF data that may go from or into a TIFF, and XMP where given; None where there are none."""
    kept = Image.Exif()
    for tag in DESCRIPTIVE_TAGS:
        if tag in (EXIF_IFD, GPS_IFD) and tag in exif:  # what is nested deeper, Pillow writes to the wrong place of a TIFF
            kept[tag] = {key: _unlettered(value) for key, value in exif.get_ifd(tag).items() if key != INTEROP_IFD}
        elif tag in exif:
            kept[tag] = _unlettered(exif[tag])
    if xmp is not None:
        kept[XMP_TAG] = xmp
    return kept.tobytes() if len(kept) else None


def _parsed(data: bytes | None) -> Image.Exif:
    """EXIF data to be changed and written; empty where they are damaged."""
    exif = Image.Exif()
    try:
        exif.load(data or b"")
        exif.tobytes()
    except DAMAGE as error:
        logger.warning("the EXIF data are damaged and not written (%s)", error)
        return Image.Exif()
    for entries in (exif, *(exif.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD) if tag in exif)):
        for tag, value in list(entries.items()):
            entries[tag] = _unlettered(value)
    return exif


def _unlettered(value: Any) -> Any:
    """Text that is not ASCII as its bytes: Pillow reads it as Latin-1, and would write question marks."""
    return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value
