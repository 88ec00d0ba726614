"""The report of a run as one self-contained HTML page: `transformersr report RUN`."""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, features

from ...upscale.atomic import write_aside
from .advice import command_line, resume_command, train_longer_command
from .charts import Chart, Point, draw
from .pace import duration
from .run_files import Record, Run, as_object, read_run
from .verdict import Baseline, answers, is_number, summary

logger = logging.getLogger(__name__)

SCORES = {
    "psnr_y": ("PSNR-Y (dB)", "{:.2f}"),
    "ssim_y": ("SSIM-Y", "{:.4f}"),
    "psnr_rgb": ("PSNR-RGB (dB)", "{:.2f}"),
    "edge_psnr": ("PSNR on edges (dB)", "{:.2f}"),
    "flat_psnr": ("PSNR on flats (dB)", "{:.2f}"),
    "shift_y": ("shift down (pixels)", "{:+.3f}"),
    "shift_x": ("shift right (pixels)", "{:+.3f}"),
    "sharpness": ("sharpness (1: as sharp as the original)", "{:.3f}"),
    "color_shift": ("colour shift (levels)", "{:.2f}"),
}
"""Titles and formats of validation metrics."""
GAINS = {"psnr_y": "all pixels", "edge_psnr": "lines", "flat_psnr": "flat areas"}
"""Charted as gains in dB, which would not be visible on the scale of the metric itself."""
CHARTED = ("ssim_y", "sharpness", "color_shift")
TRAINING = {
    "loss": "pixel loss",
    "loss_frequency": "frequency loss, weighted",
    "loss_filters": "random-filter loss, weighted",
    "loss_features": "feature loss, weighted",
    "loss_gan": "adversarial loss, weighted",
    "loss_d": "discriminator loss",
    "d_accuracy": "discriminator accuracy",
    "gradient_norm": "gradient norm before clipping",
    "learning_rate": "learning rate",
}
"""Titles of training metrics; others are charted under their own name."""
NOT_CHARTED = ("step", "seconds", "skipped", "rolled_back", "d_real", "d_fake")
MAX_ROWS = 40


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a run and return its path; parts for which the run has no data are omitted.

    Raises ValueError if there is no run.
    """
    run = read_run(folder)
    path = run.folder / "report.html"
    with write_aside(path) as aside:
        aside.write_text(page(run), encoding="utf-8")
    return path


# --- the page ------------------------------------------------------------------------------------


def page(run: Run) -> str:
    """The whole page: first the answers for an artist, then curves and settings in a collapsed section."""
    title = f"{run.folder.name}: TransformerSR training"
    parts = {"": verdict(run), "Images": images(run), "Warnings": warnings(run), "Next steps": next_commands(run)}
    details = {
        "Validation": validation_charts(run),
        "Training": training_charts(run),
        "All validations": validation_table(run),
        "Run": run_facts(run),
        "Settings": table([[escape(name), f"<code>{escape(_setting_text(value))}</code>"] for name, value in run.settings.items()]),
    }
    folded = f"<details><summary>Metrics, curves and settings</summary>\n{_sections(details)}\n</details>"
    written = time.strftime("%Y-%m-%d %H:%M")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><main>\n<h1>{escape(run.folder.name)}</h1>\n{_sections(parts)}\n{folded}\n"
        f"<footer>Written by transformersr on {written}.</footer></main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _sections(parts: Mapping[str, str]) -> str:
    return "\n".join((f"<h2>{name}</h2>\n" if name else "") + text for name, text in parts.items() if text)


def verdict(run: Run) -> str:
    """The verdict on the weights: one sentence, and answers to an artist's questions."""
    best, baseline = run.best, run.baseline
    if best is None:
        return '<p class="verdict">There is no validation yet.</p>'
    text, shown = escape(summary(best, baseline, run.bicubic, bool(run.settings.get("gan_weight")))), best
    text = f"Best weights (step {best['step']:,}): <strong>{text}</strong>."
    if run.best_is_initial:
        shown = run.validations[-1]
        text += f" <code>best.safetensors</code> is still the same as {escape(baseline.name)}; the table below is about the last weights."
    rows = [[escape(item.question), f"<strong>{escape(item.answer)}</strong>", escape(item.detail)] for item in answers(shown, baseline)]
    count = best.get("measured_on")
    held_out = "image, which was" if count == 1 else "images, which were"
    note = f"<p>Measured on {count} of your {held_out} held out and never trained on.</p>" if isinstance(count, int) else ""
    return f'<p class="verdict">{text}</p>\n{table(rows, kind="answers")}\n{note}'


