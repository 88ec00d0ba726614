"""Read colour spaces that are stored as code points instead of an ICC profile, and build an equivalent profile.

ITU-T H.273 defines the code points (cICP in PNG, nclx in AVIF, colour tags in video). ICC.1:2001-04 defines the profile.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

Point = tuple[float, float]
"""CIE chromaticity x, y."""

D65: Point = (0.3127, 0.329)
PRIMARIES: dict[int, tuple[Point, Point, Point, Point]] = {
    1: ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06), D65),  # BT.709, sRGB
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.31, 0.316)),  # BT.470 M
    5: ((0.64, 0.33), (0.29, 0.6), (0.15, 0.06), D65),  # BT.470 BG
    6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), D65),  # SMPTE 170M
    7: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), D65),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046), D65),  # BT.2020
    11: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.314, 0.351)),  # DCI P3
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65),  # Display P3
}
"""Red, green, blue and white points by H.273 number."""
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65)
ADOBE_GAMMA = 563 / 256
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
SRGB_CURVES = (1, 2, 6, 13, 14, 15)
"""Transfer functions that are sRGB's, or that programs treat as sRGB."""
HDR_CURVES = {16: "PQ", 18: "HLG"}
"""Transfer functions for which no profile can be built here."""
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50_XYZ = np.array([0.9642, 1.0, 0.8249])


@dataclass(frozen=True)
class CodedColor:
    """H.273 code points of primaries and transfer function. Pillow has already decoded the pixels to full-range RGB."""

    primaries: int
    transfer: int

    @property
    def is_srgb(self) -> bool:
        """Whether a program without colour management shows the pixels correctly."""
        return self.primaries in (1, 2) and self.transfer in SRGB_CURVES

    @property
    def hdr(self) -> str | None:
        """Name of the HDR transfer function, or None if the image is not HDR."""
        return HDR_CURVES.get(self.transfer)

    def chunk(self) -> bytes:
        """Data of the cICP chunk for a PNG, whose pixels are full-range RGB."""
        return bytes([self.primaries, self.transfer, 0, 1])

    def profile(self) -> bytes | None:
        """Build an equivalent ICC profile. Returns None for sRGB and for colours that no profile here describes."""
        if self.is_srgb or self.hdr or self.primaries not in PRIMARIES or self.transfer not in (*SRGB_CURVES, *GAMMAS):
            return None
        return make_profile(PRIMARIES[self.primaries], GAMMAS.get(self.transfer))


def read_coded_color(file: BinaryIO, format: str | None) -> CodedColor | None:
    """Read the code points from the cICP chunk of a PNG or the nclx box of an AVIF. Returns None if there are none."""
    if format == "PNG":
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"cICP" and length == 4:
                primaries, transfer, _matrix, _full_range = file.read(4)
                return CodedColor(primaries, transfer)
            file.seek(length + 4, 1)
    if format == "AVIF":
        file.seek(0)
        head = file.read(2**16)
        start = head.find(b"colrnclx")
        if 0 <= start <= len(head) - 15:
            return CodedColor(*struct.unpack_from(">2H", head, start + 8))
    return None


def profile_from_chunks(chunks: dict[bytes, bytes]) -> bytes | None:
    """Build an ICC profile from the gAMA and cHRM chunks of a PNG. Returns None if they mean sRGB or are missing."""
    if b"sRGB" in chunks or not chunks:
        return None
    gamma = struct.unpack(">I", chunks[b"gAMA"])[0] / 100000 if b"gAMA" in chunks else 1 / 2.2
    points = PRIMARIES[1]
    if b"cHRM" in chunks:
        white, red, green, blue = (tuple(pair) for pair in np.reshape(struct.unpack(">8I", chunks[b"cHRM"]), (4, 2)) / 100000)
        points = (red, green, blue, white)
    srgb_points, srgb_gamma = np.allclose(points, PRIMARIES[1], atol=0.005), abs(gamma - 1 / 2.2) < 0.01
    if not 0.1 < gamma < 10 or (srgb_points and srgb_gamma):
        return None
    return make_profile(points, None if srgb_gamma else 1 / gamma)


def make_profile(points: tuple[Point, Point, Point, Point], gamma: float | None) -> bytes | None:
    """Build a version 2 ICC profile from primaries and white; `gamma` None means sRGB's curve.

    Returns None if the points do not form a triangle.
    """
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] if y else [0.0, 0.0, 0.0] for x, y in points]).T
    primaries, white = columns[:, :3], columns[:, 3]
    try:
        to_xyz = primaries * np.linalg.solve(primaries, white)
        adapt = np.linalg.solve(BRADFORD, np.diag(BRADFORD @ D50_XYZ / (BRADFORD @ white)) @ BRADFORD)
    except np.linalg.LinAlgError:
        return None
    matrix = adapt @ to_xyz
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > 4:
        return None
    curve = _curve(gamma)
    tags = {b"desc": _description("RGB"), b"cprt": b"text\0\0\0\0No copyright\0", b"wtpt": _xyz(D50_XYZ)}
    tags |= {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _assemble_profile(tags)


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))
    values = np.linspace(0, 1, 1024)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return struct.pack(">4s4xI", b"curv", len(values)) + np.rint(linear * 65535).astype(">u2").tobytes()


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def _description(text: str) -> bytes:
    return struct.pack(">4s4xI", b"desc", len(text) + 1) + text.encode("ascii") + b"\0" + bytes(78)


def _assemble_profile(tags: dict[bytes, bytes]) -> bytes:
    table, data, offsets = b"", b"", {}
    start = 132 + 12 * len(tags)
    for name, content in tags.items():
        if content not in offsets:
            data += bytes(-len(data) % 4)
            offsets[content] = start + len(data)
            data += content
        table += name + struct.pack(">2I", offsets[content], len(content))
    size = start + len(data)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head += bytes(68 - len(head)) + struct.pack(">3i", *(round(float(value) * 65536) for value in D50_XYZ))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data
