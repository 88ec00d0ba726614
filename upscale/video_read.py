"""What there is in a video file: its frames in order, with times that increase, and the packets of its other streams.

Files are old, cut short, joined or damaged, so nothing is trusted without a like. What cannot be read is counted in `VideoSource.notes`
and the rest goes on.
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

from .image_io import check_pixels, max_pixels

LIMITED, FULL = 1, 2
"""FFmpeg's numbers of the ranges of brightness."""
MATRICES = (1, 4, 5, 7, 9)
"""FFmpeg's numbers of the ways from RGB to brightness and colour that it can go; an unnamed way is 5, BT.601, as it is there."""
BT709 = 1
"""FFmpeg's number of the matrix that video stored as RGB is given; players guess at one that is not named."""

DEMUXERS = "mov,matroska,avi,asf,flv,mpegts,mpeg,mpegvideo,ogg,rm,mxf,dv,ivf"
"""FFmpeg's names of what is read."""
READING = {"options": {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}}
"""FFmpeg goes by contents: a playlist under a video's name would have it read other files, of this machine or the network."""

REORDERED = 4
"""Frames whose times are sorted among each other: more than an old encoder puts out of order."""
JUMP = Fraction(1, 2)
"""Seconds by which a stream's times have to go back to count as another clock, of a file joined from several."""
CUT_SHORT = 1.0
"""Seconds that may be missing at the end of what the file says is its length."""

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that see the transparency which WebM keeps beside the frames; FFmpeg's own do not."""
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
"""PyAV's names of what a frame may carry that no encoder here takes from it."""


@dataclass(frozen=True)
class FrameFormat:
    """What the first frame of a video is like."""

    height: int
    width: int
    turns: int
    """Quarter turns to the left that a player makes; height and width are those before."""
    deep: bool
    alpha: bool
    matrix: int
    range: int
    colorspace: int
    """How its matrix is named, for the new file to say the same."""
    mastering_display: str | None = None
    """The display that an HDR video was graded on, as x264 writes it."""
    light_level: str | None = None

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as a player shows them."""
        return (self.width, self.height) if self.turns % 2 else (self.height, self.width)


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame and when it is shown, in units of the stream's time base."""

    frame: Any
    pts: int
    time_base: Fraction


class _Again(NamedTuple):
    """A frame once more, in place of one that is lost."""

    frame: Any
    pts: int


class VideoSource:
    """An open video file. One object reads it once."""

    def __init__(self, path: Path, container: Any):
        self.path = path
        self.container = container
        self.stream = self._animations()
        self.decoder = self._decoder()
        self.notes: Counter[str] = Counter()
        """What could not be read or is not taken along, and how often; what is counted has an {s} for its plural."""
        self._sent: list[int] = []
        self._lost = 0
        self._clocks = _Clocks()

    def _animations(self) -> Any:
        """The stream of moving images; a cover is none."""
        for stream in self.container.streams.video:
            if stream.codec_context and not stream.disposition & type(stream.disposition).attached_pic:
                check_pixels(self.path, stream.codec_context.width, stream.codec_context.height)
                return stream
        raise ValueError(f"{self.path}: there are no moving images in it that can be read")

    def _decoder(self) -> Any:
        import av

        decoder = self.stream.codec_context
        if self.stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
            with suppress(ValueError):  # an FFmpeg without libvpx
                other = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
                other.extradata = decoder.extradata
                decoder = other
        decoder.options = {"max_pixels": str(max_pixels())}  # for frames that become larger on the way
        decoder.thread_type = "AUTO"
        return decoder

    def frames(self, on_progress: Callable[[float], None] = lambda share: None) -> Iterator[tuple[TimedFrame | None, Any]]:
        """The video in the order of the file: pairs of a frame and None, or of None and a packet of another stream.

        A frame that cannot be read is replaced by the one before it, so that the video keeps its count and its rate.
        """
        length, start = (self.container.duration or 0) / 1e6, (self.container.start_time or 0) / 1e6
        for frame, packet in self._in_order(self._decoded()):
            if frame is not None and length:
                on_progress(min(1.0, max(0.0, (float(frame.pts * frame.time_base) - start) / length)))
            yield frame, packet
        end = self._clocks.end() - start
        if 0 < end < length - CUT_SHORT:
            self.notes[f"its end: the file says that it takes {length:.1f} s, and what is in it ends after {end:.1f}"] += 1

    def _step(self) -> int:
        """Ticks from one frame to the next, where nothing better is known."""
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
                self._clocks.set_right(packet)
                yield packet

    def _decoded(self) -> Iterator[tuple[Any, Any]]:
        """Frames as the decoder gives them, repeated where the next one is lost, with their times as `frame.pts`; and other packets."""
        last = None
        for packet in self._packets_and_end():
            if packet is not None and packet.stream.index != self.stream.index:
                yield None, packet
                continue
            for frame in self._decode(packet):
                if last is not None and frame.pts is not None:
                    for pts in self._lost_before(frame.pts):
                        yield _Again(last, pts), None
                yield frame, None
                last = frame
        if last is not None:
            for pts in self._lost_before(max(self._sent, default=0) + 1):
                yield _Again(last, pts), None

    def _packets_and_end(self) -> Iterator[Any]:
        yield from self._packets()
        yield None

    def _decode(self, packet: Any) -> list[Any]:
        import av

        if packet is not None and packet.pts is not None:
            heapq.heappush(self._sent, packet.pts)
        try:
            frames = self.decoder.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            self.notes["damaged packet{s} of the image"] += 1
            self._lost += 1
            return []
        for frame in frames:
            self.notes["frame{s} damaged in part"] += bool(frame.is_corrupt)
            with suppress(ValueError):  # kinds that PyAV has no name for
                for kind in {data.type.name for data in frame.side_data} & LOST_WITH_FRAMES.keys():
                    self.notes[LOST_WITH_FRAMES[kind]] = 1
        return frames

    def _lost_before(self, pts: int) -> list[int]:
        """Times of packets that came to nothing, up to a frame's."""
        missing = []
        while self._sent and self._sent[0] <= pts:
            missing.append(heapq.heappop(self._sent))
        missing = [time for time in missing if time < pts][: self._lost]
        self._lost -= len(missing)
        return missing

    def _in_order(self, items: Iterator[tuple[Any, Any]]) -> Iterator[tuple[TimedFrame | None, Any]]:
        """Frames with times that increase. They come in the order in which they are shown, whatever the file says of their times."""
        waiting: deque[Any] = deque()
        times: list[int] = []
        last: int | None = None

        def release() -> TimedFrame:
            nonlocal last
            frame = waiting.popleft()
            time = heapq.heappop(times) if frame.pts is not None else (0 if last is None else last + self._step())
            last = time if last is None else max(time, last + 1)
            return TimedFrame(frame.frame if isinstance(frame, _Again) else frame, last, self.stream.time_base)

        for frame, packet in items:
            if frame is None:
                yield None, packet
                continue
            waiting.append(frame)
            if frame.pts is not None:
                heapq.heappush(times, frame.pts)
            if len(waiting) > REORDERED:
                yield release(), None
        while waiting:
            yield release(), None


