"""Write a video file: the upscaled frames, and every other stream, copied or, if the format cannot hold it, converted.

A problem with one stream never fails the video. Each stream that is converted or left out is logged in one line.
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from .video_read import FrameFormat, VideoSource

logger = logging.getLogger(__name__)

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Suffixes that can be written, with FFmpeg's names of the formats."""
ALPHA_ENCODERS = {"mov": ("prores_ks", "yuva444p10le"), "matroska": ("libvpx-vp9", "yuva420p")}
"""Encoder and pixel format for transparent video, for the formats that can hold it."""
AUDIO_ENCODERS = {"mp4": "aac", "mov": "aac", "matroska": "flac"}
"""Encoders for audio that a format cannot hold unchanged. Matroska, which holds nearly everything, gets it losslessly."""
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""Channel layouts for files that only give the number of channels."""
SUBTITLE_ENCODERS = {"mp4": "mov_text", "mov": "mov_text", "matroska": "srt"}
"""Encoders for text subtitles."""


def pixel_format(like: FrameFormat, format: str) -> str:
    """Return FFmpeg's name of the pixel format that the encoder takes."""
    if like.alpha and format in ALPHA_ENCODERS:
        return ALPHA_ENCODERS[format][1]
    return "yuv420p10le" if like.deep else "yuv420p"


def add_video(out: Any, source: VideoSource, like: FrameFormat, height: int, width: int, quality: int) -> Any:
    """Add the stream of upscaled frames, with the colour tags and the frame rate of the source's stream."""
    format, old_stream = out.format.name, source.stream
    transparent = like.alpha and format in ALPHA_ENCODERS
    codec = ALPHA_ENCODERS[format][0] if transparent else "libx264"
    stream = out.add_stream(codec, rate=old_stream.guessed_rate or old_stream.average_rate or 25)
    context, old = stream.codec_context, old_stream.codec_context
    context.width, context.height, context.pix_fmt = width, height, pixel_format(like, format)
    context.time_base = old_stream.time_base
    context.options = _encoder_options(codec, like, quality)
    for name in ("color_primaries", "color_trc"):
        setattr(context, name, getattr(old, name))
    context.colorspace = like.colorspace
    context.color_range = old.color_range if like.colorspace == int(old.colorspace) else like.range
    if old.sample_aspect_ratio:
        ratio = old.sample_aspect_ratio
        context.sample_aspect_ratio = 1 / ratio if like.turns % 2 else ratio
    stream.metadata.update({name: text for name, text in old_stream.metadata.items() if name in ("language", "title")})
    if like.alpha and not transparent:
        text = "%s: %s files cannot hold transparency; the video is composited onto white (.mov and .mkv keep transparency)"
        logger.warning(text, source.path, format)
    if codec != "libx264" and (like.mastering_display or like.light_level):
        source.notes["the mastering display and light level of HDR"] = 1
    return stream


def _encoder_options(codec: str, like: FrameFormat, quality: int) -> dict[str, str]:
    if codec == "prores_ks":
        return {"profile": "4444", "alpha_bits": "16"}
    factor = min(51, max(0, 16 + (95 - quality) / 2))
    if codec == "libvpx-vp9":
        return {"crf": f"{factor:.0f}", "b": "0", "auto-alt-ref": "0", "row-mt": "1"}  # alpha does not work with alt-ref frames
    hdr = {"mastering-display": like.mastering_display, "cll": like.light_level}
    params = ":".join(f"{name}={value}" for name, value in hdr.items() if value)
    return {"crf": f"{factor:g}", "preset": "medium", "tune": "animation"} | ({"x264-params": params} if params else {})


class Streams:
    """Copies or converts all streams of a video other than the upscaled one into another file."""

    def __init__(self, out: Any, source: VideoSource, target: Path):
        self.out, self.source, self.target = out, source, target
        self.streams: dict[int, _Copy] = {}
        for old in source.container.streams:
            if old.index != source.stream.index:
                self._add(old)

    def _add(self, old: Any) -> None:
        format = self.out.format.name
        kinds: dict[str, type[_Copy]] = {"audio": _Audio, "subtitle": _Subtitle}
        for kind in (_Copy, kinds.get(old.type, _Copy)):
            if (old.type in ("audio", "subtitle", "attachment")) and kind.fits(format, old):
                new = self.streams[old.index] = kind(self.out, old)
                if kind is not _Copy:
                    remedy = "" if format == "matroska" else "; .mkv files can hold most streams unchanged (-o NAME.mkv)"
                    text = "%s: %s is converted to %s, because %s files cannot hold it unchanged%s"
                    logger.warning(text, self.source.path, _name(old), new.stream.codec_context.name, self.target.suffix.lower(), remedy)
                return
        remedy = "" if format == "matroska" or old.type == "data" else "; .mkv files may be able to (-o NAME.mkv)"
        text = "%s: %s is left out, because %s files cannot hold it%s"
        logger.warning(text, self.source.path, _name(old), self.target.suffix.lower(), remedy)

    def write(self, packet: Any) -> None:
        """Write a packet if its stream is kept. A packet that cannot be written is counted."""
        import av

        stream = self.streams.get(packet.stream.index)
        if stream is None:
            return
        try:
            ready = stream.packets(packet)
        except av.FFmpegError as error:
            _raise_if_full(error)
            self.source.notes[f"damaged {packet.stream.type} packet{{s}}"] += 1
            return
        for new_packet in ready:
            self._mux(new_packet, packet.stream.type)

    def finish(self) -> None:
        """Flush the encoders."""
        for stream in self.streams.values():
            for packet in stream.flush():
                self._mux(packet, "audio")

    def _mux(self, packet: Any, kind: str) -> None:
        import av

        try:
            self.out.mux(packet)
        except (av.ArgumentError, av.InvalidDataError):
            self.source.notes[f"{kind} packet{{s}} that {self.target.suffix.lower()} files cannot hold"] += 1


