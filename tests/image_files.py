"""Small images and PNG files for tests of reading and writing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from transformersr.upscale.image_io import ImageData, read_image, write_image
from transformersr.upscale.metadata import Carried

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def noise(*shape: int, bits: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, shape, dtype=np.uint16 if bits == 16 else np.uint8)


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, x + y], axis=2).astype(np.uint8)


def plain_png(samples: np.ndarray, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """Encode a 16-bit PNG directly from the specification, with filter 0."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [samples[top::down, left::right].astype(">u2") for left, top, right, down in passes]
    data = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    return SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def chunks(path: Path) -> dict[bytes, bytes]:
    data, found, at = path.read_bytes(), {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found[data[at + 4 : at + 8]] = found.get(data[at + 4 : at + 8], b"") + data[at + 8 : at + 8 + length]
        at += length + 12
    return found


def write_and_read(image: ImageData, path: Path, **options) -> ImageData:
    write_image(image, path, **options)
    return read_image(path)


def image_data(color: np.ndarray, alpha: np.ndarray | None = None, **carried) -> ImageData:
    return ImageData(color.astype(np.float32), None if alpha is None else alpha.astype(np.float32), Carried(**carried))


def save_image(path: Path, size: tuple[int, int] = (9, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 90, 30)).save(path)
    return path
