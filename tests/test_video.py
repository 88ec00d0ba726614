"""Upscaling videos: the frames are upscaled, everything else is kept."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from transformersr.upscale import image_safety, video, video_read

from command_line import run
from synthetic_images import synthetic_image
from video_files import make_video

av = pytest.importorskip("av")

FRAMES, RATE = 7, Fraction(24000, 1001)


def make_clip(path, pixels="yuv420p", sound=True, **options):
    """Seven frames of a moving drawing, the fourth shown for longer, and a tone."""
    times = [index + 3 * (index > 3) for index in range(FRAMES)]
    options |= {"size": (48, 32), "frames": FRAMES, "rate": RATE, "times": times, "title": "Tiny", "options": {"crf": "4"}}
    return make_video(path, pixels=pixels, sound="aac" if sound else None, **options)


def read_video(path):
    """Return timestamps and RGB frames, audio packets, and the colour and stream tags."""
    with av.open(str(path)) as clip:
        stream = clip.streams.video[0]
        context = stream.codec_context
        info = {name: int(getattr(context, name)) for name in ("color_range", "color_primaries", "color_trc", "colorspace")}
        info |= {"rate": stream.average_rate, "pixels": context.pix_fmt, "title": clip.metadata.get("title")}
        like = video.frame_format(video.VideoSource(path, clip))
    with av.open(str(path)) as clip:
        frames = [(frame.time, video._to_rgb(frame, like)) for frame in clip.decode(video=0)]
    with av.open(str(path)) as clip:
        sound = (
            [(float(packet.pts * packet.time_base), bytes(packet)) for packet in clip.demux(audio=0) if packet.size]
            if clip.streams.audio
            else []
        )
    return [time for time, _ in frames], np.stack([rgb for _, rgb in frames]), sound, info


def mean_color_difference(result, expected):
    """Return the largest difference of the frames' mean colours, in levels of 255."""
    scale = 255 / np.iinfo(result.dtype).max
    return np.abs(result.mean((1, 2)) - expected.mean((1, 2))).max() * scale


@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        ("yuv420p", {}),
        ("yuv420p", {"color_range": 2, "colorspace": 1, "color_primaries": 1, "color_trc": 1}),
        ("yuv420p10le", {"color_range": 1, "colorspace": 9, "color_primaries": 9, "color_trc": 16}),
    ],
    ids=["untagged", "full range BT.709", "HDR"],
)
def test_timestamps_colours_depth_audio_and_title_are_kept(tmp_path, upscaler, pixels, tags):
    source, target, shares = make_clip(tmp_path / "video.mp4", pixels, **tags), tmp_path / "large.mp4", []
    before = source.read_bytes()
    video.upscale_video(source, target, upscaler, on_progress=shares.append)
    times, small, sound, info = read_video(source)
    assert len(times) == FRAMES
    large_times, large, large_sound, large_info = read_video(target)
    assert large_times == pytest.approx(times, abs=1e-4)
    assert (large_sound, large_info) == (sound, info)
    assert len(sound) > 3
    assert large.shape == (FRAMES, 64, 96, 3)
    assert mean_color_difference(large, upscaler(small)) < 1
    assert shares == sorted(shares)
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.mp4", "video.mp4"]


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot write rotation")
def test_rotated_video_is_written_upright(tmp_path, upscaler):
    source = make_clip(tmp_path / "video.mp4", rotation=90, sound=False)
    video.upscale_video(source, tmp_path / "large.mkv", upscaler, factor=1.4)
    _, small, *_ = read_video(source)
    _, large, *_ = read_video(tmp_path / "large.mkv")
    assert large.shape == (FRAMES, 68, 46, 3)  # rounded up to even numbers
    expected = upscaler(np.ascontiguousarray(np.rot90(small[0])), size=(68, 46))
    assert np.abs(large[0].astype(int) - expected).mean() < 6
    assert np.abs(large[0, ::-1, ::-1].astype(int) - expected).mean() > 12


def test_command_takes_videos_and_images_and_reports_broken_files(tmp_path, model):
    make_clip(tmp_path / "video.mkv")
    synthetic_image(0, 16).save(tmp_path / "still.png")
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    names = [tmp_path / name for name in ("video.mkv", "still.png", "broken.mp4")]
    result = run("upscale", *names, "-m", model, "--device", "cpu")
    assert result.exit_code == 1
    assert "2 of 3 images done" in result.stdout
    assert {"video_x2.mkv", "still_x2.png"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("broken_*")) + list(tmp_path.glob(".*.part"))


def test_playlist_named_as_video_opens_no_other_file(tmp_path, upscaler):
    """FFmpeg detects formats by content, and a playlist can name any file."""
    make_clip(tmp_path / "private.mkv")
    (tmp_path / "video.mp4").write_text("ffconcat version 1.0\nfile private.mkv\n")
    with av.open(str(tmp_path / "video.mp4")) as clip:
        assert len(list(clip.decode(video=0))) == FRAMES  # FFmpeg alone opens it
    with pytest.raises(ValueError, match=r"video\.mp4: cannot be read or written as a video"):
        video.upscale_video(tmp_path / "video.mp4", tmp_path / "large.mp4", upscaler)
    assert not (tmp_path / "large.mp4").exists()


def test_frames_too_large_for_memory_are_rejected(tmp_path, upscaler, monkeypatch):
    source = make_clip(tmp_path / "video.mp4")
    for module in (image_safety, video_read):
        monkeypatch.setattr(module, "max_pixels", lambda: 1000)
    with pytest.raises(ValueError, match=r"video\.mp4: 48x32 pixels need .* are free"):
        video.upscale_video(source, tmp_path / "large.mp4", upscaler)
    monkeypatch.setattr(video_read, "check_pixels", lambda *args: None)  # as if the header gave a smaller size
    with pytest.raises(ValueError, match=r"video\.mp4: "):
        video.upscale_video(source, tmp_path / "large.mp4", upscaler)
    assert not (tmp_path / "large.mp4").exists()
