"""Unusual and damaged videos: broken timestamps, old containers, streams that do not fit, truncation, transparency, HDR."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from transformersr.upscale import video, video_read

from video_files import make_video

av = pytest.importorskip("av")


def read_times(path):
    with av.open(f"file:{path}") as container:
        return [frame.time for frame in container.decode(video=0)]


def read_sound(path):
    with av.open(f"file:{path}") as container:
        name = container.streams.audio[0].codec_context.name
        return name, np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


def damage(path, indices):
    """Overwrite the beginning of the packets with these indices."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for index in indices:
        at = data.index(packets[index])
        length = min(24, len(packets[index]))
        data[at : at + length] = b"\x12" * length
    path.write_bytes(data)
    return path


# --- timestamps ----------------------------------------------------------------------------------


@pytest.fixture
def set_times(monkeypatch):
    """Return a function that sets the timestamps of decoded frames; few encoders can write the broken ones of old files."""

    def apply(times):
        decoded = video_read.VideoSource._decode_all

        def changed(source):
            for index, (frame, packet) in enumerate(decoded(source)):
                frame.pts = times[index]
                yield frame, packet

        monkeypatch.setattr(video_read.VideoSource, "_decode_all", changed)

    return apply


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([2, 4, 3, 6, 5, 8, 7], [2, 3, 4, 5, 6, 7, 8]),
        ([5, 5, 5, 8, 9], [5, 6, 7, 8, 9]),
        ([None, None, None, None], [0, 1, 2, 3]),
        ([3, None, 5, None], [3, 4, 5, 6]),
        ([0, 3, 1, 2, 7], [0, 1, 2, 3, 7]),
        ([-2, -1, 0, 1], [-2, -1, 0, 1]),
    ],
    ids=["decoding order", "repeated", "none", "some missing", "far out of order", "below zero"],
)
def test_broken_timestamps_are_made_increasing(tmp_path, upscaler, set_times, times, expected):
    source = make_video(tmp_path / "a.avi", "mpeg4", frames=len(times), rate=25)
    set_times(times)
    with video.open_container(source, **video.READING) as container:
        assert [frame.pts for frame, _ in video.VideoSource(source, container).frames()] == expected
    video.upscale_video(source, tmp_path / "b.mkv", upscaler)
    assert np.diff(read_times(tmp_path / "b.mkv")) == pytest.approx(np.diff(expected) / 25, abs=2e-3)


def test_timestamps_continue_across_concatenated_files(tmp_path, upscaler):
    for name in ("a", "b"):
        make_video(tmp_path / f"{name}.ts", sound="mp2", frames=20)
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    video.upscale_video(joined, tmp_path / "new.mkv", upscaler)
    times = read_times(tmp_path / "new.mkv")
    assert len(times) >= 39
    assert all(0.05 < step < 1 for step in np.diff(times))


@pytest.mark.parametrize("suffix", ["avi", "flv", "ts", "mpg", "mov", "mkv", "wmv"])
def test_old_containers_keep_their_frames_and_audio(tmp_path, upscaler, suffix):
    codec, sound = {"flv": ("flv1", "libmp3lame"), "mpg": ("mpeg2video", "mp2"), "wmv": ("wmv2", "wmav2")}.get(suffix, ("mpeg4", "mp2"))
    codec = {"flv1": "flv"}.get(codec, codec)
    rate = 25 if suffix == "mpg" else 10
    source = make_video(tmp_path / f"a.{suffix}", codec, sound=sound if suffix != "flv" else None, rate=rate)
    target = tmp_path / f"b{video.video_suffix(source)}"
    video.upscale_video(source, target, upscaler)
    assert len(read_times(target)) == len(read_times(source))
    if suffix != "flv":
        assert len(read_sound(target)[1]) == pytest.approx(len(read_sound(source)[1]), rel=0.2)


# --- audio, subtitles, other streams -------------------------------------------------------------


def test_audio_that_cannot_be_copied_becomes_flac_with_a_warning(tmp_path, upscaler, caplog):
    source = make_video(tmp_path / "old.avi", "mpeg4", sound="adpcm_ms")
    video.upscale_video(source, tmp_path / "new.mkv", upscaler)
    (_, old), (name, new) = read_sound(source), read_sound(tmp_path / "new.mkv")
    assert name == "flac"
    assert np.array_equal(new[: len(old)], old)
    assert "stream 1, audio (adpcm_ms) is converted to flac" in caplog.text


