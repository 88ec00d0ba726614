"""Videos: every frame upscaled, in order; sound, subtitles, fonts, chapters and titles are copied as they are.

FFmpeg's libraries read and write in this process, by PyAV. A few frames are in memory at a time, however long the video.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..arch.atomic import write_aside
from .files import VIDEOS
from .planning import CPU_PASS_PIXELS, PASS_PIXELS, target_size
from .upscaler import Upscaler
from .video_read import FULL, READING, FrameFormat, TimedFrame, VideoSource, frame_format
from .video_write import CONTAINERS, Streams, add_video, pixel_format, say_what_is_missing

logger = logging.getLogger(__name__)

SCALER = 0x4 | 0x2000 | 0x4000 | 0x40000
"""Its bicubic, full chroma on both sides, accurate rounding; its defaults make an image darker by a level."""


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEOS


def video_suffix(path: Path) -> str:
    """The suffix that the upscaled video has; .mkv, which takes every kind of sound and subtitle, where its own is none of H.264."""
    return path.suffix.lower() if path.suffix.lower() in CONTAINERS else ".mkv"


def video_size(source: Path) -> tuple[int, int]:
    """(height, width) of a video's frames as a player shows them. Raises as `upscale_video`."""
    av = _import_av()
    try:
        with open_container(source, **READING) as container:
            return frame_format(VideoSource(source, container)).upright
    except av.FFmpegError as error:
        raise ValueError(f"{source}: cannot be read as a video ({error.strerror})") from error


def upscale_video(
    source: Path,
    target: Path,
    upscaler: Upscaler,
    *,
    factor: float | None = None,
    size: tuple[int, int] | None = None,
    quality: int = 95,
    on_progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Upscale a video into H.264 of the same frame times, colours and depth (8 or 10 bits); `target` is there whole or not at all.

    Args:
        size: (height, width); whatever comes out is raised to even numbers, which the format wants.
        quality: 1 to 100; 95 is x264's rate factor 16, and two more are one less.
        on_progress: called with the share of the video that is done.

    Raises:
        ValueError: without PyAV, for a file that is no video, and for streams that the target's kind of file cannot hold.
        OSError: for a file that cannot be opened or written.
    """
    av = _import_av()
    if target.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{target}: expected a name ending in {', '.join(CONTAINERS)}")
    try:
        with open_container(source, **READING) as container:
            like = frame_format(VideoSource(source, container))
        height, width = (side + side % 2 for side in target_size(*like.upright, upscaler.scale, factor, size))
        format = CONTAINERS[target.suffix.lower()]
        with (
            open_container(source, **READING) as container,
            write_aside(target) as aside,
            open_container(aside, mode="w", format=format) as out,
        ):
            video = VideoSource(source, container)
            stream = add_video(out, video, like, height, width, quality)
            frames = _upscaled(video.frames(on_progress), like, upscaler, height, width, pixel_format(like, format))
            _write(out, video, frames, stream, target)
    except av.FFmpegError as error:
        raise ValueError(f"{source}: cannot be read or written as a video ({error.strerror})") from error
    say_what_is_missing(video)


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError('videos need PyAV; install it with `pip install "transformersr[video]"`, or `pip install av`') from error
    return av


def open_container(path: Path, **options: Any) -> Any:
    """A file, whatever its name (FFmpeg takes what is before a colon for a protocol), whose titles go through in any letters."""
    import av

    if int(av.__version__.partition(".")[0]) < 19:  # from then on by itself
        options["metadata_errors"] = "surrogateescape"
    return av.open(f"file:{path}", **options)


Items = Iterator[tuple[Any, Any]]
"""Pairs of a frame and None, or of None and a packet of another stream, in the order of the file."""


def _upscaled(
    frames: Iterable[tuple[TimedFrame | None, Any]], like: FrameFormat, upscaler: Upscaler, height: int, width: int, pixels: str
) -> Items:
    """Every frame upscaled and ready for the encoder, so many together as keep a device busy."""
    together, waiting = frames_together(like.height, like.width, upscaler), []
    for frame, packet in frames:
        if frame is None:
            yield None, packet
            continue
        waiting.append(frame)
        if len(waiting) == together:
            yield from _upscaled_together(waiting, like, upscaler, height, width, pixels)
            waiting = []
    if waiting:
        yield from _upscaled_together(waiting, like, upscaler, height, width, pixels)


def frames_together(height: int, width: int, upscaler: Upscaler) -> int:
    """How many frames of a size go through the network at once."""
    on_cpu = next(upscaler.model.parameters()).device.type == "cpu"
    return max(1, (CPU_PASS_PIXELS if on_cpu else PASS_PIXELS) // (height * width))


def _upscaled_together(frames: list[TimedFrame], like: FrameFormat, upscaler: Upscaler, height: int, width: int, pixels: str) -> Items:
    small = np.stack([np.rot90(_to_rgb(one.frame, like), like.turns) for one in frames])
    for one, rgb in zip(frames, upscaler(small, size=(height, width)), strict=True):
        large = _from_rgb(rgb, like, pixels)
        large.pts, large.duration, large.time_base = one.pts, one.frame.duration, one.time_base
        yield large, None


def _to_rgb(frame: Any, like: FrameFormat) -> np.ndarray:
    """`(h, w, 3)` in 8 or 16 bits, `(h, w, 4)` of a transparent video."""
    return frame.to_ndarray(
        format=_rgb_format(like),
        width=like.width,
        height=like.height,
        src_colorspace=like.matrix,
        dst_colorspace=_another(like.matrix),
        src_color_range=like.range,
        dst_color_range=FULL,
        interpolation=SCALER,
    )


def _from_rgb(rgb: np.ndarray, like: FrameFormat, pixels: str) -> Any:
    """The way back, to the numbers of the encoder; on white where it takes no transparency."""
    import av

    if like.alpha and not pixels.startswith("yuva"):
        rgb = _on_white(rgb)
    format = _rgb_format(like) if rgb.shape[2] == 4 else _rgb_format(replace(like, alpha=False))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=format)
    return frame.reformat(
        format=pixels,
        src_colorspace=_another(like.matrix),
        dst_colorspace=like.matrix,
        src_color_range=FULL,
        dst_color_range=like.range,
        interpolation=SCALER,
    )


def _rgb_format(like: FrameFormat) -> str:
    if like.alpha:
        return "rgba64le" if like.deep else "rgba"
    return "rgb48le" if like.deep else "rgb24"


def _on_white(rgba: np.ndarray) -> np.ndarray:
    white = np.iinfo(rgba.dtype).max
    alpha = rgba[..., 3:] / np.float32(white)
    return np.rint(rgba[..., :3] * alpha + white * (1 - alpha)).astype(rgba.dtype)


def _another(matrix: int) -> int:
    """A matrix to name for RGB, which has none: PyAV before 17 takes no notice of the other one where both are the same."""
    return 1 if matrix == 5 else 5


def _write(out: Any, source: VideoSource, frames: Items, stream: Any, target: Path) -> None:
    others = Streams(out, source, target)
    out.metadata.update(source.container.metadata)
    if hasattr(out, "set_chapters") and source.container.chapters():
        out.set_chapters(source.container.chapters())
    for frame, packet in frames:
        if frame is not None:
            out.mux(stream.encode(frame))
        else:
            others.write(packet)
    out.mux(stream.encode(None))
    others.finish()
