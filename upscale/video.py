"""Films: every frame enlarged, in order; sound, subtitles, fonts, chapters and titles are copied as they are.

FFmpeg's libraries read and write in this process, by PyAV. A few frames are in memory at a time, however long the film.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arch.atomic import write_aside
from .image_io import check_pixels, most_pixels
from .planning import PASS_PIXELS, target_size
from .upscaler import Upscaler

logger = logging.getLogger(__name__)

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Suffixes that can be written, with FFmpeg's names of the formats."""
FILMS = (*CONTAINERS, ".webm", ".avi", ".wmv", ".flv", ".ts", ".m2ts", ".mpg", ".mpeg")
"""Suffixes of films. What is no container of H.264 becomes .mkv, which takes every kind of sound and subtitle."""

LIMITED, FULL = 1, 2
"""FFmpeg's numbers of the ranges of brightness."""
MATRICES = (1, 4, 5, 7, 9)
"""FFmpeg's numbers of the ways from RGB to brightness and colour that it can go; an unnamed way is 5, BT.601, as it is there."""
SCALER = 0x4 | 0x2000 | 0x4000 | 0x40000
"""Its bicubic, full chroma on both sides, accurate rounding; its defaults make a picture darker by a level."""


@dataclass(frozen=True)
class _Look:
    """What the first frame of a film is like."""

    height: int
    width: int
    turns: int
    """Quarter turns to the left that a player makes; height and width are those before."""
    deep: bool
    matrix: int
    range: int

    @property
    def upright(self) -> tuple[int, int]:
        return (self.width, self.height) if self.turns % 2 else (self.height, self.width)


KINDS = "mov,matroska,avi,asf,flv,mpegts,mpeg,mpegvideo"
"""FFmpeg's names of what is read."""
READING = {"options": {"protocol_whitelist": "file", "format_whitelist": KINDS}}
"""FFmpeg goes by contents: a playlist under a film's name would have it read other files, of this machine or the network."""


def is_film(path: Path) -> bool:
    """Whether a file is a film, by its suffix."""
    return path.suffix.lower() in FILMS


def film_suffix(path: Path) -> str:
    """The suffix that the enlarged film has."""
    return path.suffix.lower() if path.suffix.lower() in CONTAINERS else ".mkv"


def enlarge_film(
    source: Path,
    target: Path,
    upscaler: Upscaler,
    *,
    factor: float | None = None,
    size: tuple[int, int] | None = None,
    quality: int = 95,
    on_progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Enlarge a film into H.264 of the same frame times, colours and depth (8 or 10 bits); `target` is there whole or not at all.

    Args:
        size: (height, width); whatever comes out is raised to even numbers, which the format wants.
        quality: 1 to 100; 95 is x264's rate factor 16, and two more are one less.
        on_progress: called with the share of the film that is done.

    Raises:
        ValueError: without PyAV, for a file that is no film, and for streams that the target's kind of file cannot hold.
        OSError: for a file that cannot be opened or written.
    """
    av = _import_av()
    if target.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{target}: expected a name ending in {', '.join(CONTAINERS)}")
    try:
        with _opened(source, **READING) as film:
            look = _first_look(film)
        height, width = (side + side % 2 for side in target_size(*look.upright, upscaler.scale, factor, size))
        format = CONTAINERS[target.suffix.lower()]
        with _opened(source, **READING) as film, write_aside(target) as aside, _opened(aside, mode="w", format=format) as out:
            stream = _add_film(out, film, look, height, width, quality)
            _write(out, film, _enlarged(_frames(film, on_progress), look, upscaler, height, width), stream, target)
    except av.FFmpegError as error:
        raise ValueError(f"{source}: cannot be read or written as a film ({error.strerror})") from error


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError('films need PyAV; install it with `pip install "transformersr[video]"`, or `pip install av`') from error
    return av


def _opened(path: Path, **options: Any) -> Any:
    """A container in which titles go through as they are, whatever letters they are in; from PyAV 19 on they do so by themselves."""
    import av

    if int(av.__version__.partition(".")[0]) < 19:
        options["metadata_errors"] = "surrogateescape"
    return av.open(str(path), **options)


def _pictures(film: Any) -> Any:
    """The stream of moving pictures; a cover is none."""
    for stream in film.streams.video:
        if stream.codec_context and not stream.disposition & type(stream.disposition).attached_pic:
            check_pixels(film.name, stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.options = {"max_pixels": str(most_pixels())}  # for those that become larger on the way
            stream.thread_type = "AUTO"
            return stream
    raise ValueError(f"{film.name}: there are no moving pictures in it that can be read")


def _first_look(film: Any) -> _Look:
    frame = next(film.decode(_pictures(film)), None)
    if frame is None:
        raise ValueError(f"{film.name}: not one frame of it can be read")
    if frame.interlaced_frame:
        logger.warning("%s: its frames are interlaced; take the lines apart first (ffmpeg -vf bwdif) for a clean result", film.name)
    matrix = int(frame.colorspace)
    matrix = matrix if matrix in MATRICES else 9 if matrix == 10 else 5
    deep = frame.format.components[0].bits > 8
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return _Look(frame.height, frame.width, turns, deep, matrix, FULL if int(frame.color_range) == FULL else LIMITED)


def _frames(film: Any, on_progress: Callable[[float], None]) -> Iterator[tuple[Any, Any]]:
    """The film in the order of the file: pairs of a frame and None, or of None and a packet of another stream."""
    pictures = _pictures(film)
    length = film.duration / 1e6 if film.duration else None
    begin = (film.start_time or 0) / 1e6
    for packet in film.demux():
        if packet.stream.index != pictures.index:
            yield None, packet
            continue
        for frame in packet.decode():
            yield frame, None
            if length and frame.time is not None:
                on_progress(min(1.0, max(0.0, (frame.time - begin) / length)))


def _enlarged(frames: Iterable[tuple[Any, Any]], look: _Look, upscaler: Upscaler, height: int, width: int) -> Iterator[tuple[Any, Any]]:
    """The same with every frame enlarged, so many together as keep a device busy."""
    together, waiting = max(1, PASS_PIXELS // (look.height * look.width)), []
    for frame, packet in frames:
        if packet is not None:
            yield None, packet
            continue
        waiting.append(frame)
        if len(waiting) == together:
            yield from _enlarged_together(waiting, look, upscaler, height, width)
            waiting = []
    if waiting:
        yield from _enlarged_together(waiting, look, upscaler, height, width)


def _enlarged_together(frames: list[Any], look: _Look, upscaler: Upscaler, height: int, width: int) -> Iterator[tuple[Any, Any]]:
    small = np.stack([np.rot90(_to_rgb(frame, look), look.turns) for frame in frames])
    for frame, rgb in zip(frames, upscaler(small, size=(height, width)), strict=True):
        large = _from_rgb(rgb, look)
        large.pts, large.duration, large.time_base = frame.pts, frame.duration, frame.time_base
        yield large, None


def _to_rgb(frame: Any, look: _Look) -> np.ndarray:
    """`(h, w, 3)` in 8 or 16 bits."""
    return frame.to_ndarray(
        format="rgb48le" if look.deep else "rgb24",
        width=look.width,
        height=look.height,
        src_colorspace=look.matrix,
        dst_colorspace=_another(look.matrix),
        src_color_range=look.range,
        dst_color_range=FULL,
        interpolation=SCALER,
    )


def _from_rgb(rgb: np.ndarray, look: _Look) -> Any:
    """The way back, to the numbers of the encoder."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb48le" if look.deep else "rgb24")
    return frame.reformat(
        format=_pixel_format(look),
        src_colorspace=_another(look.matrix),
        dst_colorspace=look.matrix,
        src_color_range=FULL,
        dst_color_range=look.range,
        interpolation=SCALER,
    )


