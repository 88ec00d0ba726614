"""What goes with the pixels of an image: profile, EXIF, XMP, text, resolution and colour chunks, taken from Pillow and given back to it.

What each format keeps of it:

- PNG: everything in `Carried`.
- TIFF: ICC, EXIF, XMP and dpi; text as in JPEG, without the comment.
- WebP: ICC, EXIF and XMP; text as in JPEG, without the comment. A grey ICC profile is dropped, as grey becomes colour.
- JPEG: ICC, EXIF, XMP and dpi; the comment, and of the text what has a place in `EXIF_TEXT`.
- GIF: the comment.
- BMP: dpi.

Colours that a PNG or an AVIF tells by numbers become an ICC profile in the other formats. What a format has no place for is named in a
warning. Never kept: IPTC, and chunks of one vendor. EXIF data stay byte for byte, except in TIFF, where text is added to them, and for what
no longer fits: sizes become those of the image, and the thumbnail goes.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image, PngImagePlugin

from .color import ADOBE_GAMMA, ADOBE_RGB, CodedColor, make_profile, profile_from_chunks

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
SIZE_TAGS = {0x0100: 0, 0x0101: 1, 0xA002: 0, 0xA003: 1, 0x1001: 0, 0x1002: 1}
"""EXIF tags with the width (0) or the height (1) of the image."""
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
FREE_TAGS = (0x010D, 0x013C)
"""EXIF tags for `prompt` and `workflow` where their own are in use: ComfyUI goes by what is written before the text, in any of them."""
COMFYUI_TEXT = re.compile(r"([A-Za-z_]\w*):(?=\s*[{\[])")
"""How text begins that ComfyUI wrote into EXIF."""
SETTINGS = re.compile(r"\bSteps: \d|\bNegative prompt: |^\s*\{.*\}\s*$", re.DOTALL)
"""In a user comment that the WebUI, Fooocus or SwarmUI wrote, rather than a camera."""
TECHNICAL_TEXT = ("date:", "png:", "exif:", "pdf:", "icc:", "Raw profile", "Creation Time", "Software")
"""How names of text begin that programs write about the file itself, and whose loss is none."""
DESCRIPTIVE_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, EXIF_IFD, GPS_IFD)
"""TIFF tags about the image. The others are about how a file stores it, and would break another file."""

_EXIF_START = b"Exif\0\0"
_XMP_START = b"http://ns.adobe.com/xap/1.0/\0"
"""What EXIF and XMP data begin with in a JPEG."""
_XMP_KEY = "XML:com.adobe.xmp"
"""The text chunk of a PNG that holds XMP."""


@dataclass
class Carried:
    """What goes with the pixels of an image."""

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
    coded_color: CodedColor | None = None
    """What the chunk cICP of a PNG or the nclx of an AVIF tells, where that is not sRGB."""


# --- reading -------------------------------------------------------------------------------------


def read_carried(
    image: Image.Image, tiff_exif: bytes | None, coded_color: CodedColor | None = None, *, grey: bool, bits: int, animated: bool
) -> tuple[Carried, int]:
    """What a loaded image carries, and the orientation, 1 to 8, in which its pixels are stored.

    `tiff_exif` is the `descriptive_exif` that a TIFF had before it was loaded; the keywords go into the result as they are.
    """
    info, text = image.info, _text(image)
    xmp_text, exif_text = text.pop(_XMP_KEY, None), text.pop("Raw profile type exif", None)
    xmp, xmp_orientation = _take_xmp_orientation(info.get("xmp") or _xmp_of_older_pillow(image) or xmp_text)
    exif, orientation = _take_orientation(tiff_exif or _exif_block(info.get("exif"), exif_text))
    text = {**_text_in_exif(exif), **text}
    dpi = info.get("dpi")
    profile = _fitting_profile(image, grey)
    numbers = None if coded_color is None or coded_color.is_srgb or (profile and image.format != "PNG") else coded_color
    if profile is None and numbers is None and not grey and _is_adobe_rgb(exif):
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
        coded_color=numbers,
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


def _text_in_exif(exif: bytes | None) -> dict[str, str]:
    """The text that ComfyUI and the WebUI put into EXIF data where a format has no text of its own, by the names that it has in a PNG."""
    found: dict[str, str] = {}
    entries = Image.Exif()
    try:
        entries.load(exif or b"")
        comment = dict(entries.get_ifd(EXIF_IFD)).get(USER_COMMENT)
        values = [value for _, value in sorted(entries.items(), reverse=True)]
    except DAMAGE:
        return found
    for value in values:
        if isinstance(value, (str, bytes)):
            written = _decoded_text(value) if isinstance(value, bytes) else _unmangled(value)
            if match := COMFYUI_TEXT.match(written):
                found.setdefault(match[1], written[match.end() :].rstrip("\0"))
    settings = _user_comment(comment) if isinstance(comment, (str, bytes)) else ""
    if SETTINGS.search(settings):
        found.setdefault("parameters", settings)
    return found


def _unmangled(text: str) -> str:
    """Text of an EXIF tag in UTF-8, which Pillow takes for Latin-1."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _user_comment(comment: str | bytes) -> str:
    """The text of EXIF's UserComment, which begins with the name of its encoding; programs differ in the order of UTF-16's bytes."""
    if isinstance(comment, str):
        return _unmangled(comment.removeprefix("ASCII\0\0\0"))
    kind, content = comment[:8], comment[8:]
    if kind == b"UNICODE\0":
        little = content[1::2].count(0) > content[::2].count(0)
        return content.decode("utf-16-le" if little else "utf-16-be", "replace").lstrip("\ufeff").rstrip("\0")
    return _decoded_text((content if kind in (b"ASCII\0\0\0", bytes(8)) else comment).rstrip(b"\0"))


