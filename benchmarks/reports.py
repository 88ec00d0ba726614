"""Read the tables of `quality.py`'s reports, and put their figures into the documents that show them.

    python benchmarks/reports.py benchmarks/results/quality-holdout-2026-11-25.md benchmarks/results/quality-foreign-2026-11-25.md

In `DOCUMENTS` whatever stands between `<!-- quality NAME -->` and `<!-- end -->` is made anew: tables in docs/, and in the READMEs a
line of figures inside a sentence, the same in every language.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from transformersr.arch.atomic import write_aside

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (*sorted(ROOT.glob("README*.md")), ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "original.md")

NAMES = {
    "dat-light": "DAT-light",
    "cugan-se-conservative": "Real-CUGAN conservative",
    "animevideov3": "Real-ESRGAN animevideov3",
    "span-ch48": "SPAN (48 channels)",
    "span-ch52": "SPAN (52 channels)",
    "x4plus-anime": "Real-ESRGAN x4plus-anime",
    "lanczos": "Lanczos",
}
"""What an upscaler is called for people, where that is not its name."""
STANDING = ("x4-tiny", "waifu2x-cunet", "span-ch48", "x4plus-anime", "bicubic")
"""The upscalers that the README names, as far as a report has them."""
HOW = {"native": "", "x2 twice": ", twice", "x4 halved": ", halved"}

Row = dict[str, str]


def read_report(text: str) -> dict[str, list[Row]]:
    """Rows of each scale ("x4"), title of column to cell: the first table below its heading, over all ways of making small."""
    tables = {}
    for scale, section in re.findall(r"^## (x[0-9])\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()  # type: ignore[index]
        head, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
        tables[scale] = [dict(zip(head, row, strict=True)) for row in rows]
    return tables


def is_ours(row: Row) -> bool:
    return row["upscaler"].endswith(" (ours)")


def shown_name(row: Row) -> str:
    """An upscaler as the documents call it, ours in bold, and how it comes to the scale."""
    name = row["upscaler"].removesuffix(" (ours)")
    return (f"**`{name}`**" if is_ours(row) else NAMES.get(name, name)) + HOW[row["how"]]


def beside_others(holdout: list[Row], foreign: list[Row]) -> str:
    """The table of a scale in docs/benchmarks.md, the best of the first set first."""
    others = {row["upscaler"]: row for row in foreign}
    head = ["upscaler", "parameters", "PSNR-Y, edge PSNR: holdout", "foreign", "ST-LPIPS: holdout, foreign", "seconds a megapixel"]
    rows = []
    for row in holdout:
        other = others[row["upscaler"]]
        quality = [f"{one['PSNR-Y ↑']}, {one['edge PSNR ↑']}" for one in (row, other)]
        distances = f"{row['ST-LPIPS ↓']}, {other['ST-LPIPS ↓']}"
        rows.append([shown_name(row), row["parameters"].strip("-"), *quality, distances, row["CPU s / LR MP"]])
    return as_table(head, rows)


def standing(rows: list[Row]) -> str:
    """PSNR-Y of the upscalers in `STANDING`, best first, to go into a sentence of any language."""
    shown = [row for row in rows if row["upscaler"].removesuffix(" (ours)") in STANDING]
    shown.sort(key=lambda row: -float(row["PSNR-Y ↑"]))
    figures = (f"{NAMES.get(row['upscaler'], row['upscaler'].removesuffix(' (ours)'))} {float(row['PSNR-Y ↑']):.1f}" for row in shown)
    return ", ".join(f"**{figure}**" if is_ours(row) else figure for row, figure in zip(shown, figures, strict=True))


def own_page(holdout: list[Row]) -> str:
    """The table of docs/original.md: what its author measured or asked for."""
    columns = ["PSNR-Y ↑", "edge PSNR ↑", "flat PSNR ↑", "colour ↓", "shift y, x", "CPU s / LR MP"]
    head = ["upscaler", "parameters", "PSNR-Y", "edge PSNR", "flat PSNR", "colour", "shift y, x", "s for a megapixel of small image"]
    return as_table(head, [[shown_name(row), row["parameters"].strip("-"), *(row[name] for name in columns)] for row in holdout])


def as_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def filled(document: str, tables: dict[str, str]) -> str:
    """A document with each of its marked places made anew."""

    def fill(mark: re.Match[str]) -> str:
        name, line = mark.groups()
        return f"<!-- quality {name} -->{line}{tables[name]}{line}<!-- end -->"

    return re.sub(r"<!-- quality (\w+) -->(\n?).*?<!-- end -->", fill, document, flags=re.DOTALL)


def tables_of(holdout: str, foreign: str) -> dict[str, str]:
    """What goes into each marked place, from two reports."""
    one, other = read_report(holdout), read_report(foreign)
    return {
        "x4": beside_others(one["x4"], other["x4"]),
        "x2": beside_others(one["x2"], other["x2"]),
        "own": own_page(one["x4"]),
        "holdout": standing(one["x4"]),
        "foreign": standing(other["x4"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("holdout", type=Path)
    parser.add_argument("foreign", type=Path)
    options = parser.parse_args()
    tables = tables_of(*(path.read_text(encoding="utf-8") for path in (options.holdout, options.foreign)))
    for path in DOCUMENTS:
        text = filled(path.read_text(encoding="utf-8"), tables)
        with write_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
