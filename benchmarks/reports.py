"""Read the tables of `quality.py`'s reports and update the documents that show them.

    python benchmarks/reports.py

Uses the newest report of each name in benchmarks/results. In `DOCUMENTS` everything between `<!-- quality NAME -->` and `<!-- end -->` is
replaced: tables in docs/, and in the READMEs the scores within a sentence, which are the same in every language. Links to reports then
lead to the newest.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from transformersr.training.results.evaluate import markdown_table
from transformersr.upscale.atomic import write_aside

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (*sorted(ROOT.glob("README*.md")), *(path for folder in ("docs", "weights") for path in sorted((ROOT / folder).glob("*.md"))))

NAMES = {
    "dat-light": "DAT-light",
    "cugan-se-conservative": "Real-CUGAN conservative",
    "animevideov3": "Real-ESRGAN animevideov3",
    "span-ch48": "SPAN (48 channels)",
    "span-ch52": "SPAN (52 channels)",
    "x4plus-anime": "Real-ESRGAN x4plus-anime",
    "waifu2x-cunet-denoise3": "waifu2x-cunet, denoise 3",
    "cugan-se-denoise3x": "Real-CUGAN denoise3x",
    "lanczos": "Lanczos",
}
"""Display names of upscalers, if different from their names here."""
README_UPSCALERS = ("x4-base", "x4-tiny", "waifu2x-cunet", "span-ch48", "x4plus-anime", "bicubic")
"""Upscalers that the READMEs mention, if a report has them."""
HOW = {"native": "", "x2 twice": ", twice", "x4 halved": ", halved"}

Row = dict[str, str]


def read_report(text: str) -> dict[str, list[Row]]:
    """Read a report as table name to rows of column title to cell: "x4" is the mean over all downscaling filters, "x4 area" one of them."""
    tables = {}
    for scale, section in re.findall(r"^## (x[0-9])\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        for title, table in re.findall(r"^### (.+)\n\n((?:^\|.*\n?)+)", section, re.MULTILINE):
            head, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()]
            name = scale if title.startswith("Mean") else f"{scale} {title.split()[-1]}"
            tables[name] = [dict(zip(head, row, strict=True)) for row in rows]
    return tables


def is_ours(row: Row) -> bool:
    return row["upscaler"].endswith(" (ours)")


def display_name(row: Row) -> str:
    """Return an upscaler's name for documents, ours in bold, and how it reaches the scale."""
    name = row["upscaler"].removesuffix(" (ours)")
    return (f"**`{name}`**" if is_ours(row) else NAMES.get(name, name)) + HOW[row["how"]]


def comparison_table(holdout: list[Row], foreign: list[Row]) -> str:
    """Format a scale's table for docs/benchmarks.md, sorted by the holdout set."""
    foreign_rows = {row["upscaler"]: row for row in foreign}
    head = ["upscaler", "parameters", "PSNR-Y, edge PSNR: holdout", "foreign", "ST-LPIPS: holdout, foreign", "CPU s per input megapixel"]
    rows = []
    for row in holdout:
        other = foreign_rows[row["upscaler"]]
        quality = [f"{scores['PSNR-Y ↑']}, {scores['edge PSNR ↑']}" for scores in (row, other)]
        distances = f"{row['ST-LPIPS ↓']}, {other['ST-LPIPS ↓']}"
        rows.append([display_name(row), row["parameters"].strip("-"), *quality, distances, row["CPU s / LR MP"]])
    return markdown_table(head, rows)


def filter_table(holdout: dict[str, list[Row]], foreign: dict[str, list[Row]], scale: str) -> str:
    """Format a scale's PSNR-Y for each downscaling filter, sorted by the mean on the holdout set."""
    filters = [name for name in holdout if name.startswith(f"{scale} ")]
    scores = [{row["upscaler"]: row["PSNR-Y ↑"] for row in tables[name]} for name in filters for tables in (holdout, foreign)]
    rows = []
    for row in holdout[scale]:
        figures = [score[row["upscaler"]] for score in scores]
        rows.append([display_name(row), *map(", ".join, zip(figures[::2], figures[1::2], strict=True))])
    return markdown_table(["PSNR-Y: holdout, foreign", *(name.split()[1] for name in filters)], rows)


def card_table(rows: list[Row], names: dict[str, str]) -> str:
    """Format the table of a model card: the upscalers in `names`, as names in the report to names in the card."""
    columns = ["PSNR-Y ↑", "SSIM-Y ↑", "edge PSNR ↑", "flat PSNR ↑", "sharpness", "colour ↓", "shift y, x"]
    by_name = {row["upscaler"].removesuffix(" (ours)"): row for row in rows}
    table = [[shown, *(by_name[name][column] for column in columns)] for name, shown in names.items()]
    return markdown_table(["upscaled with", *(column.rstrip(" ↑↓") for column in columns)], table)


def readme_scores(rows: list[Row]) -> str:
    """Format PSNR-Y of the upscalers in `README_UPSCALERS`, best first, for a sentence in any language."""
    shown = [row for row in rows if row["upscaler"].removesuffix(" (ours)") in README_UPSCALERS]
    shown.sort(key=lambda row: -float(row["PSNR-Y ↑"]))
    figures = (f"{NAMES.get(row['upscaler'], row['upscaler'].removesuffix(' (ours)'))} {float(row['PSNR-Y ↑']):.1f}" for row in shown)
    return ", ".join(f"**{figure}**" if is_ours(row) else figure for row, figure in zip(shown, figures, strict=True))