def _is_adobe_rgb(exif: bytes | None) -> bool:
    """Whether a camera says so, in the way of DCF: no colour space by number, and the interoperability index R03."""
    entries = Image.Exif()
    try:
        entries.load(exif or b"")
        details = dict(entries.get_ifd(EXIF_IFD))
        index = dict(entries.get_ifd(INTEROP_IFD)).get(1) if INTEROP_IFD in details else None
    except DAMAGE:
        return False
    return details.get(0xA001) in (2, 0xFFFF) and str(index).startswith(("R03", "b'R03"))


def _take_orientation(exif: bytes | None) -> tuple[bytes | None, int | None]:
    """The EXIF block with an upright orientation, otherwise byte for byte the same, and the orientation it had."""
    if exif is None:
        return None, None
    try:
        for entry, tag, kind in _entries(exif, _number(exif, "I", 10)):
            if tag == ORIENTATION:
                code, upright = "I" if kind == 4 else "H", bytearray(exif)
                struct.pack_into(_order(exif) + code, upright, entry + 8, 1)
                orientation = _number(exif, code, entry + 8)
                return bytes(upright), orientation if 1 <= orientation <= 8 else 1
    except struct.error:
        logger.warning("the EXIF data are damaged, and kept as they are")
    return exif, None


def _order(exif: bytes) -> str:
    return ">" if exif[6:8] == b"MM" else "<"


def _number(exif: bytes, code: str, place: int) -> int:
    return struct.unpack_from(_order(exif) + code, exif, place)[0]


