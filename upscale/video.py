"""Upscale videos frame by frame. Sound, subtitles, fonts, chapters and titles are copied unchanged.

FFmpeg's libraries read and write the files in this process, through PyAV. Only a few frames are in memory at a time, however long the
video is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import write_aside
from .files import VIDEOS
from .planning import pass_pixels, target_size
from .upscaler import Upscaler
from .video_read import FULL, READING, FrameFormat, TimedFrame, VideoSource, frame_format
from .video_write import CONTAINERS, Streams, add_video, pixel_format, warn_of_losses

logger = logging.getLogger(__name__)

SCALER = 0x4 | 0x2000 | 0x4000 | 0x40000
"""FFmpeg's flags for bicubic scaling, full chroma on both sides and accurate rounding. Its defaults make an image one level darker."""


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEOS


def video_suffix(path: Path) -> str:
    """Return the suffix for the upscaled video: its own, or if that cannot hold H.264, .mkv, which takes any kind of sound and subtitle."""
    return path.suffix.lower() if path.suffix.lower() in CONTAINERS else ".mkv"


def video_size(source: Path) -> tuple[int, int]:
    """Return (height, width) of a video's frames as a player shows them. Raises the errors of `upscale_video`."""
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
    """Upscale a video to H.264 with the same frame times, colours and bit depth (8 or 10 bits). `target` is written atomically.

    Args:
        size: (height, width). The resulting sides are rounded up to even numbers, as the format requires.
        quality: 1 to 100; 95 is x264's rate factor 16, and two more lower it by one.
        on_progress: called with the completed fraction of the video.

    Raises:
        ValueError: if PyAV is missing, the file is not a video, or the target's format is not supported.
        OSError: if a file cannot be opened or written.
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
            frames = _upscale_frames(video.frames(on_progress), like, upscaler, height, width, pixel_format(like, format))
            _write(out, video, frames, stream, target)
    except av.FFmpegError as error:
        raise ValueError(f"{source}: cannot be read or written as a video ({error.strerror})") from error
    warn_of_losses(video)


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError('videos need PyAV; install it with `pip install "transformersr[video]"`, or `pip install av`') from error
    return av


def open_container(path: Path, **options: Any) -> Any:
    """Open a file with any name (FFmpeg treats text before a colon as a protocol), keeping metadata that are not valid UTF-8."""
    import av

    if int(av.__version__.partition(".")[0]) < 19:  # the default in later versions
        options["metadata_errors"] = "surrogateescape"
    return av.open(f"file:{path}", **options)


Items = Iterator[tuple[Any, Any]]
"""Pairs of a frame and None, or of None and a packet of another stream, in file order."""


def _upscale_frames(
    frames: Iterable[tuple[TimedFrame | None, Any]], like: FrameFormat, upscaler: Upscaler, height: int, width: int, pixels: str
) -> Items:
    """Upscale every frame and convert it for the encoder, in batches that keep the device busy."""
    batch_size, batch = frames_together(like.height, like.width, upscaler), []
    for frame, packet in frames:
        if frame is None:
            yield None, packet
            continue
        batch.append(frame)
        if len(batch) == batch_size:
            yield from _upscale_batch(batch, like, upscaler, height, width, pixels)
            batch = []
    if batch:
        yield from _upscale_batch(batch, like, upscaler, height, width, pixels)


def frames_together(height: int, width: int, upscaler: Upscaler) -> int:
    """Return how many frames of a size go through the network at once."""
    return max(1, pass_pixels(on_cpu=upscaler.model.device.type == "cpu") // (height * width))


def _upscale_batch(frames: list[TimedFrame], like: FrameFormat, upscaler: Upscaler, height: int, width: int, pixels: str) -> Items:
    small = np.stack([np.rot90(_to_rgb(timed.frame, like), like.turns) for timed in frames])
    for timed, rgb in zip(frames, upscaler(small, size=(height, width)), strict=True):
        large = _from_rgb(rgb, like, pixels)
        large.pts, large.duration, large.time_base = timed.pts, timed.frame.duration, timed.time_base
        yield large, None


def _to_rgb(frame: Any, like: FrameFormat) -> np.ndarray:
    """Convert a frame to `(h, w, 3)` with 8 or 16 bits, or `(h, w, 4)` for transparent video."""
    return frame.to_ndarray(
        format=_rgb_format(like),
        width=like.width,
        height=like.height,
        src_colorspace=like.matrix,
        dst_colorspace=_rgb_matrix(like.matrix),
        src_color_range=like.range,
        dst_color_range=FULL,
        interpolation=SCALER,
    )


def _from_rgb(rgb: np.ndarray, like: FrameFormat, pixels: str) -> Any:
    """Convert RGB to the encoder's pixel format, composited onto white if that has no transparency."""
    import av

    if like.alpha and not pixels.startswith("yuva"):
        rgb = _composite_onto_white(rgb)
    format = _rgb_format(like) if rgb.shape[2] == 4 else _rgb_format(replace(like, alpha=False))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=format)
    return frame.reformat(
        format=pixels,
        src_colorspace=_rgb_matrix(like.matrix),
        dst_colorspace=like.matrix,
        src_color_range=FULL,
        dst_color_range=like.range,
        interpolation=SCALER,
    )


def _rgb_format(like: FrameFormat) -> str:
    if like.alpha:
        return "rgba64le" if like.deep else "rgba"
    return "rgb48le" if like.deep else "rgb24"


def _composite_onto_white(rgba: np.ndarray) -> np.ndarray:
    white = np.iinfo(rgba.dtype).max
    alpha = rgba[..., 3:] / np.float32(white)
    return np.rint(rgba[..., :3] * alpha + white * (1 - alpha)).astype(rgba.dtype)


def _rgb_matrix(matrix: int) -> int:
    """Return a placeholder matrix for RGB, which has none. It differs from `matrix`, because PyAV before 17 ignores both if equal."""
    return 1 if matrix == 5 else 5


def _write(out: Any, source: VideoSource, frames: Items, stream: Any, target: Path) -> None:
    other_streams = Streams(out, source, target)
    out.metadata.update(source.container.metadata)
    if hasattr(out, "set_chapters") and source.container.chapters():
        out.set_chapters(source.container.chapters())
    for frame, packet in frames:
        if frame is not None:
            out.mux(stream.encode(frame))
        else:
            other_streams.write(packet)
    out.mux(stream.encode(None))
    other_streams.finish()