def test_audio_that_mp4_cannot_hold_becomes_aac(tmp_path, upscaler, caplog):
    source = make_video(tmp_path / "a.mkv", sound="tta")
    video.upscale_video(source, tmp_path / "b.mp4", upscaler)
    assert read_sound(tmp_path / "b.mp4")[0] == "aac"
    assert ".mkv files can hold most streams unchanged" in caplog.text


def test_subtitles_are_converted_for_the_container(tmp_path, upscaler, caplog):
    if not hasattr(pytest.importorskip("av.subtitles.codeccontext").SubtitleCodecContext, "encode_subtitle"):
        pytest.skip("this PyAV cannot encode subtitles")
    make_video(tmp_path / "a.mkv")
    srt = "1\n00:00:00,100 --> 00:00:00,500\nHello, <i>you</i>\n\n2\n00:00:00,600 --> 00:00:00,900\nGoodbye\n"
    (tmp_path / "a.srt").write_text(srt)
    with (
        av.open(str(tmp_path / "a.mkv")) as old,
        av.open(str(tmp_path / "a.srt")) as text,
        av.open(str(tmp_path / "with.mkv"), "w") as new,
    ):
        pairs = [
            (template, new.add_stream_from_template(template, opaque=True))
            for template in (old.streams.video[0], text.streams.subtitles[0])
        ]
        for template, stream in pairs:
            for packet in template.container.demux(template):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
    video.upscale_video(tmp_path / "with.mkv", tmp_path / "b.mp4", upscaler)
    with av.open(str(tmp_path / "b.mp4")) as result:
        assert result.streams.subtitles[0].codec_context.name == "mov_text"
        packets = [(float(packet.pts * packet.time_base), bytes(packet)) for packet in result.demux(subtitles=0) if len(bytes(packet)) > 2]
    assert [time for time, _ in packets] == pytest.approx([0.1, 0.6], abs=0.02)
    assert b"Hello, you" in packets[0][1]
    assert "is converted to mov_text" in caplog.text