def _entries(exif: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Place, tag and type of each entry of a directory, which begins at `start` behind EXIF's own beginning. Raises struct.error."""
    first = len(_EXIF_START) + start + 2
    for entry in range(first, first + 12 * _number(exif, "H", first - 2), 12):
        yield entry, _number(exif, "H", entry), _number(exif, "H", entry + 2)


def fitted_exif(exif: bytes | None, width: int, height: int) -> bytes | None:
    """EXIF data of an image of another size: its sizes are those given, and the thumbnail, of the old one, is not found any more."""
    if exif is None:
        return None
    fitted, order = bytearray(exif), _order(exif)
    try:
        start = _number(exif, "I", 10)
        directories = [start]
        for directory in directories:
            for entry, tag, kind in _entries(exif, directory):
                if tag in (EXIF_IFD, INTEROP_IFD) and len(directories) < 4:
                    directories.append(_number(exif, "I", entry + 8))
                elif tag in SIZE_TAGS and kind in (3, 4):
                    struct.pack_into(f"{order}HII", fitted, entry + 2, 4, 1, (width, height)[SIZE_TAGS[tag]])
        place = len(_EXIF_START) + start
        struct.pack_into(f"{order}I", fitted, place + 2 + 12 * _number(exif, "H", place), 0)
    except struct.error:
        return exif  # damaged, which reading has said
    return bytes(fitted)


def fitted_xmp(xmp: bytes | None, width: int, height: int) -> bytes | None:
    """XMP data of an image of another size, as `fitted_exif`."""
    if xmp is None:
        return None
    for names, side in ((rb"tiff:ImageWidth|exif:PixelXDimension", width), (rb"tiff:ImageLength|exif:PixelYDimension", height)):
        xmp = re.sub(rb'((?:%s)(?:="|>))\d+' % names, rb"\g<1>%d" % side, xmp)
    return re.sub(rb"<(xmp:Thumbnails|xapGImg:image)\b.*?</\1>", b"", xmp, flags=re.DOTALL)


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


def pil_info(carried: Carried, size: tuple[int, int]) -> dict[str, Any]:
    """What is carried, by the names that it has in the `info` of a Pillow image of a size (width, height)."""
    profile = carried.icc_profile or (carried.coded_color and not carried.grey and carried.coded_color.profile()) or None
    exif, xmp = fitted_exif(carried.exif, *size), fitted_xmp(carried.xmp, *size)
    return {**carried.text, **_without_none({"icc_profile": profile, "exif": exif, "xmp": xmp, "dpi": carried.dpi})}


def save_options(carried: Carried, format: str, quality: int, size: tuple[int, int]) -> dict[str, Any]:
    """Arguments for Pillow's `save` of an image of a size (width, height); `format` is its name of the format.

    Warnings tell what the format cannot hold, or has no room for.
    """
    carried = replace(carried, exif=fitted_exif(carried.exif, *size), xmp=fitted_xmp(carried.xmp, *size))
    profile, dpi = carried.icc_profile, carried.dpi
    options: dict[str, Any]
    if format == "PNG":
        return _without_none({"pnginfo": _png_info(carried), "icc_profile": profile, "exif": carried.exif, "dpi": dpi})
    _say_what_has_no_place(carried, format)
    profile = profile or _profile_of_numbers(carried, format)
    if format == "TIFF":
        tags = descriptive_exif(_parsed(_exif_with_text(carried, format)), carried.xmp)
        options = {"exif": None if tags is None else _parsed(tags), "icc_profile": profile, "dpi": dpi}
    elif format == "WEBP":
        profile = None if profile is not None and profile[16:20] == b"GRAY" else profile
        coding = {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
        options = {"exif": _exif_with_text(carried, format), "icc_profile": profile, "xmp": carried.xmp, "method": 4, **coding}
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
    return _without_none(options)


def _comment(carried: Carried) -> bytes | None:
    return carried.text.get("Comment", "").encode("utf-8", "replace")[:MARKER_LIMIT] or None


def _profile_of_numbers(carried: Carried, format: str) -> bytes | None:
    """An ICC profile in place of what a PNG or an AVIF tells by numbers, for formats that know profiles alone."""
    numbers = carried.coded_color
    if numbers is None or carried.grey:
        return None if carried.grey else profile_from_chunks(carried.color_chunks)
    profile = numbers.profile()
    if profile is None:
        kind = f"HDR ({numbers.hdr})" if numbers.hdr else f"of primaries {numbers.primaries} and transfer function {numbers.transfer}"
        logger.warning("the colours are %s, which %s files cannot say; write a PNG to keep them right", kind, format)
    return profile


def _say_what_has_no_place(carried: Carried, format: str) -> None:
    places = {"JPEG": (*EXIF_TEXT, "Comment"), "GIF": ("Comment",), "BMP": ()}.get(format, tuple(EXIF_TEXT))
    lost = [repr(key)[:80] for key in carried.text if key not in places and not key.startswith(TECHNICAL_TEXT)]
    if format in ("GIF", "BMP"):
        held = {"an ICC profile": carried.icc_profile or carried.coded_color, "EXIF data": carried.exif, "XMP data": carried.xmp}
        lost += [what for what, value in held.items() if value is not None]
    elif format == "WEBP" and carried.icc_profile is not None and carried.icc_profile[16:20] == b"GRAY":
        lost.append("a profile of grey")
    if lost:
        logger.warning("not written, as %s files have no place for it: %s", format, ", ".join(lost))


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _png_info(carried: Carried) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    numbers = {} if carried.coded_color is None else {b"cICP": carried.coded_color.chunk()}
    for name, data in {**carried.color_chunks, **numbers}.items():
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
    """The EXIF block with one text more, or as it is where the text is in it, or its tag in use, which a warning says."""
    exif = _parsed(data)
    if tag != USER_COMMENT:
        written = (start + text).encode("utf-8", "replace")
        tags = (tag, *(FREE_TAGS if start else ()))
        if written in [_bytes(exif.get(one)) for one in tags]:
            return data
        free = next((one for one in tags if one not in exif), None)
        if free is None:
            return _in_use(data, start or text)
        exif[free] = written
        return exif.tobytes()
    details = dict(exif.get_ifd(EXIF_IFD))
    if tag in details:
        return data if _user_comment(details[tag]) == text else _in_use(data, "parameters")
    if INTEROP_IFD in details:
        details[INTEROP_IFD] = exif.get_ifd(INTEROP_IFD)  # in place of where it was in the old block
    exif[EXIF_IFD] = {**details, tag: b"UNICODE\0" + text.encode("utf-16-be", "replace")}
    return exif.tobytes()


def _bytes(value: Any) -> bytes:
    value = value.encode("latin-1", "replace") if isinstance(value, str) else value
    return value.rstrip(b"\0") if isinstance(value, bytes) else b""


def _in_use(data: bytes | None, name: str) -> bytes | None:
    logger.warning("text %.80r is not written: its place in the EXIF data is in use", name.removesuffix(":"))
    return data


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
