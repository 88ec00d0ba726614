"""Stills of videos: an image through a block codec, as one intra frame of H.264, by PyAV (`pip install av`)."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

INSTALL = 'pip install "transformersr[video]"'
CRF = (18, 34)
"""x264's constant rate factor: from hardly visible damage to that of a bad stream."""
X264 = {"preset": "fast", "tune": "animation", "threads": "1"}
"""One thread, so that a frame is the same on every call."""

YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""RGB to brightness and colour differences, as in JPEG (ITU-R BT.601, full range)."""


def require_codec() -> None:
    """Raise ValueError where PyAV, or H.264 in it, is missing."""
    try:
        video_still(Image.new("RGB", (17, 18)), 0.5)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"preset video needs PyAV with H.264 ({error}): {INSTALL}") from error


def video_still(image: Image.Image, strength: float) -> Image.Image:
    """An RGB image as H.264 gives it back; the strength is from 0 to 1.

    Raises ImportError without PyAV, OSError or ValueError where its FFmpeg lacks the codec.
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


def saved(image: Image.Image, format: str, **options: int) -> Image.Image:
    """An image as it comes back from a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    with Image.open(file) as decoded:
        return decoded.convert("RGB")


def _crf(strength: float) -> float:
    return round(float(np.interp(strength, (0, 1), CRF)), 2)


def _to_planes(image: Image.Image) -> np.ndarray:
    """Brightness and, at half size, the two colour differences, one after another in rows of the image's width.

    The last row and column are there twice where a side is odd. The sums are our own, since those of FFmpeg and of Pillow round down, which
    makes images darker by a level.
    """
    even = np.pad(np.asarray(image), ((0, image.height % 2), (0, image.width % 2), (0, 0)), mode="edge")
    ycc = even @ YCC.T
    colors = 128 + ycc[..., 1:].reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 2).mean(axis=(1, 3))
    planes = np.concatenate([ycc[..., 0].flatten(), colors[..., 0].flatten(), colors[..., 1].flatten()])
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8).reshape(-1, even.shape[1])


def _from_planes(planes: np.ndarray, image: Image.Image) -> Image.Image:
    """The way back, to the size of `image`."""
    width, height = planes.shape[1], planes.shape[0] * 2 // 3
    small = planes[height:].reshape(2, height // 2, width // 2)
    cb, cr = (np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)) - 128.0 for plane in small)
    rgb = np.stack([planes[:height], cb, cr], axis=2) @ np.linalg.inv(YCC).T
    return Image.fromarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8)[: image.height, : image.width])
