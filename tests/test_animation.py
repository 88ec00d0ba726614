"""Animated images stay animated: durations, loop count, disposal, transparency."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, features

from transformersr.upscale.checkpoint import save_model

from command_line import run
from random_models import V2, random_model

COLORS = [(220, 40, 40), (40, 200, 60), (50, 60, 210)]
DURATIONS = [40, 120, 500]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(random_model(V2, size=0.01), path)
    return str(path)


def frames(transparent=False):
    """A square that moves over a plain or a transparent background."""
    result = []
    for index, color in enumerate(COLORS):
        frame = Image.new("RGBA", (24, 16), (0, 0, 0, 0) if transparent else (240, 240, 200, 255))
        frame.paste((*color, 255), (6 * index, 4, 6 * index + 8, 12))
        if transparent:
            frame.putpixel((6 * index, 4), (*color, 128))  # without partial alpha WebP drops the alpha channel of cropped frames
        result.append(frame if transparent else frame.convert("RGB"))
    return result


def save_animation(path, transparent=False, **options):
    first, *rest = frames(transparent)
    lossless = (
        {"lossless": True, "exact": True} if path.suffix == ".webp" else {"disposal": 2} if path.suffix == ".gif" and transparent else {}
    )
    first.save(path, save_all=True, append_images=rest, duration=DURATIONS, **lossless, **options)
    return path


def read_frames(path):
    """Durations, loop count, and RGBA of every frame as displayed."""
    with Image.open(path) as image:
        durations, pixels = [], []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            durations.append(image.info["duration"])
            pixels.append(np.asarray(image.convert("RGBA")).astype(int))
        return durations, image.info.get("loop"), pixels


def upscale(model, *arguments):
    return run("upscale", *arguments, "-m", model, "--device", "cpu")


SOURCES = ["gif", "png", "webp", *(["avif"] if features.check("avif") else [])]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", ["gif", "png", "apng", "webp"])
@pytest.mark.parametrize("transparent", [False, True])
def test_frames_durations_and_transparency_are_kept(tmp_path, model, source, target, transparent):
    path = save_animation(tmp_path / f"a.{source}", transparent, **({} if source == "avif" else {"loop": 0}))
    assert upscale(model, path, "-o", tmp_path / f"b.{target}", "--quality", "100").exit_code == 0
    durations, loop, pixels = read_frames(tmp_path / f"b.{target}")
    assert durations == DURATIONS
    assert loop == 0
    assert pixels[0].shape == (32, 48, 4)
    for index, (color, frame) in enumerate(zip(COLORS, pixels, strict=True)):
        inside = frame[12:20, 12 * index + 4 : 12 * index + 12].reshape(-1, 4).mean(0)
        assert np.abs(inside - [*color, 255]).max() < 30
        outside = frame[26:, :].reshape(-1, 4).mean(0)
        assert (outside[3] if transparent else np.abs(outside - [240, 240, 200, 255]).max()) < 20


@pytest.mark.parametrize(("source", "target"), [("gif", "webp"), ("webp", "gif"), ("png", "gif"), ("gif", "png"), ("gif", "gif")])
@pytest.mark.parametrize("plays", [1, 3, 0])
def test_loop_count_is_kept(tmp_path, model, source, target, plays):
    def loop(suffix):
        """GIF counts repetitions and the other formats count plays; a GIF without a count plays once."""
        return plays if suffix != "gif" or plays == 0 else None if plays == 1 else plays - 1

    options = {} if loop(source) is None else {"loop": loop(source)}
    path = save_animation(tmp_path / f"a.{source}", **options)
    assert upscale(model, path, "-o", tmp_path / f"b.{target}").exit_code == 0
    assert read_frames(tmp_path / f"b.{target}")[1] == loop(target)


def test_apng_default_image_is_not_an_animation_frame(tmp_path, model):
    first, *rest = frames()
    still = Image.new("RGB", (24, 16), "black")
    still.save(tmp_path / "a.png", save_all=True, append_images=[first, *rest], default_image=True, duration=DURATIONS, loop=0)
    assert upscale(model, tmp_path / "a.png").exit_code == 0
    durations, _, pixels = read_frames(tmp_path / "a_x2.png")
    assert durations == DURATIONS
    assert pixels[0].mean() > 100


def test_folder_may_mix_animations_and_stills(tmp_path, model):
    (tmp_path / "in").mkdir()
    save_animation(tmp_path / "in" / "a.gif", loop=0)
    frames()[0].save(tmp_path / "in" / "b.gif")
    result = upscale(model, tmp_path / "in", "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, "2 of 2 images done\n")
    assert [Image.open(tmp_path / "out" / name).n_frames for name in ("a.png", "b.png")] == [3, 1]


def test_still_format_gets_the_first_frame_with_a_warning(tmp_path, model, caplog):
    path = save_animation(tmp_path / "a.gif", loop=0)
    assert upscale(model, path, "--format", "jpg").exit_code == 0
    assert "a.gif has several frames or pages; only one of them is used" in caplog.text


def test_animation_metadata_is_kept(tmp_path, model):
    path = save_animation(tmp_path / "a.webp", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", loop=0)
    path = save_animation(tmp_path / "a.gif", comment=b"drawn by hand", loop=0)
    assert upscale(model, path, "-o", tmp_path / "b.gif").exit_code == 0
    assert Image.open(tmp_path / "b.gif").info["comment"] == b"drawn by hand"
    assert upscale(model, path, "-o", tmp_path / "b.png").exit_code == 0
    assert Image.open(tmp_path / "b.png").info["Comment"] == "drawn by hand"


def test_truncated_animation_is_named_and_writes_nothing(tmp_path, model, caplog):
    path = save_animation(tmp_path / "a.png", loop=0)
    path.write_bytes(path.read_bytes()[:-120])
    assert upscale(model, path, "-o", tmp_path / "b.png").exit_code == 1
    assert "a.png: the image is truncated or damaged" in caplog.text
    assert not (tmp_path / "b.png").exists()


def test_animation_works_through_standard_streams(tmp_path, model):
    path = save_animation(tmp_path / "a.gif", loop=0)
    with path.open("rb") as file:
        result = run("upscale", "-", "-m", model, "--format", "gif", input=file)
    (tmp_path / "b.gif").write_bytes(result.stdout_bytes)
    assert read_frames(tmp_path / "b.gif")[0] == DURATIONS
