"""The documents: commands run or name what exists, links have targets, figures match the files."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

from transformersr.arch import VARIANTS, TransformerSR, TransformerSRConfig
from transformersr.upscale.checkpoint import describe, save_model
from transformersr.upscale.cli import main
from transformersr.upscale.upscaler import CRISP

from random_models import V2, random_model
from reports import DOCUMENTS, RESULTS, fill_document, make_tables, newest_reports, update_links
from synthetic_images import synthetic_image

ROOT = Path(__file__).resolve().parent.parent
READMES = sorted(ROOT.glob("README*.md"))
RUN = [*READMES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN.remove(ROOT / "docs" / "api.md")  # test_api_page.py runs that
PAGES = [path for folder in ("", "docs", "weights", "examples", "benchmarks/results") for path in sorted((ROOT / folder).glob("*.md"))]
FOREIGN_OPTIONS = {"--extra-index-url", "--logdir", "--multi_gpu", "--no-deps", "--no-half", "--num_processes"}
"""Options of other programs that the documents mention."""


def relative_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """Split every line of a page's `sh` blocks into words."""
    lines = chain.from_iterable(block.splitlines() for block in blocks(path, "sh"))
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def without_blocks(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A working directory with the files that the documents mention. Training is replaced: it saves a random network at once."""

    def train(config, data, out, resume=False):
        save_model(random_model(V2), out / "best.safetensors")
        return out / "best.safetensors"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformersr.training.train.train", train)
    for folder in ("FOLDER/comfy", "FOLDER/models/upscale_models", "models", "images", "IMAGES", "DATA", "RUN"):
        Path(folder).mkdir(parents=True)
    for folder in ("images", "DATA", "FOLDER"):
        synthetic_image(1, 32).save(Path(folder, "1.png"))
    for index in range(2):  # large enough to train on
        synthetic_image(index, 256).save(f"IMAGES/{index}.png")
    synthetic_image(0, 16).save("image.png")
    synthetic_image(0, 16).save("image.webp")
    save_model(random_model(V2), "models/transformerSR_b8_d256_w4_h16.pt")
    save_model(random_model(V2), "RUN/best.safetensors")
    Path("RUN/config.json").write_text("{}")
    Path("RUN/run.json").write_text('{"data": "IMAGES"}')
    return tmp_path


@pytest.mark.parametrize("path", RUN, ids=relative_name)
def test_commands_run(path, workspace):
    for words in commands(path):
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        check = CHECKS.get(words[0])
        assert check, f"{' '.join(words)}: no check for this command"
        check(words[1:])


def run_transformersr(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, f"transformersr {' '.join(words)}: {result.output}{result.exception or ''}"


def run_module(words: list[str]) -> None:
    """Check `python FILE ...` and `python -m transformersr.training ...`: the file and its options exist, the command parses."""
    if words[:2] == ["-m", "transformersr.training"]:
        parse(words[2:])
    else:
        text = (ROOT / words[0]).read_text(encoding="utf-8")
        assert all(word in text for word in words if word.startswith("--"))


def run_launcher(words: list[str]) -> None:
    """Check our part of a `torchrun` or `accelerate launch` command."""
    run_module(words[words.index("-m") :])


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if is_variable else rf"^{name}:", makefile, re.MULTILINE), word


def check_pip(words: list[str]) -> None:
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    package = words[-1]
    assert words[0] == "install"
    if "-r" in words:
        check_files([package])
        return
    extra = re.fullmatch(r"(\.|\./TransformerSR)(?:\[(\w+)\])?", package)[2]
    assert extra is None or extra in extras


def check_git(words: list[str]) -> None:
    """The same address everywhere; `pip install` names its folder."""
    assert words == ["clone", "https://github.com/OWNER/TransformerSR"]


def check_files(words: list[str]) -> None:
    assert all((ROOT / word).exists() for word in words)


CHECKS = {
    "transformersr": run_transformersr,
    "python": run_module,
    "sh": run_module,
    "torchrun": run_launcher,
    "accelerate": run_launcher,
    "make": check_make,
    "pip": check_pip,
    "git": check_git,
    "cd": lambda words: None,
    "pytest": check_files,
}


def parse(words: list[str]) -> None:
    """Parse one of our commands without running it. Required parameters may be missing, as in text."""
    command = main.commands.get(words[0])
    assert command, f"transformersr {words[0]}: no such command"
    with suppress(click.MissingParameter, click.exceptions.Exit):  # Exit comes from --help
        command.make_context(words[0], words[1:])


@pytest.mark.parametrize("path", RUN, ids=relative_name)
def test_commands_and_options_in_text_exist(path):
    spans = re.findall(r"`([^`\n]+)`", without_blocks(path))
    for span in spans:
        if re.match(r"transformersr [a-z]", span):
            without_placeholders = re.sub(r" --[\w-]+ NAME\b", "", span.replace("COMMAND", "upscale"))
            parse(shlex.split(without_placeholders)[1:])
    named = set(re.findall(r"(?<!\S)--[a-z][\w-]+", " ".join(spans)))
    assert named <= our_options() | FOREIGN_OPTIONS


def our_options() -> set[str]:
    """Return the options of all our commands and of the scripts that hosts and developers run."""
    parsed = (command.get_params(click.Context(command)) for command in main.commands.values())
    options = {name for parameter in chain.from_iterable(parsed) for name in (*parameter.opts, *parameter.secondary_opts)}
    scripts = [ROOT / "install.py", ROOT / "preload.py", *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests" / "long").glob("*.py")]
    return options | set(re.findall(r'"(--[\w-]+)"', "".join(script.read_text(encoding="utf-8") for script in scripts))) | {"--version"}


@pytest.mark.parametrize("path", [path for path in RUN if blocks(path, "python")], ids=relative_name)
def test_python_examples_run(path, workspace):
    image = Image.open("image.png")
    names = {"image": image, "prompt": "", "pipeline": lambda prompt: SimpleNamespace(images=[image])}
    for block in blocks(path, "python"):
        exec(block, names)
    assert names["large"].size == (64, 64)


# --- links ---------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub forms them."""
    titles = re.findall(r"^#+ (.+)$", without_blocks(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=relative_name)
def test_links_have_targets(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(path)):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", PAGES, ids=relative_name)
def test_named_files_exist(path):
    folders = "|".join(folder.name for folder in ROOT.iterdir() if folder.is_dir() and folder.name not in ("build", "dist", "out", "runs"))
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", without_blocks(path)):
        assert (ROOT / name).exists(), name


# --- messages ------------------------------------------------------------------------------------


def messages() -> list[str]:
    """Return all strings of our code, with an ellipsis for each value that is filled in."""
    nodes = chain.from_iterable(
        ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for folder in ("arch", "training", "upscale")
        for path in (ROOT / folder).rglob("*.py")
    )
    return [re.sub(r"%[.\d]*[a-z]", "…", text).replace("{s}", "s") for node in nodes if (text := string_of(node))]


def string_of(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(string_of(part) or "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_troubleshooting_quotes_messages_that_exist():
    first_cells = re.findall(r"^\| (.+?) \|", (ROOT / "docs" / "trouble.md").read_text(encoding="utf-8"), re.MULTILINE)
    quotes = re.findall(r"\*([^*]+)\*", "\n".join(first_cells))
    text = "\n".join(messages())
    assert len(quotes) > 30
    assert [quote for quote in quotes if not re.search(".*".join(map(re.escape, quote.split("…"))), text)] == []


# --- figures -------------------------------------------------------------------------------------


def rows(path: Path) -> list[list[str]]:
    """Return the rows of all tables of a page, with links, emphasis and code marks removed from the cells."""
    lines = re.findall(r"^\| (.+) \|$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [[re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).strip("`* ") for cell in line.split(" | ")] for line in lines]


WEIGHTS = sorted((ROOT / "weights").glob("*.safetensors"))


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_model_figures_match_the_weight_files(path):
    with safe_open(path, framework="pt") as file:
        scale = TransformerSRConfig.from_json(file.metadata()["config"]).scale
    parameters, size = describe(path)["parameters"], f"{path.stat().st_size / 2**20:.1f} MiB"
    assert path.stat().st_size < 1.5e6  # the READMEs say "about 1 MB each"
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{parameters} parameters" in card
    assert size in card
    if not path.stem.endswith(CRISP):
        assert all([path.stem, str(scale)] in [row[:2] for row in rows(readme)] for readme in READMES)


def test_size_table_matches_the_networks():
    listed = {row[0].split("`")[0]: row[1:] for row in rows(ROOT / "docs" / "architecture.md")}
    for name, config in VARIANTS.items():
        count = sum(parameter.numel() for parameter in TransformerSR(config).parameters())
        *sizes, blocks, parameters = listed[name]
        letters, times = blocks.split(" × ")
        assert sizes == [str(config.embed_dim), str(config.num_heads)]
        assert letters * int(times) == config.blocks
        assert parameters == f"{count:,}"
        assert dataclasses.replace(config, scale=4) == config  # the table says "at x4"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative_name)
def test_comparison_tables_match_the_newest_reports(path):
    """After a new report: `python benchmarks/reports.py`."""
    text, newest = path.read_text(encoding="utf-8"), newest_reports(RESULTS)
    assert update_links(fill_document(text, make_tables(newest)), newest) == text


def test_documents_show_all_tables():
    shown = {name for path in DOCUMENTS for name in re.findall(r"<!-- quality (\w+) -->", path.read_text(encoding="utf-8"))}
    newest = newest_reports(RESULTS)
    assert shown == set(make_tables(newest))
    assert all("<!-- quality" in readme.read_text(encoding="utf-8") for readme in READMES)
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(f"(../benchmarks/results/{path.name})" in benchmarks for name, path in newest.items() if name.startswith("quality-"))


def test_links_lead_to_the_newest_report(tmp_path):
    for date in ("2026-01-02", "2025-12-31"):
        (tmp_path / f"quality-mine-{date}.md").touch()
    text = "[report](../benchmarks/results/quality-mine-2025-01-01.md) and [another](../benchmarks/results/speed-2025-01-01.md)"
    expected = text.replace("mine-2025-01-01", "mine-2026-01-02")
    assert update_links(text, newest_reports(tmp_path)) == expected


def test_version_numbers_agree():
    ruff = re.search(r"^(ruff==.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert set(re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))) == {ruff}
    own = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert f"\nversion: {own}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {own}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