def run_facts(run: Run) -> str:
    """Table of the network, the images and the machine of the run."""
    settings, about, last = run.settings, run.about, run.last
    versions = as_object(about.get("versions"))
    counts = as_object(about.get("images"))
    rows = {
        "network": ", x".join(str(settings[name]) for name in ("size", "scale") if name in settings),
        "preset": settings.get("preset"),
        "started from": settings.get("init"),
        "images": ", ".join(
            f"{counts[key]:,} for {use}" for key, use in (("train", "training"), ("validation", "validation")) if key in counts
        ),
        "steps": f"{last['step']:,}{_planned_length(settings)}" if "step" in last else None,
        "time": duration(last["seconds"]) if is_number(last.get("seconds")) else None,
        "machine": _machine(about),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return table([[name, escape(str(value))] for name, value in rows.items() if value])


def warnings(run: Run) -> str:
    """List of the problems of the run."""
    found = [str(text) for text in run.about.get("warnings") or []]
    skipped = run.last.get("skipped") or next((record["skipped"] for record in reversed(run.log) if record.get("skipped")), 0)
    if skipped:
        found.append(f"{skipped} steps were skipped because a gradient was not finite; see train.log.")
    if any(record.get("rolled_back") for record in run.log):
        found.append("The run returned to its last good state and continued at half the learning rate.")
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in found)}</ul>" if found else ""


def images(run: Run) -> str:
    """The strips of the best and the last step; the first strip if there is no other."""
    if not run.strips:
        return ""
    best = run.best
    chosen = {max(run.strips): "last"}
    if best is not None and best["step"] in run.strips and not run.best_is_initial:  # the start is in every other strip
        chosen[best["step"]] = "best and last" if best["step"] in chosen else "best"
    shown = []
    for step, name in sorted(chosen.items()):
        try:
            source = _data_uri(run.strips[step])
        except OSError:
            logger.warning("%s cannot be read and is not in the report", run.strips[step])
            continue
        caption = f"step {step:,} ({name})"
        shown.append(f'<figure class="strip"><figcaption>{caption}</figcaption><img src="{source}" alt="images at {caption}"></figure>')
    return "\n".join(shown)


def _data_uri(path: Path) -> str:
    """Encode an image for the page, as WebP if Pillow supports it: a fifth of the size without a visible difference."""
    with Image.open(path) as image:
        kind, options = ("WEBP", {"quality": 88, "method": 4}) if features.check("webp") else ("PNG", {"optimize": True})
        file = io.BytesIO()
        image.convert("RGB").save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def validation_charts(run: Run) -> str:
    """Charts of the validations, as gains over the baseline or with its value for reference."""
    best, baseline = run.best, run.baseline
    marker = {"best": best["step"]} if best and len(run.validations) > 1 else {}
    records = [record for record in run.validations if record["step"] or baseline.name != "bicubic"]  # random weights are off the chart
    gains = [
        Chart(
            f"gain over {baseline.name}, {region} (dB)",
            {name: [(record["step"], gain) for record in records if (gain := baseline.gain(record, name)) is not None]},
            {baseline.name: 0.0},
            marker,
        )
        for name, region in GAINS.items()
    ]
    others = [
        Chart(SCORES[name][0], {name: points(records, name)}, _numbers({baseline.name: baseline.metrics.get(name)}), marker)
        for name in CHARTED
    ]
    directions = {"down": "shift_y", "right": "shift_x"}
    shifts = {direction: points(records, name) for direction, name in directions.items()}
    reference = _numbers({f"{baseline.name} {direction}": baseline.metrics.get(name) for direction, name in directions.items()})
    return _grid([*gains, *others, Chart("shift (pixels)", shifts, reference)])


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if is_number(value)}


