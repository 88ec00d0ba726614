"""Read a video file: its frames in order, with increasing times, and the packets of its other streams.

Files may be old, cut short, concatenated or damaged, so nothing in them is trusted. What cannot be read is counted in `VideoSource.notes`,
and reading continues.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from .image_safety import check_pixels, max_pixels

LIMITED, FULL = 1, 2
"""FFmpeg's numbers of the colour ranges."""
MATRICES = (1, 4, 5, 7, 9)
"""FFmpeg's numbers of the YUV matrices that it supports. An unspecified matrix becomes 5, BT.601, as in FFmpeg."""
BT709 = 1
"""FFmpeg's number of the matrix used for video that was stored as RGB. Players would guess if none were specified."""

DEMUXERS = "mov,matroska,avi,asf,flv,mpegts,mpeg,mpegvideo,ogg,rm,mxf,dv,ivf"
"""FFmpeg's names of the formats that are read."""
READING = {"options": {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}}
"""Options for reading. FFmpeg detects formats by content: a playlist named like a video would make it read other files or the network."""

REORDERED = 4
"""Number of frames whose times are sorted together: more than an old encoder puts out of order."""
JUMP = Fraction(1, 2)
"""If a stream's times go back by more seconds than this, a new clock begins: the file was concatenated from several."""
CUT_SHORT = 1.0
"""Seconds by which the content may be shorter than the length in the file's header without a warning."""

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the transparency that WebM stores next to the frames. FFmpeg's own do not."""
LOST_WITH_FRAMES = {
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "AMBIENT_VIEWING_ENVIRONMENT": "the ambient light of HDR",
    "ICC_PROFILE": "an ICC profile",
    "A53_CC": "closed captions",
    "STEREO3D": "the 3D layout",
    "SPHERICAL": "the 360-degree projection",
}
"""PyAV's names of data that a frame may carry but that are lost, because no encoder here takes them."""


@dataclass(frozen=True)
class FrameFormat:
    """Format of a video's frames, taken from the first one."""

    height: int
    width: int
    turns: int
    """Quarter turns to the left that a player applies. Height and width are those before the rotation."""
    deep: bool
    alpha: bool
    matrix: int
    range: int
    colorspace: int
    """Number of the matrix that the new file will state."""
    mastering_display: str | None = None
    """The display that an HDR video was graded on, in x264's notation."""
    light_level: str | None = None

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as a player shows them."""
        return (self.width, self.height) if self.turns % 2 else (self.height, self.width)


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame and its presentation time in units of the stream's time base."""

    frame: Any
    pts: int
    time_base: Fraction


class _Repeat(NamedTuple):
    """A frame shown again in place of a lost one."""

    frame: Any
    pts: int