def original_table(holdout: list[Row]) -> str:
    """Format the table of docs/original.md with the measurements its author made or asked for."""
    columns = ["PSNR-Y ↑", "edge PSNR ↑", "flat PSNR ↑", "colour ↓", "shift y, x", "CPU s / LR MP"]
    head = ["upscaler", "parameters", "PSNR-Y", "edge PSNR", "flat PSNR", "colour", "shift y, x", "CPU s per input megapixel"]
    return markdown_table(head, [[display_name(row), row["parameters"].strip("-"), *(row[name] for name in columns)] for row in holdout])


def jpeg_table(reports: dict[str, dict[str, list[Row]]]) -> str:
    """Format the table of JPEG-compressed images, sorted by quality 50 on the foreign set."""
    rows, scores = [], {}
    for quality, name in ((quality, name) for quality in ("jpeg75", "jpeg50") for name in ("holdout", "foreign")):
        scores[quality, name] = {row["upscaler"]: row for row in reports[f"quality-{name}-{quality}"]["x4 bicubic"]}
    for row in scores["jpeg50", "foreign"].values():
        both = {key: table[row["upscaler"]] for key, table in scores.items()}
        psnr = [f"{both[quality, 'holdout']['PSNR-Y ↑']}, {both[quality, 'foreign']['PSNR-Y ↑']}" for quality in ("jpeg75", "jpeg50")]
        distances = f"{both['jpeg50', 'holdout']['ST-LPIPS ↓']}, {row['ST-LPIPS ↓']}"
        rows.append([display_name(row), *psnr, distances, row["CPU s / LR MP"]])
    return markdown_table(["PSNR-Y: holdout, foreign", "quality 75", "quality 50", "ST-LPIPS at 50", "CPU s per input megapixel"], rows)


def crispness_table(holdout: list[Row], foreign: list[Row]) -> str:
    """Format the scores of our models by crispness, from 0 to 1."""
    columns = {"PSNR-Y: holdout, foreign": "PSNR-Y ↑", "edge PSNR": "edge PSNR ↑", "sharpness": "sharpness", "ST-LPIPS": "ST-LPIPS ↓"}
    columns["colour"] = "colour ↓"
    of_crispness = [
        {float(row["upscaler"].removesuffix(" (ours)").partition("@")[2] or 0): row for row in rows if is_ours(row)}
        for rows in (holdout, foreign)
    ]
    rows = [
        [f"{crispness:g}", *(", ".join(table[crispness][column] for table in of_crispness) for column in columns.values())]
        for crispness in sorted(of_crispness[0])
    ]
    return markdown_table(["crispness", *columns], rows)


def fill_document(document: str, tables: dict[str, str]) -> str:
    """Replace the content of each marked place in a document."""

    def fill(mark: re.Match[str]) -> str:
        name, line = mark.groups()
        return f"<!-- quality {name} -->{line}{tables[name]}{line}<!-- end -->"

    return re.sub(r"<!-- quality (\w+) -->(\n?).*?<!-- end -->", fill, document, flags=re.DOTALL)


def update_links(document: str, newest: dict[str, Path]) -> str:
    """Let each link to a report lead to the newest one of its name."""

    def replace(link: re.Match[str]) -> str:
        return f"results/{newest[link[1]].name}" if link[1] in newest else link[0]

    return re.sub(r"results/([\w-]+?)-\d{4}-\d\d-\d\d\.md", replace, document)


def newest_reports(folder: Path) -> dict[str, Path]:
    """Find the newest report of each name."""
    return {path.stem[:-11]: path for path in sorted(folder.glob("*-????-??-??.md"))}


def make_tables(newest: dict[str, Path]) -> dict[str, str]:
    """Make the content of each marked place from the reports."""
    reports = {name: read_report(path.read_text(encoding="utf-8")) for name, path in newest.items() if name.startswith("quality-")}
    both = {scale: [reports[f"quality-{name}-{scale}"] for name in ("holdout", "foreign")] for scale in ("x4", "x2", "crispness")}
    holdout, foreign = both["x4"]
    x4, x2, jpeg50 = holdout["x4"], both["x2"][0]["x2"], reports["quality-holdout-jpeg50"]["x4 bicubic"]
    bicubic, base, tiny = {"bicubic": "bicubic"}, {"x4-base": "`x4-base`"}, {"x4-tiny": "`x4-tiny`"}
    cards = {
        "card_x4_base": card_table(x4, bicubic | tiny | base),
        "card_x4_base_crisp": card_table(x4, bicubic | base | {"x4-base@1.0": "`x4-base-crisp`"}),
        "card_x4_tiny": card_table(x4, bicubic | tiny | base),
        "card_x4_tiny_crisp": card_table(x4, bicubic | tiny | {"x4-tiny@1.0": "`x4-tiny-crisp`"}),
        "card_x4_tiny_cleanup": card_table(jpeg50, bicubic | base | {"x4-tiny-cleanup": "`x4-tiny-cleanup`"}),
        "card_x2_tiny": card_table(x2, bicubic | {"x2-tiny": "`x2-tiny`"}),
    }
    return cards | {
        "x4": comparison_table(holdout["x4"], foreign["x4"]),
        "x2": comparison_table(*(tables["x2"] for tables in both["x2"])),
        "filters": filter_table(holdout, foreign, "x4"),
        "jpeg": jpeg_table(reports),
        "crispness": crispness_table(*(tables["x4"] for tables in both["crispness"])),
        "own": original_table(holdout["x4"]),
        "holdout": readme_scores(holdout["x4"]),
        "foreign": readme_scores(foreign["x4"]),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    newest = newest_reports(RESULTS)
    tables = make_tables(newest)
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        updated = update_links(fill_document(text, tables), newest)
        if updated != text:
            with write_aside(path) as aside:
                aside.write_text(updated, encoding="utf-8")


if __name__ == "__main__":
    main()