def training_charts(run: Run) -> str:
    """Charts of the training metrics."""
    names = dict.fromkeys([*TRAINING, *(name for record in run.log for name in record if name not in NOT_CHARTED)])
    marker = edge_loss_marker(run)
    charts = [
        Chart(
            TRAINING.get(name, name),
            {name: points(run.log, name)},
            markers=marker if name == "loss" else {},
            spikes=name == "learning_rate",
        )
        for name in names
    ]
    logits = {name: points(run.log, name) for name in ("d_real", "d_fake")}
    return _grid([*charts, Chart("discriminator logits", logits, spikes=False)])


def _grid(charts: Sequence[Chart]) -> str:
    drawn = "\n".join(filter(None, map(draw, charts)))
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def edge_loss_marker(run: Run) -> dict[str, float]:
    """Mark the step from which the pixel loss is weighted by edges: the curve jumps there, which is not a problem."""
    start, minutes = run.settings.get("edge_start", 0), run.settings.get("minutes")
    key, end = ("seconds", 60 * minutes) if minutes else ("step", run.settings.get("steps", 0))
    after = [record["step"] for record in run.log if record.get(key, 0) >= start * end]
    return {"edge weighting starts": after[0]} if 0 < start < 1 and end and after and run.settings.get("flat_weight", 1) < 1 else {}


def points(records: Sequence[Record], name: str) -> list[Point]:
    """Step and value of every record that has the value."""
    return [(record["step"], record[name]) for record in records if is_number(record.get(name))]