class VideoSource:
    """An open video file, which can be read once per object."""

    def __init__(self, path: Path, container: Any):
        self.path = path
        self.container = container
        self.stream = self._find_stream()
        self.decoder = self._create_decoder()
        self.notes: Counter[str] = Counter()
        """Losses and how often each occurred; countable ones contain {s} for the plural."""
        self._sent: list[int] = []
        self._lost = 0
        self._clocks = _Clocks()

    def _find_stream(self) -> Any:
        """Return the first video stream that is not a cover image."""
        for stream in self.container.streams.video:
            if stream.codec_context and not stream.disposition & type(stream.disposition).attached_pic:
                check_pixels(self.path, stream.codec_context.width, stream.codec_context.height)
                return stream
        raise ValueError(f"{self.path}: there is no readable video stream in the file")

    def _create_decoder(self) -> Any:
        import av

        decoder = self.stream.codec_context
        if self.stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
            with suppress(ValueError):  # an FFmpeg without libvpx
                alpha_decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
                alpha_decoder.extradata = decoder.extradata
                decoder = alpha_decoder
        decoder.options = {"max_pixels": str(max_pixels())}  # in case later frames are larger
        decoder.thread_type = "AUTO"
        return decoder

    def frames(self, on_progress: Callable[[float], None] = lambda share: None) -> Iterator[tuple[TimedFrame | None, Any]]:
        """Yield the content in file order: pairs of a frame and None, or of None and a packet of another stream.

        An unreadable frame is replaced by the one before it, so that the number of frames and the frame rate stay the same.
        """
        length, start = (self.container.duration or 0) / 1e6, (self.container.start_time or 0) / 1e6
        for frame, packet in self._sort_times(self._decode_all()):
            if frame is not None and length:
                on_progress(min(1.0, max(0.0, (float(frame.pts * frame.time_base) - start) / length)))
            yield frame, packet
        end = self._clocks.end() - start
        if 0 < end < length - CUT_SHORT:
            self.notes[f"its end: the file claims a length of {length:.1f} s, but its content ends after {end:.1f} s"] += 1

    def _default_step(self) -> int:
        """Return the ticks from one frame to the next, for frames without a time."""
        rate = self.stream.guessed_rate or self.stream.average_rate or 25
        return max(1, round(1 / (rate * self.stream.time_base)))

    def _packets(self) -> Iterator[Any]:
        import av

        packets = self.container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.notes[f"the rest of the file, which cannot be read ({error.strerror})"] += 1
                return
            if packet.size:
                self._clocks.correct(packet)
                yield packet

    def _decode_all(self) -> Iterator[tuple[Any, Any]]:
        """Yield frames in the decoder's order with their times as `frame.pts`, repeated in place of lost ones, and the other packets."""
        last = None
        for packet in itertools.chain(self._packets(), [None]):  # None flushes the decoder
            if packet is not None and packet.stream.index != self.stream.index:
                yield None, packet
                continue
            for frame in self._decode(packet):
                if last is not None and frame.pts is not None:
                    for pts in self._take_lost_times(frame.pts):
                        yield _Repeat(last, pts), None
                yield frame, None
                last = frame
        if last is not None:
            for pts in self._take_lost_times(max(self._sent, default=0) + 1):
                yield _Repeat(last, pts), None

    def _decode(self, packet: Any) -> list[Any]:
        import av

        if packet is not None and packet.pts is not None:
            heapq.heappush(self._sent, packet.pts)
        try:
            frames = self.decoder.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            self.notes["damaged video packet{s}"] += 1
            self._lost += 1
            return []
        for frame in frames:
            self.notes["partly damaged frame{s}"] += bool(frame.is_corrupt)
            with suppress(ValueError):  # types that PyAV has no name for
                for kind in {data.type.name for data in frame.side_data} & LOST_WITH_FRAMES.keys():
                    self.notes[LOST_WITH_FRAMES[kind]] = 1
        return frames

    def _take_lost_times(self, pts: int) -> list[int]:
        """Remove the times up to a frame's from those sent to the decoder, and return those of packets that gave no frame."""
        times = []
        while self._sent and self._sent[0] <= pts:
            times.append(heapq.heappop(self._sent))
        times = [time for time in times if time < pts][: self._lost]
        self._lost -= len(times)
        return times

    def _sort_times(self, items: Iterator[tuple[Any, Any]]) -> Iterator[tuple[TimedFrame | None, Any]]:
        """Give frames increasing times. The decoder returns them in display order, but their times in the file may be out of order."""
        queue: deque[Any] = deque()
        times: list[int] = []
        last: int | None = None

        def release() -> TimedFrame:
            nonlocal last
            frame = queue.popleft()
            time = heapq.heappop(times) if frame.pts is not None else (0 if last is None else last + self._default_step())
            last = time if last is None else max(time, last + 1)
            return TimedFrame(frame.frame if isinstance(frame, _Repeat) else frame, last, self.stream.time_base)

        for frame, packet in items:
            if frame is None:
                yield None, packet
                continue
            queue.append(frame)
            if frame.pts is not None:
                heapq.heappush(times, frame.pts)
            if len(queue) > REORDERED:
                yield release(), None
        while queue:
            yield release(), None


