"""Read and change EXIF blocks: orientation, sizes, the texts of ComfyUI and the WebUI, and what a TIFF can store.

A block is bytes that begin with `Exif\\0\\0`. Orientation and sizes are changed in place, so that all other bytes stay as they are; Pillow
rewrites a block only to add text, or for a TIFF.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

logger = logging.getLogger(__name__)

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""Exceptions that Pillow raises on broken files."""

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
"""For formats without text chunks: the EXIF tag for a text, used if it is free, and the prefix written before the text."""
FREE_TAGS = (0x010D, 0x013C)
"""Fallback EXIF tags for `prompt` and `workflow` if their own are in use: ComfyUI looks for the prefix, in any tag."""
COMFYUI_TEXT = re.compile(r"([A-Za-z_]\w*):(?=\s*[{\[])")
"""Start of a text that ComfyUI wrote into EXIF."""
SETTINGS = re.compile(r"\bSteps: \d|\bNegative prompt: |^\s*\{.*\}\s*$", re.DOTALL)
"""Found in a user comment written by the WebUI, Fooocus or SwarmUI, but not by a camera."""
DESCRIPTIVE_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, EXIF_IFD, GPS_IFD)
"""TIFF tags that describe the image. Other tags describe how a file stores it, and would corrupt another file."""

_START = b"Exif\0\0"
"""First bytes of a block, as in a JPEG."""


# --- reading -------------------------------------------------------------------------------------


def exif_block(exif: Any, raw_profile: str | None) -> bytes | None:
    """Return the EXIF block with its prefix, if necessary from the text in which ImageMagick stores it, or None."""
    if not exif and raw_profile:
        try:
            exif = bytes.fromhex("".join(raw_profile.split("\n")[3:]))
        except ValueError:
            return None
    while isinstance(exif, bytes) and exif.startswith(_START):
        exif = exif[len(_START) :]
    return _START + exif if isinstance(exif, bytes) and exif.startswith((b"II*\0", b"MM\0*")) else None


def text_from_exif(exif: bytes | None) -> dict[str, str]:
    """Return the texts that ComfyUI and the WebUI store in EXIF data for formats without text chunks, under their names in a PNG."""
    texts: dict[str, str] = {}
    entries = Image.Exif()
    try:
        entries.load(exif or b"")
        comment = dict(entries.get_ifd(EXIF_IFD)).get(USER_COMMENT)
        values = [value for _, value in sorted(entries.items(), reverse=True)]
    except DAMAGE:
        return texts
    for value in values:
        if isinstance(value, (str, bytes)):
            text = decode_text(value) if isinstance(value, bytes) else _latin1_to_utf8(value)
            if match := COMFYUI_TEXT.match(text):
                texts.setdefault(match[1], text[match.end() :].rstrip("\0"))
    settings = _decode_user_comment(comment) if isinstance(comment, (str, bytes)) else ""
    if SETTINGS.search(settings):
        texts.setdefault("parameters", settings)
    return texts


def _latin1_to_utf8(text: str) -> str:
    """Repair UTF-8 text of an EXIF tag, which Pillow decodes as Latin-1."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _decode_user_comment(comment: str | bytes) -> str:
    """Decode EXIF's UserComment, which begins with the name of its encoding. The byte order of UTF-16 depends on the program."""
    if isinstance(comment, str):
        return _latin1_to_utf8(comment.removeprefix("ASCII\0\0\0"))
    encoding, content = comment[:8], comment[8:]
    if encoding == b"UNICODE\0":
        little_endian = content[1::2].count(0) > content[::2].count(0)
        return content.decode("utf-16-le" if little_endian else "utf-16-be", "replace").lstrip("\ufeff").rstrip("\0")
    return decode_text((content if encoding in (b"ASCII\0\0\0", bytes(8)) else comment).rstrip(b"\0"))


def is_adobe_rgb(exif: bytes | None) -> bool:
    """Whether EXIF data mean Adobe RGB, which DCF expresses as an uncalibrated colour space with the interoperability index R03."""
    entries = Image.Exif()
    try:
        entries.load(exif or b"")
        details = dict(entries.get_ifd(EXIF_IFD))
        index = dict(entries.get_ifd(INTEROP_IFD)).get(1) if INTEROP_IFD in details else None
    except DAMAGE:
        return False
    return details.get(0xA001) in (2, 0xFFFF) and str(index).startswith(("R03", "b'R03"))


