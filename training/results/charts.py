"""Line charts as SVG text for the report of a run.

Colours come from the page's style sheet by class (`line-0`, `line-1`, `reference`, `grid`, `marker`), so the same SVG works in dark and
light mode and in print. `data-hover` holds each chart's points and labels for the page's script.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean

Point = tuple[float, float]

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 536, 22, 194
MAX_POINTS = 300
STYLE = """
text{font:15px sans-serif;fill:#444}
.name{font-size:17px}
.grid,.reference{stroke:#ddd;fill:none}
.line-0 path{stroke:#1f6feb;stroke-width:1.5;fill:none}
.line-0 circle{fill:#1f6feb}
"""
"""Style of a standalone file. Its text is large, because on a phone a page shows it at two thirds of its size."""


@dataclass(frozen=True)
class Chart:
    """Named lines of (step, value) points."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    reference: Mapping[str, float] = field(default_factory=dict)
    """Values to compare with, by name, drawn as dashed horizontal lines."""
    markers: Mapping[str, float] = field(default_factory=dict)
    """Labelled steps, drawn as vertical lines."""
    spikes: bool = True
    """Whether to show the highest values; if not, the highest 2 % may be cut off at the top."""


def draw(chart: Chart) -> str:
    """Draw a chart as a `<figure>`; empty if no line has a point."""
    lines = {name: _thin(points) for name, points in chart.lines.items() if points}
    if not lines:
        return ""
    steps = [step for points in lines.values() for step, _ in points]
    area = _Area(min(steps), max(steps), *_value_range(chart, lines))
    parts = [*_grid(area), *_references(area, chart), *_markers(area, chart)]
    for index, points in enumerate(lines.values()):
        parts.append(_line(area, points, f"line-{index}"))
    hover = escape(json.dumps(_hover(area, lines)))
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" data-hover="{hover}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(chart.title)}{_legend(lines, chart)}</figcaption>{svg}</figure>"


def as_svg(charts: Sequence[Chart]) -> str:
    """Draw charts below each other as a standalone SVG file with fixed colours."""
    rows = []
    for index, chart in enumerate(charts):
        title = f'<text class="name" x="8" y="18">{escape(chart.title)}</text>'
        drawing = re.sub(r".*<svg[^>]*>|</svg>.*", "", draw(chart))
        rows.append(f'<g transform="translate(0 {index * (HEIGHT + 36)})">{title}<g transform="translate(0 24)">{drawing}</g></g>')
    height = len(rows) * (HEIGHT + 36)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    style = f'<rect width="100%" height="100%" fill="#fff"/><style>{STYLE}</style>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{"".join(rows)}</svg>\n'


def number(value: float) -> str:
    """Format a number: 12,000, 30.29, 0.0031, 5e-07."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 0.001 else f"{value:.1e}"


# --- parts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Area:
    """Maps steps and values to coordinates in the drawing."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (step - self.first) / (self.last - self.first or 1), 1)

    def y(self, value: float) -> float:
        return round(min(max(BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low), TOP), BOTTOM), 1)


def _thin(points: Sequence[Point]) -> list[Point]:
    """Reduce to at most `MAX_POINTS` points by averaging neighbours."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(step for step, _ in group), fmean(value for _, value in group)) for group in groups]


def _value_range(chart: Chart, lines: Mapping[str, Sequence[Point]]) -> tuple[float, float]:
    values = sorted(value for points in lines.values() for _, value in points)
    high = values[-1] if chart.spikes else values[int(0.98 * (len(values) - 1))]
    low, high = min([values[0], *chart.reference.values()]), max([high, *chart.reference.values()])
    margin = 0.06 * (high - low) or abs(high) * 0.01 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, count: int) -> Iterator[float]:
    """Yield about `count` round values between two numbers."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    index = math.ceil(low / distance)
    while index * distance <= high:
        yield index * distance
        index += 1


def _grid(area: _Area) -> Iterator[str]:
    for value in _ticks(area.low, area.high, 6):
        y = area.y(value)
        yield f'<path class="grid" d="M{LEFT} {y}H{RIGHT}"/><text x="{LEFT - 6}" y="{y + 5}" text-anchor="end">{number(value)}</text>'
    for step in _ticks(area.first, area.last, 6) if area.last > area.first else [area.first]:
        yield f'<text x="{area.x(step)}" y="{BOTTOM + 18}" text-anchor="middle">{step:,.0f}</text>'


def _references(area: _Area, chart: Chart) -> Iterator[str]:
    for value in chart.reference.values():
        yield f'<path class="reference" d="M{LEFT} {area.y(value)}H{RIGHT}"/>'


def _markers(area: _Area, chart: Chart) -> Iterator[str]:
    for text, step in chart.markers.items():
        if area.first <= step <= area.last:
            x = area.x(step)
            label = f'<text x="{min(x, RIGHT - 30)}" y="{TOP - 8}" text-anchor="middle">{escape(text)}</text>'
            yield f'<path class="marker" d="M{x} {TOP}V{BOTTOM}"/>{label}'


def _line(area: _Area, points: Sequence[Point], name: str) -> str:
    positions = [(area.x(step), area.y(value)) for step, value in points]
    path = "M" + "L".join(f"{x} {y}" for x, y in positions)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.5"/>' for x, y in positions) if len(positions) <= 40 else ""
    return f'<g class="{name}"><path d="{path}"/>{dots}</g>'


def _hover(area: _Area, lines: Mapping[str, Sequence[Point]]) -> list[tuple[float, str]]:
    """X coordinate and label of every step, with all values of that step."""
    texts: dict[float, list[str]] = {}
    for name, points in lines.items():
        for step, value in points:
            texts.setdefault(step, []).append(f"{name} {number(value)}" if len(lines) > 1 else number(value))
    return [(area.x(step), f"step {step:,.0f}: {', '.join(values)}") for step, values in sorted(texts.items())]


def _legend(lines: Mapping[str, Sequence[Point]], chart: Chart) -> str:
    keys = [(f"line-{index}", name) for index, name in enumerate(lines)] if len(lines) > 1 else []
    keys += [("reference", f"{name} {number(value)}") for name, value in chart.reference.items()]
    return "".join(f'<span class="key {kind}">{escape(name)}</span>' for kind, name in keys)