def _another(matrix: int) -> int:
    """A matrix to name for RGB, which has none: PyAV before 17 takes no notice of the other one where both are the same."""
    return 1 if matrix == 5 else 5


def _pixel_format(look: _Look) -> str:
    return "yuv420p10le" if look.deep else "yuv420p"


def _add_film(out: Any, film: Any, look: _Look, height: int, width: int, quality: int) -> Any:
    """The stream of enlarged frames, said to be of the colours and the rate of the old one."""
    pictures = _pictures(film)
    stream = out.add_stream("libx264", rate=pictures.guessed_rate or pictures.average_rate or 25)
    context, old = stream.codec_context, pictures.codec_context
    context.width, context.height, context.pix_fmt = width, height, _pixel_format(look)
    context.time_base = pictures.time_base
    context.options = {"crf": f"{min(51, max(0, 16 + (95 - quality) / 2)):g}", "preset": "medium", "tune": "animation"}
    for name in ("color_range", "color_primaries", "color_trc", "colorspace"):
        setattr(context, name, getattr(old, name))
    if old.sample_aspect_ratio:
        ratio = old.sample_aspect_ratio
        context.sample_aspect_ratio = 1 / ratio if look.turns % 2 else ratio
    stream.metadata.update({name: text for name, text in pictures.metadata.items() if name in ("language", "title")})
    return stream


def _write(out: Any, film: Any, frames: Iterable[tuple[Any, Any]], stream: Any, target: Path) -> None:
    copies = {old.index: _add_copy(out, old, target) for old in film.streams if old.type in ("audio", "subtitle", "attachment")}
    if others := {old.type for old in film.streams if old.index not in copies and old.index != _pictures(film).index}:
        logger.warning("%s: streams of %s are left out", film.name, " and ".join(sorted(others)))
    out.metadata.update(film.metadata)
    if hasattr(out, "set_chapters") and film.chapters():
        out.set_chapters(film.chapters())
    for frame, packet in frames:
        if frame is not None:
            out.mux(stream.encode(frame))
        elif packet.stream.index in copies and packet.dts is not None:  # the last ones are empty
            packet.stream = copies[packet.stream.index]
            out.mux(packet)
    out.mux(stream.encode(None))


def _add_copy(out: Any, old: Any, target: Path) -> Any:
    try:
        stream = out.add_stream_from_template(old, opaque=True)
    except ValueError as error:
        what = getattr(old.codec_context, "name", None) or "unknown"
        remedy = "take it out of the film first" if target.suffix.lower() == ".mkv" else "give a name that ends in .mkv with -o"
        raise ValueError(f"{old.container.name}: {target.suffix} files cannot hold {old.type} as {what}; {remedy}") from error
    stream.metadata.update(old.metadata)
    stream.disposition = old.disposition.value
    return stream