class _Clocks:
    """Joins the clocks of a file that was concatenated from several: if a stream's times jump back, they are shifted to continue."""

    def __init__(self) -> None:
        self._offset = Fraction(0)
        self._offsets: dict[int, Fraction] = {}
        self._ends: dict[int, Fraction] = {}

    def correct(self, packet: Any) -> None:
        """Shift a packet's times. Missing times stay missing."""
        stream, base = packet.stream.index, packet.time_base
        kind = packet.stream.type
        ticks = packet.pts if kind == "audio" and packet.dts is None else packet.dts  # a video's pts are not in file order
        if ticks is None or kind not in ("video", "audio"):
            self._shift(packet, self._offsets.get(stream, self._offset), base)
            return
        time, end = ticks * base, self._ends.get(stream)
        offset = self._offsets.get(stream, Fraction(0))
        if end is not None and time + offset < end - JUMP:
            if not -JUMP <= time + self._offset - end <= 2 * JUMP:  # the first stream to reach this jump
                self._offset = end - time
            offset = self._offset
        self._offsets[stream] = offset
        self._ends[stream] = time + offset + (packet.duration or 0) * base
        self._shift(packet, offset, base)

    def end(self) -> float:
        """Return the time in seconds at which the last audio or video packet ends."""
        return float(max(self._ends.values(), default=0))

    @staticmethod
    def _shift(packet: Any, offset: Fraction, base: Fraction) -> None:
        if ticks := round(offset / base):
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks


def frame_format(source: VideoSource) -> FrameFormat:
    """Determine the format of a video. Reads up to its first readable frame, or with an alpha channel, up to the first transparent one."""
    frames = (timed.frame for timed, _ in source.frames() if timed is not None)
    frame = next(frames, None)
    if frame is None:
        raise ValueError(f"{source.path}: none of its frames can be read; the video is damaged or encrypted")
    colorspace, rgb = int(source.stream.codec_context.colorspace), frame.format.is_rgb or frame.format.has_palette
    matrix = BT709 if rgb else int(frame.colorspace)
    matrix = matrix if matrix in MATRICES else 9 if matrix == 10 else 5
    deep = max((component.bits for component in frame.format.components), default=8) > 8
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    range_ = FULL if int(frame.color_range) == FULL and not rgb else LIMITED
    display, light = _hdr(frame)
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    alpha = has_alpha and any(_is_transparent(frame) for frame in itertools.chain([frame], frames))
    return FrameFormat(frame.height, frame.width, turns, deep, alpha, matrix, range_, BT709 if rgb else colorspace, display, light)


def _is_transparent(frame: Any) -> bool:
    return bool(frame.to_ndarray(format="rgba")[..., 3].min() < 255)


def _hdr(frame: Any) -> tuple[str | None, str | None]:
    """Return the mastering display and light level of an HDR frame in x264's notation (FFmpeg's libavutil/mastering_display_metadata.h)."""
    side_data: dict[str, bytes] = {}
    with suppress(ValueError):
        side_data = {data.type.name: bytes(data) for data in frame.side_data}
    display = light = None
    if (data := side_data.get("MASTERING_DISPLAY_METADATA")) and len(data) >= 88:
        values = struct.unpack("<22i", data[:88])
        red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y = (_to_units(values[i : i + 2], 50000) for i in range(0, 16, 2))
        low, high = _to_units(values[16:18], 10000), _to_units(values[18:20], 10000)
        if values[20] and values[21]:
            display = f"G({green_x},{green_y})B({blue_x},{blue_y})R({red_x},{red_y})WP({white_x},{white_y})L({high},{low})"
    if (data := side_data.get("CONTENT_LIGHT_LEVEL")) and len(data) >= 8:
        light = "{},{}".format(*struct.unpack("<2I", data[:8]))
    return display, light


def _to_units(ratio: tuple[int, ...], units: int) -> int:
    return round(ratio[0] * units / ratio[1]) if ratio[1] else 0
