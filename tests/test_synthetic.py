"""Synthetic images: reproducible, with exactly flat areas and sharp edges."""

import numpy as np
import pytest

from transformersr.training.data.synthetic import SCENES, coverage, draw, draw_scene, motifs

SIZE = 160


@pytest.fixture(scope="module")
def images():
    return [draw(np.random.default_rng([1, seed]), SIZE) for seed in range(16)]


@pytest.mark.parametrize("size", [64, 96, 250, 512])
def test_image_has_the_requested_shape_and_dtype(size):
    image = draw(np.random.default_rng(0), size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8


def test_same_seed_gives_the_same_image():
    first, second = (draw(np.random.default_rng(5), SIZE) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_one_generator_gives_different_images():
    rng = np.random.default_rng(5)
    assert not np.array_equal(draw(rng, SIZE), draw(rng, SIZE))


def test_different_seeds_give_different_images(images):
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("name", SCENES)
def test_every_scene_draws_something(name):
    assert draw_scene(name, np.random.default_rng(0), 192).std() > 1


def test_most_neighbouring_pixels_are_equal(images):
    shares = [np.mean(np.all(image[:, 1:] == image[:, :-1], axis=-1)) for image in images]
    assert np.mean(shares) > 0.5


def test_edges_are_at_most_two_pixels_wide(images):
    """Where an image changes a lot within four pixels, most of the change is within two of them."""
    shares = []
    for image in images:
        light = image.mean(axis=-1)
        wide = np.abs(light[:, 4:] - light[:, :-4])
        narrow = np.max([np.abs(light[:, 2 + i : light.shape[1] - 2 + i] - light[:, i : light.shape[1] - 4 + i]) for i in range(3)], axis=0)
        if (wide > 60).any():
            shares.append(np.mean(narrow[wide > 60] >= 0.9 * wide[wide > 60]))
    assert len(shares) > len(images) / 2
    assert np.mean(shares) > 0.75


def test_colours_cover_dark_light_and_many_hues(images):
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(int)
    assert pixels.min() < 30
    assert pixels.max() > 240
    vivid = pixels[pixels.max(axis=1) - pixels.min(axis=1) > 60]
    assert len(vivid) > 0.1 * len(pixels)
    assert set(vivid.argmax(axis=1)) == {0, 1, 2}


def test_coverage_is_the_exact_area():
    start = np.array([[-3.5, 2.25], [4.5, 2.25], [4.5, 6.0], [-3.5, 6.0]])
    expected = np.zeros((8, 8))
    expected[2:6, :5] = np.array([0.75, 1, 1, 1])[:, None] * np.array([1, 1, 1, 1, 0.5])
    np.testing.assert_allclose(coverage(start, np.roll(start, -1, axis=0), 8, 8), expected, atol=1e-9)


def test_triangle_coverage_matches_supersampling():
    for corners in np.random.default_rng(0).uniform(-20, 40, (20, 3, 2)):
        after = np.roll(corners, -1, axis=0)
        fine = coverage(corners * 8, after * 8, 160, 160).reshape(20, 8, 20, 8).mean(axis=(1, 3))
        np.testing.assert_allclose(coverage(corners, after, 20, 20), fine, atol=1e-6)


def test_invalid_font_file_is_named(tmp_path):
    broken = tmp_path / "letters.ttf"
    broken.write_bytes(b"not a font")
    for path in (broken, tmp_path / "missing.ttf"):
        with pytest.raises(ValueError, match=path.name):
            draw(np.random.default_rng(0), 64, [path])


def test_lettering_without_a_scalable_font_still_draws_a_scene(monkeypatch):
    monkeypatch.setattr(motifs, "load_font", lambda name, size: None)
    motifs._alphabets.cache_clear()
    try:
        assert draw_scene("lettering", np.random.default_rng(0), SIZE).shape == (SIZE, SIZE, 3)
    finally:
        motifs._alphabets.cache_clear()
