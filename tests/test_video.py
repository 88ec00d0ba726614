"""A video through the network: frames upscaled, everything else as it was."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

from transformersr import Upscaler
from transformersr.arch import save_model
from transformersr.upscale import image_io, video, video_read
from transformersr.upscale.cli import main

from random_models import V2, random_model
from synthetic_images import synthetic_image

av = pytest.importorskip("av")

FRAMES, RATE = 7, Fraction(24000, 1001)


@pytest.fixture(scope="module")
def upscaler():
    return Upscaler(random_model(V2, size=0.01))


def make_video(path, pixels="yuv420p", turn=0, sound=True, **tags):
    """Seven frames of a drawing that moves, the fourth shown for longer, and a tone."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = 48, 32, pixels
        context.time_base = 1 / RATE
        context.options = {"crf": "4"}
        for name, value in tags.items():
            setattr(context, name, value)
        if turn:
            stream.set_display_rotation(turn)
        tone = out.add_stream("aac", rate=16000, layout="mono") if sound else None
        out.metadata["title"] = "Tiny"
        for index in range(FRAMES):
            rgb = np.roll(np.asarray(synthetic_image(1, 48))[:32], index, axis=1)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(
                format=pixels, dst_colorspace=int(tags.get("colorspace", 5)), dst_color_range=int(tags.get("color_range", 1))
            )
            frame.pts, frame.time_base = index + 3 * (index > 3), 1 / RATE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        for start in range(0, 6000 if tone else 0, 1000):
            wave = (8000 * np.sin(np.arange(start, start + 1000) / 10)).astype(np.int16)[None]
            piece = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 16000, start, Fraction(1, 16000)
            out.mux(tone.encode(piece))
        if tone:
            out.mux(tone.encode(None))
    return path


def read_video(path):
    """Times and RGB of its frames, bytes of its sound, and what its images are said to be."""
    with av.open(str(path)) as clip:
        stream = clip.streams.video[0]
        context = stream.codec_context
        said = {name: int(getattr(context, name)) for name in ("color_range", "color_primaries", "color_trc", "colorspace")}
        said |= {"rate": stream.average_rate, "pixels": context.pix_fmt, "title": clip.metadata.get("title")}
        like = video.frame_format(video.VideoSource(path, clip))
    with av.open(str(path)) as clip:
        frames = [(frame.time, video._to_rgb(frame, like)) for frame in clip.decode(video=0)]
    with av.open(str(path)) as clip:
        sound = (
            [(float(packet.pts * packet.time_base), bytes(packet)) for packet in clip.demux(audio=0) if packet.size]
            if clip.streams.audio
            else []
        )
    return [time for time, _ in frames], np.stack([rgb for _, rgb in frames]), sound, said


def worst(ours, wanted):
    """The largest difference of the mean colours of the frames, in levels of 255."""
    scale = 255 / np.iinfo(ours.dtype).max
    return np.abs(ours.mean((1, 2)) - wanted.mean((1, 2))).max() * scale


@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        ("yuv420p", {}),
        ("yuv420p", {"color_range": 2, "colorspace": 1, "color_primaries": 1, "color_trc": 1}),
        ("yuv420p10le", {"color_range": 1, "colorspace": 9, "color_primaries": 9, "color_trc": 16}),
    ],
    ids=["untagged", "full range BT.709", "HDR"],
)
def test_times_colours_depth_sound_and_title_stay(tmp_path, upscaler, pixels, tags):
    source, target, shares = make_video(tmp_path / "video.mp4", pixels, **tags), tmp_path / "large.mp4", []
    before = source.read_bytes()
    video.upscale_video(source, target, upscaler, on_progress=shares.append)
    times, small, sound, said = read_video(source)
    assert len(times) == FRAMES
    large_times, large, large_sound, large_said = read_video(target)
    assert large_times == pytest.approx(times, abs=1e-4)
    assert (large_sound, large_said) == (sound, said)
    assert len(sound) > 3
    assert large.shape == (FRAMES, 64, 96, 3)
    assert worst(large, upscaler(small)) < 1
    assert shares == sorted(shares)
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.mp4", "video.mp4"]


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot make such a video")
def test_a_video_that_a_player_turns_stands_upright(tmp_path, upscaler):
    source = make_video(tmp_path / "video.mp4", turn=90, sound=False)
    video.upscale_video(source, tmp_path / "large.mkv", upscaler, factor=1.4)
    _, small, *_ = read_video(source)
    _, large, *_ = read_video(tmp_path / "large.mkv")
    assert large.shape == (FRAMES, 68, 46, 3)  # raised to even numbers
    wanted = upscaler(np.ascontiguousarray(np.rot90(small[0])), size=(68, 46))
    assert np.abs(large[0].astype(int) - wanted).mean() < 6
    assert np.abs(large[0, ::-1, ::-1].astype(int) - wanted).mean() > 12


def test_the_command_takes_videos_beside_images_and_names_what_is_none(tmp_path):
    save_model(random_model(V2), tmp_path / "model.safetensors")
    make_video(tmp_path / "video.mkv")
    synthetic_image(0, 16).save(tmp_path / "still.png")
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    names = [str(tmp_path / name) for name in ("video.mkv", "still.png", "broken.mp4")]
    command = ["upscale", *names, "-m", str(tmp_path / "model.safetensors"), "--device", "cpu"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 1
    assert "2 of 3 images done" in result.stdout
    assert {"video_x2.mkv", "still_x2.png"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("broken_*")) + list(tmp_path.glob(".*.part"))


def test_a_playlist_under_the_name_of_a_video_opens_no_other_file(tmp_path, upscaler):
    """FFmpeg goes by what is in a file, and a playlist may name any."""
    make_video(tmp_path / "private.mkv")
    (tmp_path / "video.mp4").write_text("ffconcat version 1.0\nfile private.mkv\n")
    with av.open(str(tmp_path / "video.mp4")) as clip:
        assert len(list(clip.decode(video=0))) == FRAMES  # so it would
    with pytest.raises(ValueError, match=r"video\.mp4: cannot be read or written as a video"):
        video.upscale_video(tmp_path / "video.mp4", tmp_path / "large.mp4", upscaler)
    assert not (tmp_path / "large.mp4").exists()


def test_frames_that_do_not_fit_into_memory_are_refused_before_and_on_the_way(tmp_path, upscaler, monkeypatch):
    source = make_video(tmp_path / "video.mp4")
    for module in (image_io, video_read):
        monkeypatch.setattr(module, "max_pixels", lambda: 1000)
    with pytest.raises(ValueError, match=r"video\.mp4: 48x32 pixels need .* are free"):
        video.upscale_video(source, tmp_path / "large.mp4", upscaler)
    monkeypatch.setattr(video_read, "check_pixels", lambda *args: None)  # as if the file's header said less
    with pytest.raises(ValueError, match=r"video\.mp4: "):
        video.upscale_video(source, tmp_path / "large.mp4", upscaler)
    assert not (tmp_path / "large.mp4").exists()