def validation_table(run: Run) -> str:
    """All validation metrics, bicubic's first; with very many validations only some of them."""
    records, best = run.validations, run.best
    if not records:
        return ""
    every = -(-len(records) // MAX_ROWS)
    kept = [record for index, record in enumerate(records) if index % every == 0 or record is best or record is records[-1]]
    names = [name for name in SCORES if any(name in record for record in records)]
    head = ["step", "time", *(SCORES[name][0] for name in names), "gain (dB)"]
    rows = [[escape(text) for text in head]]
    if run.bicubic:
        rows.append(["bicubic", "", *(_format_score(run.bicubic, name) for name in names), ""])
    bicubic = Baseline("bicubic", run.bicubic)
    for record in kept:
        gain = "" if (value := bicubic.gain(record)) is None else f"{value:+.2f}"
        spent = duration(record["seconds"]) if is_number(record.get("seconds")) else ""
        cells = [f"{record['step']:,}", spent, *(_format_score(record, name) for name in names), gain]
        rows.append([f"<strong>{cell}</strong>" for cell in cells] if record is best else cells)
    note = f"<p>Every {every}th of {len(records)} validations, the best and the last.</p>" if every > 1 else ""
    return note + table(rows, head=True)


def next_commands(run: Run) -> str:
    """The next commands for the weights, if there are any."""
    weights = run.folder / "best.safetensors"
    if not weights.is_file():
        return ""
    last = ["--last"] if run.best_is_initial and run.last.get("step") else []
    longer = train_longer_command(run.folder, run.settings)
    commands = {
        "upscale images": command_line("upscale", "IMAGES", "-m", run.folder / "last.safetensors" if last else weights),
        "install into ComfyUI or a WebUI": command_line("export", run.folder, *last, "--install", "FOLDER"),
        "resume, if it was stopped early": resume_command(run.folder),
        **({"train longer": longer} if longer else {}),
    }
    return table([[name, f"<code>{escape(command)}</code>"] for name, command in commands.items()])


def table(rows: Sequence[Sequence[str]], head: bool = False, kind: str = "run_facts") -> str:
    """Make an HTML table of rows of HTML; with `head`, the first row holds the headings."""
    if not rows:
        return ""
    lines = []
    for index, row in enumerate(rows):
        tag = "th" if head and index == 0 else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>")
    return f'<div class="scroll"><table class="{"figures" if head else kind}">{"".join(lines)}</table></div>'


# --- formatting ----------------------------------------------------------------------------------


def _format_score(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return SCORES[name][1].format(value) if is_number(value) else ""


def _planned_length(settings: Record) -> str:
    if settings.get("minutes"):
        return f" (planned: {settings['minutes']:g} minutes)"
    return f" of {settings['steps']:,}" if is_number(settings.get("steps")) else ""


def _machine(about: Record) -> str:
    processes = about.get("processes")
    several = f"{processes} processes" if isinstance(processes, int) and processes > 1 else None
    parts = [about.get("device"), about.get("precision"), several]
    return ", ".join(str(part) for part in parts if part)


def _setting_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c1f24; --soft: #5c6470; --rule: #e2e5ea; --one: #1f5fc4; --two: #b4490f }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --ink: #e6e8eb; --soft: #9aa3af; --rule: #30363d; --one: #74a9ff; --two: #ff9d5c } }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1200px; margin: 0 auto; padding: 24px }
h1 { font-size: 1.7em; margin: 0 0 .3em; overflow-wrap: anywhere }
h2 { font-size: 1.2em; margin: 2em 0 .6em; border-bottom: 1px solid var(--rule); padding-bottom: .2em; break-after: avoid }
.verdict { font-size: 1.15em; margin: 0 0 1em }
figure { margin: 0; break-inside: avoid }
figcaption { font-weight: 600; margin-bottom: 4px }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 20px 28px }
.strip { margin-bottom: 20px }
.strip img { max-width: 100%; height: auto; display: block; border: 1px solid var(--rule) }
svg { width: 100%; height: auto; display: block }
svg text { font-size: 11px; fill: var(--soft) }
svg .value { fill: var(--ink); stroke: var(--ground); stroke-width: 5px; paint-order: stroke }
svg path { fill: none }
.grid { stroke: var(--rule) }
path.reference { stroke: var(--soft); stroke-dasharray: 6 4; stroke-width: 1.5 }
path.marker { stroke: var(--soft); stroke-dasharray: 2 3 }
.line-0 path { stroke: var(--one); stroke-width: 2 } .line-0 circle { fill: var(--one) }
.line-1 path { stroke: var(--two); stroke-width: 2 } .line-1 circle { fill: var(--two) }
.key { font-weight: 400; color: var(--soft); margin-left: 14px; white-space: nowrap }
.key::before { content: ""; display: inline-block; width: 18px; margin-right: 5px; vertical-align: middle }
.key::before { border-top: 2px solid var(--one) }
.key.line-1::before { border-color: var(--two) }
.key.reference::before { border-top: 2px dashed var(--soft) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: 3px 14px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule) }
.figures td, .figures th { text-align: right }
.figures td { white-space: nowrap }
.answers { font-size: 1.05em; margin: 0 0 .6em } .answers td:last-child { color: var(--soft) }
summary { cursor: pointer; margin: 2.5em 0 1em; font-size: 1.2em }
.run_facts td:first-child { color: var(--soft); white-space: nowrap }
@media (max-width: 600px) { .run_facts td { display: block } }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
footer { margin-top: 3em; color: var(--soft) }
@media print {
  :root { --ground: #fff; --ink: #000; --soft: #444; --rule: #ccc; --one: #1f5fc4; --two: #b4490f }
  .strip img { max-height: 22cm }
  main { padding: 0; max-width: none } .charts { grid-template-columns: 1fr 1fr } tr { break-inside: avoid } }
"""

SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const points = JSON.parse(svg.dataset.hover), make = name => svg.appendChild(document.createElementNS(svg.namespaceURI, name));
  const line = make("path"), text = make("text");
  line.setAttribute("class", "marker");
  text.setAttribute("class", "value");
  svg.onpointermove = event => {
    const x = new DOMPoint(event.clientX, 0).matrixTransform(svg.getScreenCTM().inverse()).x;
    const [at, label] = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    line.setAttribute("d", `M${at} 22V194`);
    text.textContent = label;
    text.setAttribute("x", at > 300 ? at - 6 : at + 6);
    text.setAttribute("y", 190);
    text.setAttribute("text-anchor", at > 300 ? "end" : "start");
  };
  svg.onpointerleave = () => { line.setAttribute("d", ""); text.textContent = ""; };
}
"""