class _Clocks:
    """Makes one clock of those of a file that was joined from several: where a stream's times go back, they go on instead."""

    def __init__(self) -> None:
        self._offset = Fraction(0)
        self._offsets: dict[int, Fraction] = {}
        self._ends: dict[int, Fraction] = {}

    def set_right(self, packet: Any) -> None:
        """Move a packet's times; the ones of a stream without any stay so."""
        stream, base = packet.stream.index, packet.time_base
        kind = packet.stream.type
        ticks = packet.pts if kind == "audio" and packet.dts is None else packet.dts  # those of frames to be shown later go back and forth
        if ticks is None or kind not in ("video", "audio"):
            self._move(packet, self._offsets.get(stream, self._offset), base)
            return
        time, end = ticks * base, self._ends.get(stream)
        offset = self._offsets.get(stream, Fraction(0))
        if end is not None and time + offset < end - JUMP:
            if not -JUMP <= time + self._offset - end <= 2 * JUMP:  # another stream has not met this jump before
                self._offset = end - time
            offset = self._offset
        self._offsets[stream] = offset
        self._ends[stream] = time + offset + (packet.duration or 0) * base
        self._move(packet, offset, base)

    def end(self) -> float:
        """Seconds at which the last packet of sound or image ends."""
        return float(max(self._ends.values(), default=0))

    @staticmethod
    def _move(packet: Any, offset: Fraction, base: Fraction) -> None:
        if ticks := round(offset / base):
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks


def frame_format(source: VideoSource) -> FrameFormat:
    """What a video is like. It is read up to the first frame that can be read, or where frames have an alpha channel, a transparent one."""
    frames = (timed.frame for timed, _ in source.frames() if timed is not None)
    frame = next(frames, None)
    if frame is None:
        raise ValueError(f"{source.path}: not one frame of it can be read")
    named, rgb = int(source.stream.codec_context.colorspace), frame.format.is_rgb or frame.format.has_palette
    matrix = BT709 if rgb else int(frame.colorspace)
    matrix = matrix if matrix in MATRICES else 9 if matrix == 10 else 5
    deep = max((component.bits for component in frame.format.components), default=8) > 8
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    range_ = FULL if int(frame.color_range) == FULL and not rgb else LIMITED
    display, light = _hdr(frame)
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    alpha = has_alpha and any(_is_transparent(one) for one in itertools.chain([frame], frames))
    return FrameFormat(frame.height, frame.width, turns, deep, alpha, matrix, range_, BT709 if rgb else named, display, light)


def _is_transparent(frame: Any) -> bool:
    return bool(frame.to_ndarray(format="rgba")[..., 3].min() < 255)


def _hdr(frame: Any) -> tuple[str | None, str | None]:
    """The mastering display and the light level of an HDR frame, in x264's words (FFmpeg's libavutil/mastering_display_metadata.h)."""
    found: dict[str, bytes] = {}
    with suppress(ValueError):
        found = {data.type.name: bytes(data) for data in frame.side_data}
    display = light = None
    if (data := found.get("MASTERING_DISPLAY_METADATA")) and len(data) >= 88:
        numbers = struct.unpack("<22i", data[:88])
        red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y = (_units(numbers[at : at + 2], 50000) for at in range(0, 16, 2))
        low, high = _units(numbers[16:18], 10000), _units(numbers[18:20], 10000)
        if numbers[20] and numbers[21]:
            display = f"G({green_x},{green_y})B({blue_x},{blue_y})R({red_x},{red_y})WP({white_x},{white_y})L({high},{low})"
    if (data := found.get("CONTENT_LIGHT_LEVEL")) and len(data) >= 8:
        light = "{},{}".format(*struct.unpack("<2I", data[:8]))
    return display, light


def _units(ratio: tuple[int, ...], unit: int) -> int:
    return round(ratio[0] * unit / ratio[1]) if ratio[1] else 0