def test_unsupported_streams_are_skipped_and_reported(tmp_path, upscaler, caplog):
    make_video(tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as old, av.open(str(tmp_path / "with.mkv"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        new.add_attachment("font.ttf", "application/x-truetype-font", bytes(100))
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    video.upscale_video(tmp_path / "with.mkv", tmp_path / "b.mp4", upscaler)
    assert "attachment (font.ttf) is left out" in caplog.text
    assert len(read_times(tmp_path / "b.mp4")) == 10


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Part 2: dawn.mp4", "http:a.mp4", "pipe:1.mp4", "-x.mp4", "%03d.mp4", "a|b.mp4", "concat:a.mkv"])
def test_file_names_are_not_interpreted_as_urls(tmp_path, upscaler, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", frames=3).rename(tmp_path / name)
    video.upscale_video(Path(name), Path(f"large {name}"), upscaler)
    assert len(read_times(tmp_path / f"large {name}")) == 3


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_damaged_packets_lose_only_their_frames_and_are_counted(tmp_path, upscaler, caplog, codec):
    options = {"bf": "0"} if codec == "libx264" else {}
    source = damage(make_video(tmp_path / "a.mkv", codec, frames=20, options=options, rate=25), [9, 13])
    video.upscale_video(source, tmp_path / "b.mkv", upscaler)
    assert read_times(tmp_path / "b.mkv") == pytest.approx(np.arange(20) / 25, abs=2e-3)  # lost frames repeat the one before
    assert "the video is done, with these losses: 2 damaged video packets" in caplog.text


@pytest.mark.parametrize("codec", ["ffv1", "mpeg2video", "libsvtav1"])
def test_damage_skipped_by_the_decoder_loses_only_its_frames(tmp_path, upscaler, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    options = {"preset": "10"} if codec == "libsvtav1" else {}
    source = damage(make_video(tmp_path / "a.mkv", codec, frames=20, rate=25, options=options), [9, 13])
    video.upscale_video(source, tmp_path / "b.mkv", upscaler)
    assert 18 <= len(read_times(tmp_path / "b.mkv")) <= 20


def test_truncated_video_is_upscaled_up_to_its_end_with_a_warning(tmp_path, upscaler, caplog):
    source = make_video(tmp_path / "a.mkv", frames=60, options={"g": "10"})
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    video.upscale_video(source, tmp_path / "b.mkv", upscaler)
    assert 15 < len(read_times(tmp_path / "b.mkv")) < 50
    assert "its end: the file claims a length of 6.0 s" in caplog.text


def test_unreadable_video_leaves_no_file(tmp_path, upscaler):
    source = make_video(tmp_path / "a.mkv", "libvpx-vp9", frames=3)
    damage(source, [0, 1, 2])
    with pytest.raises(ValueError, match=r"a\.mkv: none of its frames can be read"):
        video.upscale_video(source, tmp_path / "b.mkv", upscaler)
    assert not (tmp_path / "b.mkv").exists()


# --- transparency and colour ---------------------------------------------------------------------


def transparent_frame():
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :, 0] = 200
    rgba[8:24, 8:24, 3] = 255
    return rgba


TRANSPARENT = [
    ("a.mov", "png", "rgba", {}),
    ("a.mov", "qtrle", "argb", {}),
    ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
    ("a.mkv", "ffv1", "bgra", {}),
    ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0"}),
]


@pytest.mark.parametrize(("name", "codec", "pixels", "options"), TRANSPARENT)
@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_transparency_is_kept_if_the_container_supports_it(tmp_path, upscaler, suffix, name, codec, pixels, options):
    source = make_video(tmp_path / name, codec, pixels, frames=2, rgba=transparent_frame(), options=options)
    target = tmp_path / f"b{suffix}"
    video.upscale_video(source, target, upscaler)
    with video.open_container(target, **video.READING) as container:
        frame, _ = next(video.VideoSource(target, container).frames())
        rgba = frame.frame.to_ndarray(format="rgba")
    assert rgba[..., 3].min() == 0
    assert rgba[30:34, 30:34, 3].min() > 250
    assert np.abs(rgba[24:40, 24:40, :3].mean(axis=(0, 1)) - [200, 0, 0]).max() < 12


def test_unsupported_transparency_is_flattened_onto_white(tmp_path, upscaler, caplog):
    source = make_video(tmp_path / "a.mov", "qtrle", "argb", frames=2, rgba=transparent_frame())
    video.upscale_video(source, tmp_path / "b.mp4", upscaler)
    with av.open(str(tmp_path / "b.mp4")) as container:
        rgb = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert rgb[0, 0].min() > 245
    assert "composited onto white" in caplog.text


def test_opaque_alpha_channel_is_dropped(tmp_path, upscaler, caplog):
    rgba = transparent_frame()
    rgba[..., 3] = 255
    source = make_video(tmp_path / "a.mov", "qtrle", "argb", frames=2, rgba=rgba)
    video.upscale_video(source, tmp_path / "b.mov", upscaler)
    with av.open(str(tmp_path / "b.mov")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, int(context.colorspace)) == ("h264", 1)  # stored as RGB before, now tagged as BT.709
        rgb = next(container.decode(video=0)).to_ndarray(format="rgb24", src_colorspace=1, dst_colorspace=5)
    assert np.abs(rgb.mean(axis=(0, 1)) - [200, 0, 0]).max() < 12


def test_hdr_brightness_metadata_is_kept(tmp_path, upscaler):
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    options = {"x264-params": f"mastering-display={display}:cll=1000,400"}
    source = make_video(tmp_path / "a.mkv", "libx264", "yuv420p10le", frames=3, options=options)
    video.upscale_video(source, tmp_path / "b.mkv", upscaler)

    def side_data(path):
        with av.open(str(path)) as container:
            found = {entry.type.name: bytes(entry) for entry in next(container.decode(video=0)).side_data}
        return {name: found[name] for name in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")}

    assert side_data(tmp_path / "b.mkv") == side_data(source)


def test_lost_closed_captions_are_reported(tmp_path, upscaler, caplog, monkeypatch):
    """PyAV cannot write frames with captions, so another kind of side data stands in for them."""
    monkeypatch.setitem(video_read.LOST_WITH_FRAMES, "SEI_UNREGISTERED", "closed captions")
    source = make_video(tmp_path / "a.mkv", frames=3)
    video.upscale_video(source, tmp_path / "b.mkv", upscaler)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == [f"{source}: the video is done, with these losses: closed captions"]