def decode_text(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


# --- changing bytes ------------------------------------------------------------------------------


def reset_orientation(exif: bytes | None) -> tuple[bytes | None, int | None]:
    """Set the orientation in an EXIF block to upright, leaving all other bytes as they are. Returns the block and its old orientation."""
    if exif is None:
        return None, None
    try:
        for entry, tag, kind in _entries(exif, _unpack(exif, "I", 10)):
            if tag == ORIENTATION:
                code, upright = "I" if kind == 4 else "H", bytearray(exif)
                struct.pack_into(_byte_order(exif) + code, upright, entry + 8, 1)
                orientation = _unpack(exif, code, entry + 8)
                return bytes(upright), orientation if 1 <= orientation <= 8 else 1
    except struct.error:
        logger.warning("the EXIF data are damaged; they are kept unchanged")
    return exif, None


def resize_exif(exif: bytes | None, width: int, height: int) -> bytes | None:
    """Set the sizes in EXIF data to those given, and unlink the thumbnail, which shows the image at its old size."""
    if exif is None:
        return None
    resized, order = bytearray(exif), _byte_order(exif)
    try:
        start = _unpack(exif, "I", 10)
        directories = [start]
        for directory in directories:
            for entry, tag, kind in _entries(exif, directory):
                if tag in (EXIF_IFD, INTEROP_IFD) and len(directories) < 4:
                    directories.append(_unpack(exif, "I", entry + 8))
                elif tag in SIZE_TAGS and kind in (3, 4):
                    struct.pack_into(f"{order}HII", resized, entry + 2, 4, 1, (width, height)[SIZE_TAGS[tag]])
        offset = len(_START) + start
        struct.pack_into(f"{order}I", resized, offset + 2 + 12 * _unpack(exif, "H", offset), 0)
    except struct.error:
        return exif  # damaged; a warning was logged when it was read
    return bytes(resized)


def _entries(exif: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield the offset, tag and type of each entry of the directory at `start`, counted from the end of the prefix. Raises struct.error."""
    first = len(_START) + start + 2
    for entry in range(first, first + 12 * _unpack(exif, "H", first - 2), 12):
        yield entry, _unpack(exif, "H", entry), _unpack(exif, "H", entry + 2)


def _unpack(exif: bytes, code: str, offset: int) -> int:
    return struct.unpack_from(_byte_order(exif) + code, exif, offset)[0]


def _byte_order(exif: bytes) -> str:
    return ">" if exif[6:8] == b"MM" else "<"


# --- rewriting -----------------------------------------------------------------------------------


def descriptive_exif(exif: Image.Exif, xmp: bytes | None = None) -> bytes | None:
    """Return the EXIF data that can be copied from or to a TIFF, with `xmp` if given. Returns None if there are none."""
    kept = Image.Exif()
    for tag in DESCRIPTIVE_TAGS:
        if tag in (EXIF_IFD, GPS_IFD) and tag in exif:  # Pillow would write a more deeply nested directory to the wrong offset of a TIFF
            kept[tag] = {key: _encode_non_ascii(value) for key, value in exif.get_ifd(tag).items() if key != INTEROP_IFD}
        elif tag in exif:
            kept[tag] = _encode_non_ascii(exif[tag])
    if xmp is not None:
        kept[XMP_TAG] = xmp
    return kept.tobytes() if len(kept) else None


def parse_exif(data: bytes | None) -> Image.Exif:
    """Parse EXIF data that are to be changed and written. Returns empty data if they are damaged."""
    exif = Image.Exif()
    try:
        exif.load(data or b"")
        exif.tobytes()
    except DAMAGE as error:
        logger.warning("the EXIF data are damaged and not written (%s)", error)
        return Image.Exif()
    for entries in (exif, *(exif.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD) if tag in exif)):
        for tag, value in list(entries.items()):
            entries[tag] = _encode_non_ascii(value)
    return exif


def _encode_non_ascii(value: Any) -> Any:
    """Convert non-ASCII text back to its bytes: Pillow reads it as Latin-1, but would write question marks."""
    return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value


def add_text(data: bytes | None, tag: int, prefix: str, text: str) -> bytes | None:
    """Add a text to an EXIF block. Returns it unchanged if it has the text already, and with a warning if the tag is in use."""
    exif = parse_exif(data)
    if tag != USER_COMMENT:
        value = (prefix + text).encode("utf-8", "replace")
        candidates = (tag, *(FREE_TAGS if prefix else ()))
        if value in [_to_bytes(exif.get(candidate)) for candidate in candidates]:
            return data
        free = next((candidate for candidate in candidates if candidate not in exif), None)
        if free is None:
            _warn_in_use(prefix or text)
            return data
        exif[free] = value
        return exif.tobytes()
    details = dict(exif.get_ifd(EXIF_IFD))
    if tag in details:
        if _decode_user_comment(details[tag]) != text:
            _warn_in_use("parameters")
        return data
    if INTEROP_IFD in details:
        details[INTEROP_IFD] = exif.get_ifd(INTEROP_IFD)  # replaces its offset in the old block
    exif[EXIF_IFD] = {**details, tag: b"UNICODE\0" + text.encode("utf-16-be", "replace")}
    return exif.tobytes()


def _to_bytes(value: Any) -> bytes:
    value = value.encode("latin-1", "replace") if isinstance(value, str) else value
    return value.rstrip(b"\0") if isinstance(value, bytes) else b""


def _warn_in_use(name: str) -> None:
    logger.warning("text %.80r is not written: its EXIF tag is already in use", name.removesuffix(":"))