def _raise_if_full(error: Any) -> None:
    if error.errno in (errno.ENOSPC, errno.ENOMEM):
        raise error


def _name(old: Any) -> str:
    codec = getattr(getattr(old, "codec_context", None), "name", None) or old.metadata.get("filename")
    kind = "cover or second video" if old.type == "video" else old.type
    return f"stream {old.index}, {kind}" + (f" ({codec})" if codec else "")


class _Copy:
    """A stream that is copied unchanged."""

    def __init__(self, out: Any, old: Any):
        self.old = old
        self.stream = self.add(out, old)
        self.stream.metadata.update(old.metadata)
        with suppress(AttributeError, ValueError):
            self.stream.disposition = old.disposition.value
        self._next: int | None = None

    @classmethod
    def fits(cls, format: str, old: Any) -> bool:
        """Whether a format can hold the stream, by trying it with a file in memory."""
        import av

        try:
            with av.open(io.BytesIO(), "w", format=format) as trial:
                cls.add(trial, old)
                trial.start_encoding()
        except (av.FFmpegError, ValueError, NotImplementedError, TypeError, AttributeError):
            return False
        return True

    @staticmethod
    def add(out: Any, old: Any) -> Any:
        return out.add_stream_from_template(old, opaque=True)

    def packets(self, packet: Any) -> Iterable[Any]:
        """Return the packets to write for a packet, with times that every container accepts."""
        dts = packet.dts if packet.dts is not None else packet.pts
        if dts is None:
            dts = self._next or 0
        if self._next is not None:
            dts = max(dts, self._next - (packet.stream.type == "subtitle"))
        packet.dts = dts
        packet.pts = dts if packet.pts is None else max(packet.pts, dts)
        self._next = dts + 1
        packet.stream = self.stream
        return [packet]

    def flush(self) -> Iterable[Any]:
        return []


class _Audio(_Copy):
    """Audio that is re-encoded."""

    @staticmethod
    def add(out: Any, old: Any) -> Any:
        codec, layout, rate = AUDIO_ENCODERS[out.format.name], old.codec_context.layout, old.codec_context.sample_rate
        layout = LAYOUTS.get(layout.nb_channels, layout.name) if layout.name.endswith("channels") else layout.name
        if codec == "aac" and rate not in AAC_RATES:
            rate = 48000
        stream = out.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        channels = stream.codec_context.layout.nb_channels
        if codec == "aac":
            stream.codec_context.bit_rate = min(96000, 4 * rate) * channels
        else:
            stream.codec_context.format = "s16" if old.codec_context.format.name.startswith(("u8", "s16")) else "s32"
        return stream

    def packets(self, packet: Any) -> Iterable[Any]:
        return [ready for frame in packet.decode() for ready in self.stream.encode(frame)]

    def flush(self) -> Iterable[Any]:
        import av

        with suppress(av.FFmpegError):
            for frame in self.old.codec_context.decode(None):
                yield from self.stream.encode(frame)
        yield from self.stream.encode(None)


class _Subtitle(_Copy):
    """Text subtitles that are re-encoded."""

    @staticmethod
    def add(out: Any, old: Any) -> Any:
        if not hasattr(old.codec_context, "encode_subtitle"):
            raise ValueError("this PyAV cannot encode subtitles")
        header = old.codec_context.subtitle_header
        if not header:
            old.codec_context.open(strict=False)
            header = old.codec_context.subtitle_header
        if not header:
            raise ValueError("image subtitles cannot be converted to text")
        stream = out.add_stream(SUBTITLE_ENCODERS[out.format.name])
        stream.codec_context.subtitle_header = header
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        return stream

    def packets(self, packet: Any) -> Iterable[Any]:
        subtitles = self.old.codec_context.decode2(packet)
        if subtitles is None:
            return
        ready = self.stream.codec_context.encode_subtitle(subtitles)
        ready.time_base = packet.time_base
        ready.pts = packet.pts
        ready.dts = packet.dts if packet.dts is not None else packet.pts
        ready.duration = packet.duration
        ready.stream = self.stream
        yield ready


def warn_of_losses(source: VideoSource) -> None:
    """Log in one line everything that could not be read or is not in the new file."""
    losses = [
        f"{count} {note}".format(s="s" * (count > 1)) if "{s}" in note else note  # notes with {s} are countable
        for note, count in source.notes.items()
        if count
    ]
    if losses:
        logger.warning("%s: the video is done, with these losses: %s", source.path, "; ".join(losses))
