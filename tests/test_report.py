"""The report and the strips of a training run."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import asdict
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner

from transformersr.training.adversarial import UNetDiscriminator, discriminator_loss
from transformersr.training.cli_results import report
from transformersr.training.config import from_values
from transformersr.training.results.charts import Chart, draw
from transformersr.training.results.pace import Pace
from transformersr.training.results.report import write_report
from transformersr.training.results.run_files import read_records, read_run
from transformersr.training.results.strips import CELL, busiest_area, draw_strip, save_image, strip_side
from transformersr.training.results.validate import Pair, Scores, resize_with, to_tensor
from transformersr.training.results.verdict import Baseline, answers, find_baseline, summary
from transformersr.training.run_state import Progress

from synthetic_images import synthetic_image

SCORES = asdict(Scores(psnr_y=0.0, ssim_y=0.9, psnr_rgb=28.0, edge_psnr=24.0, flat_psnr=42.0, shift_y=0.001, shift_x=0.0))
SCORES |= {"psnr_y": 0.0, "shift_x": None, "sharpness": 0.9, "color_shift": 0.4}
BICUBIC = {**SCORES, "psnr_y": 26.78, "edge_psnr": 20.0, "shift_x": 0.0}


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def validation_records(*values):
    """Validation records with these PSNR-Y values, every 20 steps from step 0."""
    counts = {"better_on": 2, "measured_on": 3}
    return [{"step": 20 * index, "seconds": 200, **SCORES, **counts, "psnr_y": psnr} for index, psnr in enumerate(values)]


@pytest.fixture
def run(tmp_path):
    """The folder of a run with 6 log lines and 4 validations, the third the best, killed while writing."""
    run = tmp_path / "x4 <mine>"
    run.mkdir()
    settings = {"size": "tiny", "scale": 4, "preset": "clean", "steps": 60, "edge_start": 0.5, "flat_weight": 0.25, "init": "a&b"}
    about = {
        "bicubic": BICUBIC,
        "images": {"train": 1206, "validation": 31},
        "device": "cpu (x86_64)",
        "precision": "fp32",
        "processes": 1,
    }
    (run / "config.json").write_text(json.dumps(settings))
    (run / "run.json").write_text(json.dumps({**about, "versions": {"torch": "2.13.0"}, "warnings": ["<b>.png: too small"]}))
    _, judged = discriminator_loss(UNetDiscriminator(4), torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    figures = {"learning_rate": 1e-4, "gradient_norm": 0.1, "skipped": 2, **{name: float(value) for name, value in judged.items()}}
    log = [{"step": 10 * step, "seconds": step, "loss": 0.1 / step, **figures} for step in range(1, 7)]
    validations = validation_records(28.0, 29.0, 30.28, 30.0)
    (run / "train.jsonl").write_text(json_lines(log) + '{"step": 70, "lo')
    (run / "validation.jsonl").write_text(json_lines(validations) + "{")
    for step in (20, 40, 60):
        save_image(synthetic_image(step), run / "strips" / f"{step:07d}.png")
    return run


def test_report_rates_the_best_weights(run):
    result = CliRunner().invoke(report, [str(run)])
    assert result.output.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert "Best weights (step 40): <strong>2.28 dB better than a&amp;b on your images (better on 2 of 3 validation images)" in page
    assert "3.50 dB over bicubic" in page
    for text in (
        "tiny, x4",
        "1,206 for training, 31 for validation",
        "60 of 60",
        "&lt;b&gt;.png: too small",
        "2 steps were skipped",
    ):
        assert text in page, text
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_report_does_not_present_the_start_as_progress(run):
    (run / "validation.jsonl").write_text(json_lines(validation_records(30.0, 29.0, 29.5)))
    (run / "best.safetensors").touch()
    page = write_report(run).read_text()
    assert "(step 0): <strong>not better than a&amp;b on your images yet" in page
    assert "is still the same as a&amp;b" in page
    assert "over bicubic" not in page.partition("<details>")[0]
    assert "--last --install" in page


def test_report_shows_answers_before_charts(run):
    first, _, folded = write_report(run).read_text().partition("<details>")
    assert "Better lines?" in first
    assert "<img" in first
    assert "<svg" not in first
    assert len(re.findall("<svg", folded)) == 12  # eight for validation; loss, gradient, learning rate, two for the discriminator


def test_charts_show_gain_over_start_and_both_discriminator_curves(run):
    page = write_report(run).read_text()
    charts = {re.sub("<.*", "", text): text for text in re.findall("<figcaption>(.*?)</figure>", page, re.DOTALL)}
    gain = ElementTree.fromstring(re.search("<svg.*?</svg>", charts["gain over a&amp;b, all pixels (dB)"], re.DOTALL)[0])
    assert "step 40: 2.28" in gain.get("data-hover")
    assert len(re.findall('class="line-', charts["discriminator logits"])) == 2


def test_report_is_self_contained(run):
    page = write_report(run).read_text()
    sources = re.findall(r'(?:src|href)="(.{10})', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image") for source in sources)
    assert "http" not in page
    for chart in re.findall("<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(chart)


@pytest.mark.parametrize("name", ["config.json", "run.json", "validation.jsonl", "train.jsonl", "strips"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "wrong type"])
def test_report_skips_missing_or_damaged_files(run, name, damage):
    path = run / name
    if name == "strips":
        path = path / "0000060.png"
    text = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(text[: len(text) // 2] if damage == "truncated" else b'["no", 1]\n')
    assert write_report(run).read_text().endswith("</html>\n")


def test_run_without_measurements_has_a_report(tmp_path):
    (tmp_path / "config.json").write_text('{"size": "tiny"}')
    assert "There is no validation yet" in write_report(tmp_path).read_text()


def test_folder_without_a_run_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        write_report(tmp_path / "none")


def test_steps_repeated_after_a_resume_count_once(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json_lines([{"step": step, "loss": loss} for step, loss in ((1, 1), (2, 2), (3, 3), (2, 20), (3, 30))]))
    assert [(record["step"], record["loss"]) for record in read_records(path)] == [(1, 1), (2, 20), (3, 30)]


def test_step_with_a_loss_change_is_marked(run):
    assert "edge weighting starts" in write_report(run).read_text()
    assert read_run(run).last["step"] == 60


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-9, 2e-9], [float(value) for value in range(5000)]])
def test_charts_stay_within_their_frame(values):
    svg = re.search("<svg.*</svg>", draw(Chart("a & b", {"one": list(enumerate(values))}, {"c<d": 3.0})))[0]
    points = re.findall(r"[ML]([0-9.-]+) ([0-9.-]+)", ElementTree.fromstring(svg).find("g/path").get("d"))
    assert 1 <= len(points) <= 300
    assert all(58 <= float(x) <= 536 and 22 <= float(y) <= 194 for x, y in points)


def test_chart_without_points_is_not_drawn():
    assert draw(Chart("empty", {"one": []})) == ""


# --- summary -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"minutes": 20.0}, "2.0 s/step: about 550 steps in 20 minutes on this machine"),
        ({"steps": 600}, "2.0 s/step: about 22 min for 600 steps on this machine"),
        ({"steps": 600, "save_minutes": 0.0, "save_every": 5}, "2.0 s/step: about 40 min for 600 steps on this machine"),
    ],
)
def test_forecast_includes_checkpoint_time(settings, words):
    pace = Pace(steps=deque([2.0] * 10), checkpoint=10.0)
    assert pace.forecast(from_values({"save_minutes": 2.0, **settings}), Progress()) == words


def test_baseline_is_the_start_unless_bicubic_is_better():
    bicubic, start = {"psnr_y": 27.0}, {"psnr_y": 30.0}
    assert find_baseline("x4-tiny", start, bicubic) == Baseline("x4-tiny", start)
    assert find_baseline("x4-tiny", {"psnr_y": 6.0}, bicubic).name == "bicubic"  # weights of another scale, whose last layer is new
    assert find_baseline("none", start, bicubic).name == "bicubic"
    assert find_baseline("/runs/mine/best.safetensors", start, bicubic).name == "mine"
    assert find_baseline("C:\\mine\\lines.safetensors", start, bicubic).name == "lines"


@pytest.mark.parametrize(
    ("best", "words"),
    [
        ({"psnr_y": 30.2, "measured_on": 8, "better_on": 7}, "0.20 dB better than x4-tiny on your images (better on 7 of 8"),
        ({"psnr_y": 30.2, "measured_on": 1, "better_on": 1}, "on the only validation image, too few to be sure"),
        ({"psnr_y": 30.2, "measured_on": 13, "better_on": 6}, "on average, but only on 6 of 13 validation images"),
        ({"psnr_y": 30.0, "measured_on": 8, "better_on": 0}, "not better than x4-tiny on your images yet"),
    ],
)
def test_summary_claims_no_more_than_was_measured(best, words):
    assert words in summary(best, Baseline("x4-tiny", {"psnr_y": 30.0}), {"psnr_y": 27.0})


def test_report_questions_are_answered_in_words():
    before = {"psnr_y": 30.0, "edge_psnr": 24.0, "flat_psnr": 44.0, "sharpness": 0.8, "color_shift": 0.3}
    after = {"psnr_y": 30.2, "edge_psnr": 24.01, "flat_psnr": 43.0, "sharpness": 0.9, "color_shift": 2.0}
    assert [one.answer for one in answers(after, Baseline("x4-tiny", before))] == ["Yes", "About the same", "No, worse", "Yes", "No"]
    assert answers({"psnr_y": None}, Baseline("x4-tiny", before)) == []


# --- strips --------------------------------------------------------------------------------------


def pair(size, scale=4):
    gt = synthetic_image(1, size)
    return Pair("Zeichnung-ö.png", to_tensor(gt.resize((size // scale, size // scale))), to_tensor(gt))


def test_strip_shows_the_area_with_the_most_edges():
    gt = torch.full((1, 3, 256, 200), 0.5)
    gt[..., 150:180:4, 90:130] = 0
    place = busiest_area(gt, 64, 4)
    assert gt[place].shape == (1, 3, 64, 64)
    assert (gt[place] == 0).sum() == (gt == 0).sum()
    assert [part.start % 4 for part in place[1:]] == [0, 0]


@pytest.mark.parametrize(("size", "side"), [(256, 192), (100, 96), (64, 64), (20, 16)])
def test_strip_pixels_are_scaled_by_whole_numbers(size, side):
    assert strip_side(torch.zeros(1, 3, size, size + 50)) == side
    assert CELL % side == 0


def test_strip_has_a_row_per_image_and_captions():
    watched = [pair(256), pair(96)]
    columns = {way: [resize_with(way, 4)(one.lq) for one in watched] for way in ("bicubic", "lanczos")}
    strip = draw_strip(watched, columns, 4)
    assert strip.width == 3 * CELL + 8
    assert strip.height > 2 * (CELL + 16)
    captions = strip.crop((0, strip.height - 15, strip.width, strip.height)).convert("L")
    assert all(captions.crop((left, 0, left + CELL, 15)).getextrema()[0] < 128 for left in (0, CELL + 4, 2 * CELL + 8))
