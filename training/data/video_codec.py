"""Video stills: encode and decode an image as one H.264 intra frame with PyAV (`pip install av`)."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

INSTALL = 'pip install "transformersr[video]"'
CRF = (18, 34)
"""x264's constant rate factor: from barely visible artifacts to a bad stream."""
X264 = {"preset": "fast", "tune": "animation", "threads": "1"}
"""One thread, so that every call gives the same frame."""

YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""RGB to luma and chroma, as in JPEG (ITU-R BT.601, full range)."""


def require_codec() -> None:
    """Raise ValueError if PyAV or its H.264 codec is missing."""
    try:
        video_still(Image.new("RGB", (17, 18)), 0.5)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"preset video needs PyAV with H.264 ({error}): {INSTALL}") from error


def video_still(image: Image.Image, strength: float) -> Image.Image:
    """Compress an RGB image with H.264 and decode it; `strength` is from 0 to 1.

    Raises ImportError without PyAV, and OSError or ValueError if its FFmpeg lacks the codec.
    """
    import av

    frame = av.VideoFrame.from_ndarray(_to_planes(image), format="yuv420p")
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = frame.width, frame.height, "yuv420p", Fraction(1, 25)
    encoder.options = {**X264, "crf": str(_crf(strength))}
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    frames = [frame for packet in [*encoder.encode(frame), *encoder.encode(None)] for frame in decoder.decode(packet)]
    frames += decoder.decode(None)
    return _from_planes(frames[0].to_ndarray(), image)


def compress_roundtrip(image: Image.Image, format: str, **options: int) -> Image.Image:
    """Encode an image in a file format and decode it as RGB."""
    file = io.BytesIO()
    image.save(file, format, **options)
    with Image.open(file) as decoded:
        return decoded.convert("RGB")


def _crf(strength: float) -> float:
    return round(float(np.interp(strength, (0, 1), CRF)), 2)


def _to_planes(image: Image.Image) -> np.ndarray:
    """Convert to YCbCr planes: luma, then the two chroma planes at half size, in rows of the image's width.

    The last row and column are repeated if a side is odd. We convert ourselves because FFmpeg and Pillow round down, which darkens images
    by a level.
    """
    even = np.pad(np.asarray(image), ((0, image.height % 2), (0, image.width % 2), (0, 0)), mode="edge")
    ycc = even @ YCC.T
    chroma = 128 + ycc[..., 1:].reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 2).mean(axis=(1, 3))
    planes = np.concatenate([ycc[..., 0].flatten(), chroma[..., 0].flatten(), chroma[..., 1].flatten()])
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8).reshape(-1, even.shape[1])


def _from_planes(planes: np.ndarray, image: Image.Image) -> Image.Image:
    """Convert planes back to RGB at the size of `image`."""
    width, height = planes.shape[1], planes.shape[0] * 2 // 3
    small = planes[height:].reshape(2, height // 2, width // 2)
    cb, cr = (np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)) - 128.0 for plane in small)
    rgb = np.stack([planes[:height], cb, cr], axis=2) @ np.linalg.inv(YCC).T
    return Image.fromarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8)[: image.height, : image.width])
