"""Training data: finding images and pairs, the image cache, and the crops."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from transformersr.training.data import image_cache
from transformersr.training.data.check import check_images, near_duplicates
from transformersr.training.data.degradation import Degradation, downscale
from transformersr.training.data.folders import find_images, split_images
from transformersr.training.data.image_cache import Cache, MappedImages, Synthetic, read_images
from transformersr.training.data.images import TrainingImage, dhash
from transformersr.training.data.synthetic import draw
from transformersr.training.results.validate import validation_pairs

from command_line import run
from synthetic_images import synthetic_image
from training_crops import make_crops


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """Six good pairs, and pairs with most of the possible faults."""
    folder = tmp_path_factory.mktemp("pairs")
    for index in range(6):
        save_pair(folder, f"deep/{index}", synthetic_image(index), downscale(synthetic_image(index), 4, "area"))
    save_pair(folder, "wrong size", synthetic_image(7), Image.new("RGB", (23, 24)))
    save_pair(folder, "broken lq", synthetic_image(8), Image.new("RGB", (24, 24)))
    (folder / "lr" / "broken lq.bmp").write_bytes(b"BM")
    synthetic_image(9).save(folder / "hr" / "without lq.png")
    synthetic_image(10).save(folder / "lr" / "without gt.png")
    return folder


def save_pair(folder, name, gt, lq):
    for part, image, suffix in (("hr", gt, ".png"), ("lr", lq, ".bmp")):
        path = folder / part / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- crops ---------------------------------------------------------------------------------------


def test_crops_depend_only_on_seed_and_index_and_match_their_pair(folder):
    crops = make_crops(read_images(find_images(folder), 32))
    lq, gt = crops[17]
    assert (lq.shape, gt.shape) == ((3, 8, 8), (3, 32, 32))
    assert torch.equal(crops[17][0], lq)
    assert not torch.equal(crops[18][1], gt)
    box = torch.nn.functional.avg_pool2d(gt.float(), 4)
    assert (box - lq).abs().mean() < 15  # both crops show the same area


def test_low_resolution_crops_equal_crops_of_the_downscaled_image():
    """Filters use the pixels around a crop instead of padding its border."""
    image = TrainingImage("", np.asarray(synthetic_image(0)))
    crops = make_crops([image])
    crops.preset = Degradation(("bicubic",))
    downscaled = np.asarray(downscale(synthetic_image(0), 4, "bicubic"))
    for index in range(10):
        location = crops.location(index)
        small, _ = crops._crop_pair(location, np.random.default_rng(0))
        row, column = location.y // 4, location.x // 4
        assert np.array_equal(small, downscaled[row : row + 8, column : column + 8])


def test_zoomed_out_crops_cover_a_larger_area():
    """On a vertical and a horizontal ramp, the values of a crop give its position and its size in the image."""
    slope = 2
    steps = np.arange(120) * slope
    pixels = np.stack([np.repeat(steps[:, None], 120, 1), np.repeat(steps[None], 120, 0), np.zeros((120, 120))], 2).astype(np.uint8)
    crops = make_crops([TrainingImage("", pixels)], zoom_out_prob=1.0)
    crops.preset = Degradation(("bicubic",))
    sides = set()
    for index in range(40):
        location = crops.location(index)
        small, gt = crops._crop_pair(location, np.random.default_rng(0))
        sides.add(location.side)
        expected = [start + location.side / 2 - 0.5 for start in (location.y, location.x)]
        for crop, count in ((gt, 32), (small, 8)):
            values = crop[..., :2].astype(np.float64) / slope
            inner = values[count // 4 : -count // 4, count // 4 : -count // 4]
            middle = inner.mean((0, 1))
            assert middle == pytest.approx(expected, abs=0.3)  # rounding to a level is up to a quarter of a pixel
            assert inner[-1, 0, 0] - inner[0, 0, 0] == pytest.approx((count // 2 - 1) * location.side / count, abs=1)
            expected = list(middle)
    assert min(sides) >= 40
    assert max(sides) <= 64
    assert len(sides) > 10


def test_pairs_and_small_images_are_not_zoomed_out():
    paired = make_crops(
        [TrainingImage("", np.asarray(synthetic_image(0)), np.asarray(downscale(synthetic_image(0), 4, "area")))], zoom_out_prob=1.0
    )
    small = make_crops([TrainingImage("", np.asarray(synthetic_image(0))[:38])], zoom_out_prob=1.0)
    assert {crops.location(index).side for crops in (paired, small) for index in range(20)} == {32}


def test_crop_position_names_its_image_and_offset(folder):
    crops = make_crops(read_images(find_images(folder), 32))
    location, (_, gt) = crops.location(5), crops[5]
    crop = location.image.gt[location.y : location.y + 32, location.x : location.x + 32]
    assert torch.equal(gt.flatten(1).sort().values, torch.from_numpy(crop.copy()).permute(2, 0, 1).flatten(1).sort().values)
    assert str(location) == f"{location.image.name} at {location.x}, {location.y}"


def test_flat_crops_are_mostly_skipped():
    image = np.full((256, 256, 3), 200, np.uint8)
    image[:, :64] = np.asarray(synthetic_image(0, 64)).repeat(4, axis=0)
    crops = make_crops([TrainingImage("", image)])
    detailed = sum(bool(crops[index][1].float().std() > 4) for index in range(60))
    assert 35 < detailed < 60  # about a third of all positions have detail


# --- files, pairs, synthetic images --------------------------------------------------------------


def test_split_follows_patterns_or_else_content_hashes(folder):
    named = split_images(folder, validation=("[01].png",), exclude=("2.*",))
    assert [path.name for path in named.validation] == ["0.png", "1.png"]
    assert [path.name for path in named.train] == ["3.png", "4.png", "5.png"]
    by_hash = split_images(folder)
    assert len(by_hash.train) + len(by_hash.validation) == 6
    assert by_hash == split_images(folder)
    assert by_hash == split_images(folder, validation=("another/folder/*",))


def test_bad_images_are_skipped_and_reported(tmp_path, caplog):
    synthetic_image(0).save(tmp_path / "good.png")
    synthetic_image(1).convert("CMYK").save(tmp_path / "print.tif")
    synthetic_image(2).convert("RGBA").save(tmp_path / "clear.png")
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(tmp_path / "deep.png")
    synthetic_image(3).save(tmp_path / "moving.gif", save_all=True, append_images=[synthetic_image(4)])
    Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:1000])
    (tmp_path / "virus.exe.png").write_bytes(b"MZ" + bytes(1000))
    store = read_images(find_images(tmp_path), 32)
    assert len(store) == 5
    findings = {finding.path.name: finding for finding in store.findings}
    assert {name for name, finding in findings.items() if not finding.usable} == {"broken.png", "virus.exe.png", "small.png"}
    for name, words in {"print.tif": "CMYK", "deep.png": "16 bits", "moving.gif": "first", "clear.png": "transparent"}.items():
        assert words in findings[name].text
    assert all(str(finding) in caplog.text for finding in store.findings)


def test_folder_without_usable_images_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        find_images(tmp_path / "empty")
    Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    for synthetic in (Synthetic(), Synthetic(1, 64)):
        for cache in (None, Cache(tmp_path / "cache", shared=True)):
            with pytest.raises(ValueError, match="none of 1 images"):
                read_images(find_images(tmp_path), 32, synthetic=synthetic, cache=cache)


def test_mismatched_pairs_are_reported_and_the_rest_is_used(paired):
    split = split_images(paired, validation=("hr/deep/[01].png",))
    assert not {path for path in split.train if path.parts[-2] == "lr" and path.name != "without gt.png"}
    store = read_images(split.train, 32, 4, split.partners)
    bad = {finding.path.name: finding.text for finding in store.findings}
    assert set(bad) == {"wrong size.png", "broken lq.png", "without lq.png", "without gt.png"}
    assert "96x96 is not exactly 4 times 23x24" in bad["wrong size.png"]
    assert len(store) == 4
    report = check_images(paired, 32, 4, ("hr/deep/[01].png",))
    assert (len(report.train), len(report.validation), report.findings) == (4, 2, list(store.findings))


def test_paired_crops_are_aligned_and_not_degraded(paired):
    split = split_images(paired, validation=("hr/deep/0.png",))
    crops = make_crops(read_images(split.train, 32, 4, split.partners), "scan")
    for index in range(12):
        lq, gt = crops[index]
        assert (torch.nn.functional.avg_pool2d(gt.float(), 4) - lq).abs().max() <= 1  # rounded along rows, then along columns


def test_validation_uses_the_low_resolution_image_of_a_pair(paired):
    split = split_images(paired, validation=("hr/deep/[01].png",))
    for crop, side in ((0, 96), (70, 68)):
        for pair in validation_pairs(split.validation, 4, crop, split.partners):
            assert pair.gt.shape[2:] == (side, side)
            assert (torch.nn.functional.avg_pool2d(pair.gt, 4) - pair.lq).abs().max() <= 1.01 / 255


def test_max_pixels_downscales_large_images(folder):
    store = read_images(find_images(folder), 32, max_pixels=70 * 70)
    assert {image.gt.shape for image in store} == {(70, 70, 3)}


def test_near_duplicates_are_reported_and_never_split_across_sets(tmp_path):
    (tmp_path / "held").mkdir()
    for name in ("one.png", "two.jpg", "held/three.webp"):
        synthetic_image(1).resize((90, 90)).save(tmp_path / name)
    for seed in range(2, 12):
        synthetic_image(seed).save(tmp_path / f"{seed}.png")
    report = check_images(tmp_path, 32, validation=("held/*",))
    findings = report.findings
    assert len(report.train) + len(report.validation) == 11
    assert {finding.path.name: finding.usable for finding in findings} == {"one.png": False, "two.jpg": False}
    assert all("looks the same as" in finding.text and "used for validation" in finding.text for finding in findings)
    assert {path.name for path in split_images(tmp_path).validation} < {
        f"{seed}.png" for seed in range(2, 12)
    }  # chosen from the images without duplicates
    assert near_duplicates({tmp_path: 0, tmp_path / "flat": 0}) == []
    assert dhash(np.zeros((9, 9, 3), np.uint8)) == 0


def test_identical_files_are_skipped_and_reported(tmp_path):
    for seed in range(6):
        synthetic_image(seed).save(tmp_path / f"{seed}.png")
    for name in ("copy.png", "again.png"):
        (tmp_path / name).write_bytes((tmp_path / "3.png").read_bytes())
    split = split_images(tmp_path)
    assert {path.name for path in [*split.train, *split.validation]} == {*(f"{seed}.png" for seed in (0, 1, 2, 4, 5)), "3.png"}
    assert [(path.name, "3.png" in reason) for path, reason in split.skipped] == [("again.png", True), ("copy.png", True)]


PAIR_NAMES = [("HR", "LR"), ("GT", "LQ"), ("HQ", "LQ"), ("train_HR", "train_LR"), ("high", "low"), ("target", "input")]
PAIR_NAMES += [("DIV2K_train_HR", "DIV2K_train_LR_bicubic/X4"), ("set/Hr", "set/lr"), ("HR_x4", "LR_x4"), ("my hr images", "my lr images")]


@pytest.mark.parametrize(("sharp", "small"), PAIR_NAMES)
@pytest.mark.parametrize("ending", ["", "x4", "_x4"])
def test_common_names_of_pair_folders_are_recognised(tmp_path, sharp, small, ending):
    for folder in (sharp, small):
        (tmp_path / folder).mkdir(parents=True)
    for seed in range(4):
        synthetic_image(seed, 96).save(tmp_path / sharp / f"{seed:04}.png")
        synthetic_image(seed, 96).resize((24, 24)).save(tmp_path / small / f"{seed:04}{ending}.png")
    split = split_images(tmp_path, scale=4)
    assert len(split.train) + len(split.validation) == 4
    assert {one.stem: two.stem for one, two in split.partners.items()} == {f"{seed:04}": f"{seed:04}{ending}" for seed in range(4)}
    report = check_images(tmp_path, 64, 4)
    assert (len(report.train) + len(report.validation), report.findings) == (4, [])


@pytest.mark.parametrize("other", [2, 3])
def test_only_pairs_of_the_network_scale_are_used(tmp_path, other):
    for folder in ("HR", "LR/X4", f"LR/X{other}"):
        (tmp_path / folder).mkdir(parents=True)
    for seed in range(4):
        synthetic_image(seed, 96).save(tmp_path / "HR" / f"{seed}.png")
        for scale in (4, other):
            synthetic_image(seed, 96).resize((96 // scale, 96 // scale)).save(tmp_path / "LR" / f"X{scale}" / f"{seed}x{scale}.png")
    report = check_images(tmp_path, 64, 4)
    findings = report.findings
    assert len(report.train) + len(report.validation) == 4
    assert {finding.path.stem for finding in findings} == {f"{seed}x{other}" for seed in range(4)}
    assert not any(finding.usable for finding in findings)


@pytest.mark.parametrize("scale", [4, 2])
@pytest.mark.parametrize(("sharp", "small"), [("big/{}.png", "little/{}.png"), ("{}.png", "{}x4.png"), ("a/{}.png", "b/{}_x4.jpg")])
def test_downscaled_copies_are_never_used_as_ground_truth(tmp_path, sharp, small, scale):
    for seed in range(5):
        for pattern, side in ((sharp, 96), (small, 24)):
            path = tmp_path / pattern.format(seed)
            path.parent.mkdir(exist_ok=True)
            synthetic_image(seed, 96).resize((side, side), Image.Resampling.BICUBIC).save(path)
    split = split_images(tmp_path, scale=scale)
    names = {path.relative_to(tmp_path).as_posix() for path in [*split.train, *split.validation]}
    assert names == {sharp.format(seed) for seed in range(5)}
    if scale == 4:
        assert len(split.partners) == 5
    else:
        assert len(split.skipped) == 5
        assert "expected 1 / 2 of its size" in split.skipped[0][1]


def test_same_names_with_different_content_are_not_pairs(tmp_path):
    """Frames of two videos of different size often have the same numbers."""
    for folder, side, first in (("one", 96, 0), ("two", 48, 10)):
        (tmp_path / folder).mkdir()
        for seed in range(5):
            synthetic_image(first + seed, side).save(tmp_path / folder / f"{seed}.png")
    split = split_images(tmp_path, scale=2)
    assert (len(split.train) + len(split.validation), split.partners, split.skipped) == (10, {}, [])


def test_check_fails_without_a_next_command_if_no_image_can_be_used(tmp_path):
    for index in range(2):
        synthetic_image(index, 32).save(tmp_path / f"{index}.png")
    result = run("check", tmp_path, "--device", "cpu")
    assert result.exit_code == 1
    assert "add images of at least 256x256" in result.output
    assert "next:" not in result.output


def test_check_counts_pairs(tmp_path):
    for index in range(5):
        for folder, side in (("hr", 160), ("lr", 40)):
            (tmp_path / folder).mkdir(exist_ok=True)
            synthetic_image(index, 160).resize((side, side)).save(tmp_path / folder / f"{index}.png")
    result = run("check", tmp_path, "--device", "cpu", "--patch", "16")
    assert "5 images can be used" in result.output
    assert "sizes: all 160x160" in result.output
    assert "5 pairs with your own small versions" in result.output


def test_check_prints_sizes_the_plan_and_the_next_command(tmp_path):
    for index in range(2):
        synthetic_image(index, 256 + 32 * index).save(tmp_path / f"{index}.png")
    result = run("check", tmp_path, "--device", "cpu", "--minutes", "20")
    for text in (
        "2 images can be used: 1 for training, 1 held out",
        "sizes: 256x256 to 288x288",
        "learns to upscale crops of 64x64 pixels to 256x256",
        "only 1 training image:",
        "too few to tell a small gain from chance",
        f"next: transformersr train {tmp_path} --out RUN ",
        " --device cpu",
        " --minutes 20",
    ):
        assert text in result.output


def test_synthetic_images_get_their_share_of_the_crops(folder):
    store = read_images(find_images(folder), 32, synthetic=Synthetic(2, 80, seed=5))
    generated = [image for image in store if image.synthetic]
    assert [image.name for image in generated] == ["synthetic 5-0", "synthetic 5-1"]
    assert np.array_equal(generated[1].gt, draw(np.random.default_rng([5, 1]), 80))
    crops = make_crops(store, synthetic_share=0.5, keep_flat=1.0)
    assert 35 < sum(crops.location(index).image.synthetic for index in range(100)) < 65


# --- image cache ---------------------------------------------------------------------------------


def test_cache_file_holds_the_same_images_and_is_reused(paired, tmp_path, monkeypatch):
    split = split_images(paired, validation=("hr/deep/0.png",))
    options = {"smallest": 32, "scale": 4, "partners": split.partners, "synthetic": Synthetic(1, 64)}
    memory = read_images(split.train, **options)
    cached = read_images(split.train, **options, cache=Cache(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "map_in_order", lambda *_: None)  # a second read would fail
    reused = read_images(split.train, **options, cache=Cache(tmp_path / "cache"))
    for store in (cached, reused):
        assert isinstance(store.images, MappedImages)
        assert (store.findings, store.hashes) == (memory.findings, memory.hashes)
        assert [image.name for image in store] == [image.name for image in memory]
        for one, other in zip(store, memory, strict=True):
            assert np.array_equal(one.gt, other.gt)
            assert np.array_equal(one.lq, other.lq)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".json", ".rgb"}


def test_images_within_the_budget_are_kept_in_memory(folder, tmp_path):
    paths = find_images(folder)
    assert isinstance(read_images(paths, 32, cache=Cache(tmp_path)).images, list)
    assert isinstance(read_images(paths, 32, cache=Cache(tmp_path, budget=6 * 96 * 96 * 3 - 1)).images, MappedImages)
    assert isinstance(read_images(paths, 32, cache=Cache(tmp_path, shared=True)).images, MappedImages)


@pytest.mark.parametrize("damage", ["cut", "changed", "index", "touched", "settings"])
def test_outdated_or_damaged_cache_is_rebuilt(folder, tmp_path, damage):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    cache, smallest = Cache(tmp_path / "cache", shared=True), 32
    before = read_images(find_images(data), smallest, cache=cache)[0].gt.copy()
    file = next((tmp_path / "cache").glob("*.rgb"))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "changed":
        file.write_bytes(b"\x01\x02" + file.read_bytes()[2:])
    elif damage == "index":
        (tmp_path / "cache" / "images.json").write_text("{")
    elif damage == "touched":
        os.utime(data / "3.png", (0, 0))
    else:
        smallest = 33
    after = read_images(find_images(data), smallest, cache=cache)
    assert np.array_equal(after[0].gt, before)
    files = list((tmp_path / "cache").glob("*.rgb"))
    assert [path.stat().st_size for path in files] == [6 * 96 * 96 * 3]
    assert json.loads((tmp_path / "cache" / "images.json").read_text())["data"] == files[0].name


def test_full_disk_is_reported_before_reading(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ValueError, match="max_pixels"):
        read_images(find_images(folder), 32, cache=Cache(tmp_path, shared=True))


def test_workers_receive_a_path_instead_of_pixels(folder, tmp_path):
    store = read_images(find_images(folder), 32, cache=Cache(tmp_path, shared=True))
    sent = pickle.dumps(make_crops(store))
    assert len(sent) < 4000
    assert equal(pickle.loads(sent)[9], make_crops(store)[9])


@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_crops_are_the_same_with_forked_and_spawned_workers(folder, tmp_path, method):
    workers = 2 if method == "fork" else 1  # a spawned worker takes seconds to start
    store = read_images(find_images(folder), 32, cache=Cache(tmp_path, shared=True), workers=2 if method == "fork" else 0)
    crops = make_crops(store, "web")
    loader = DataLoader(crops, batch_sampler=[range(4), range(4, 8)], num_workers=workers, multiprocessing_context=method)
    for place, (lq, gt) in enumerate(loader):
        for index in range(4):
            assert equal((lq[index], gt[index]), crops[4 * place + index])


def test_spawned_workers_always_use_the_cache_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "map_in_order", lambda function, arguments, workers: map(function, arguments))
    for method, kind in {"fork": list, "spawn": MappedImages}.items():
        monkeypatch.setattr(image_cache.multiprocessing, "get_start_method", lambda allow_none, method=method: method)
        assert isinstance(read_images(find_images(folder), 32, cache=Cache(tmp_path), workers=2).images, kind)


# --- swatches ------------------------------------------------------------------------------------


def test_half_of_the_swatches_are_two_plain_colours():
    image = np.random.default_rng(0).integers(256, size=(256, 256, 3), dtype=np.uint8)
    crops, plain = make_crops([TrainingImage("", image)], swatches=1.0, patch=16), 0
    for index in range(60):
        lq, gt = crops[index]
        assert (lq.shape, gt.shape) == ((3, 16, 16), (3, 64, 64))
        assert equal(crops[index], (lq, gt))
        if len(gt.flatten(1).unique(dim=1).T) < 500:  # a soft edge has a few hundred shades at most
            plain += 1
            assert (lq.float().mean((1, 2)) - gt.float().mean((1, 2))).abs().max() < 6
    assert 15 < plain < 45


def test_other_swatches_are_tones_on_part_of_a_crop():
    crops = make_crops([TrainingImage("", np.full((256, 256, 3), 200, np.uint8))], patch=16)
    aligned = 0
    for index in range(40):
        small, gt = crops._crop_pair(crops.location(index), np.random.default_rng(0), np.random.default_rng(index))
        toned = (gt != 200).any(2)
        assert 0.02 < toned.mean() < 0.26
        rows, columns = np.flatnonzero(toned.any(1)), np.flatnonzero(toned.any(0))
        area = gt[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)
        assert (area.std((0, 1)) > 1).any()
        assert np.abs(small.mean((0, 1)) - gt.mean((0, 1))).max() < 3
        aligned += np.array_equal(small.repeat(4, 0).repeat(4, 1), gt)
    assert 10 < aligned < 30  # half consist of whole small pixels


def test_pairs_have_no_tones():
    sharp = synthetic_image(0)
    crops = make_crops([TrainingImage("", np.asarray(sharp), np.asarray(downscale(sharp, 4, "area")))])
    location = crops.location(0)
    toned = crops._crop_pair(location, np.random.default_rng(0), np.random.default_rng(0))
    assert all(map(np.array_equal, toned, crops._crop_pair(location, np.random.default_rng(0))))
