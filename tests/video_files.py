"""Short videos, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from synthetic_images import synthetic_image

SAMPLE_RATE = 16000


def make_video(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    size: tuple[int, int] = (32, 32),
    frames: int = 10,
    rate: int | Fraction = 10,
    times: Sequence[int] | None = None,
    rgba: np.ndarray | None = None,
    sound: str | None = None,
    options: dict[str, str] | None = None,
    rotation: int = 0,
    title: str | None = None,
    **tags: int,
) -> Path:
    """Write a moving drawing, or `rgba` in every frame. `times` count frames, `sound` is a tone's codec, `tags` are codec attributes."""
    av = pytest.importorskip("av")
    with av.open(f"file:{path}", "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.options = options or {}
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        if title:
            out.metadata["title"] = title
        tone = out.add_stream(sound, rate=SAMPLE_RATE, layout="mono") if sound else None
        if sound and "wma" in sound:
            tone.bit_rate = 32000
        drawing = np.asarray(synthetic_image(1, max(size)))[: size[1], : size[0]]
        for index in range(frames):
            array = np.roll(drawing, index, axis=1) if rgba is None else rgba
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24" if rgba is None else "rgba")
            frame = frame.reformat(format=pixels, dst_colorspace=tags.get("colorspace"), dst_color_range=tags.get("color_range"))
            frame.pts, frame.time_base = times[index] if times else index, 1 / Fraction(rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if tone:
            block = SAMPLE_RATE // 10
            for start in range(0, int(frames * SAMPLE_RATE / rate), block):
                wave = (8000 * np.sin(np.arange(start, start + block) / 10)).astype(np.int16)[None]
                piece = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
                out.mux(tone.encode(piece))
            out.mux(tone.encode(None))
    return path
