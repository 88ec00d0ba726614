"""The training commands of `transformersr`, also available as `python -m training`."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import click

from ..upscale.cores import share_cores
from ..upscale.messages import Messages, log_to_terminal
from .cli_results import average, export, report

if TYPE_CHECKING:
    from .config import TrainConfig

RECIPE_HELP = "TOML file of settings, or the name of a shipped recipe (base-x4, gan, ...); options given here override it."

SECTIONS = {
    "size": "Network",
    "preset": "Images and crops",
    "batch": "Length and optimizer",
    "pixel_loss": "Losses",
    "gan_weight": "Adversarial loss",
    "seed": "Machine, log and checkpoints",
}
"""Sections of the help: the first setting of each, in the order of `TrainConfig`, and its title."""


class SettingsCommand(click.Command):
    """A command that also has an option for every field of `TrainConfig`."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from .config import TrainConfig

        hints = get_type_hints(TrainConfig)
        options: list[click.Parameter] = []
        for field in dataclasses.fields(TrainConfig):
            default: Any = field.default
            is_list = isinstance(default, tuple)
            kind = str if is_list else hints[field.name]
            shown_default = ", ".join(default) if is_list else default
            help_text = field.metadata["help"] + (f" [default: {shown_default}]" if shown_default != "" else "")
            name = field.name.replace("_", "-")
            if kind is bool:
                options.append(click.Option([f"--{name}/--no-{name}"], default=None, help=help_text))
                continue
            if kind is str and field.metadata["choices"]:
                kind = click.Choice(field.metadata["choices"])
            options.append(click.Option([f"--{name}"], type=kind, multiple=is_list, default=None, help=help_text))
        return [*super().get_params(ctx), *options]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in sections instead of one long list."""
        sections: dict[str, list[tuple[str, str]]] = {}
        title = "Options"
        for param in self.get_params(ctx):
            title = SECTIONS.get(param.name or "", title)
            if record := param.get_help_record(ctx):
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def read_settings(recipe: str | Path | None, options: dict[str, Any]) -> TrainConfig:
    """Make the configuration from a recipe, if given, and the options that are set."""
    from .config import from_values, load_recipe

    given = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items() if value not in (None, ())}
    return load_recipe(recipe, **given) if recipe else from_values(given)


@click.command(cls=SettingsCommand)
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the new run: weights, log, state.")
@click.option("--recipe", help=RECIPE_HELP)
@click.option(
    "--resume",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Resume the run in the folder RUN where it stopped, or train it longer.",
)
@click.option(
    "--install",
    "host",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Install the best weights into this ComfyUI or WebUI at the end.",
)
def train(data, out, recipe, resume, host, **settings) -> None:
    """Train a network on the images in the folder DATA.

    --resume uses the images and settings of the run; other options override them, and DATA is only needed if the images have moved.
    """
    out, data, recipe = find_run(resume, data, out, recipe)
    is_first = os.environ.get("RANK", "0") == "0"  # only the first of several processes logs
    if is_first:
        click.echo(f"starting with the images in {data}", err=True)  # the imports below take seconds
    from .data.folders import find_images
    from .results.export import find_weights, install_weights, model_folder, model_name
    from .train import train as run

    config = read_settings(recipe, settings)
    find_images(data, without=out)  # fails before a folder is created for a run that cannot start
    folder = model_folder(host) if host else None
    if not is_first:
        logging.getLogger().setLevel(logging.WARNING)
        run(config, data, out, resume=resume is not None)
        return
    out.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(out / "train.log", encoding="utf-8", errors="backslashreplace")  # for file names that are not valid Unicode
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(file)
    best = run(config, data, out, resume=resume is not None)
    click.echo(install_weights(find_weights(out), folder, model_name(best)).path if folder else best)


def find_run(resume: Path | None, data: Path | None, out: Path | None, recipe: str | None) -> tuple[Path, Path, str | Path | None]:
    """Return the folder of a run, the folder of its images, and its recipe: as given, or from the run to resume."""
    if resume is None:
        if data is None or out is None:
            raise click.UsageError("expected DATA and --out RUN for a new run, or --resume RUN")
        return out, data, recipe
    if out is not None:
        raise click.UsageError("--resume already names the folder of the run; remove --out")
    from .results.run_files import read_object

    record = read_object(resume / "run.json")
    if not (resume / "config.json").is_file() or not (data or record.get("data")):
        raise click.UsageError(f"{resume} is not the folder of a run; start one with: transformersr train IMAGES --out {resume}")
    return resume, data or Path(str(record["data"])), recipe or resume / "config.json"


@click.command(short_help="Check a folder of images before training.", cls=SettingsCommand)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--recipe", help=RECIPE_HELP)
def check(data, recipe, **settings) -> None:
    """List the images in the folder DATA that training would skip or convert, and show what a run would do with the others."""
    from .data.check import check_images
    from .plan import fill_in
    from .results.advice import command_line

    config, choices = fill_in(read_settings(recipe, settings))
    options = config.scale, config.validation, config.exclude, config.max_pixels
    report = check_images(data, config.patch * config.scale, *options)
    for finding in sorted(report.findings, key=lambda finding: (finding.usable, finding.path)):
        click.echo(f"{'note' if finding.usable else 'SKIPPED'}: {finding.path}: {finding.text}")
    if not (report.train and report.validation):
        side, counts = config.patch * config.scale, f"{len(report.train)} images for training and {len(report.validation)} for validation"
        raise ValueError(
            f"{data}: {counts} can be used; expected at least one of each: add images of at least {side}x{side}, or lower patch"
        )
    for line in (*report.summary(config.patch * config.scale, config.scale), *choices):
        click.echo(line)
    given = [word for name, value in settings.items() for word in _option_words(name, value)]
    click.echo(f"next: {command_line('train', data, '--out', 'RUN', *(['--recipe', recipe] if recipe else []), *given)}")


def _option_words(name: str, value: Any) -> list[str]:
    """Format a setting as command-line words."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    return [word for item in values for word in (option, f"{item:g}" if isinstance(item, float) else str(item))]


@click.command(short_help="Preview 16 training crops.", cls=SettingsCommand)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="preview.png", show_default=True, help="Image to write.")
@click.option("--recipe", help=RECIPE_HELP)
def preview(data, out, recipe, **settings) -> None:
    """Write an image of 16 training crops, inputs next to targets, as a run with the settings of `train` would use them."""
    from .preview import draw_crops

    if out.suffix != ".png":
        raise click.UsageError(f"{out}: expected a name ending in .png; choose another name with --out")
    if out.exists():
        raise click.UsageError(f"{out} exists; choose another name with --out")
    draw_crops(read_settings(recipe, settings), data, out)
    click.echo(out)


@click.command(short_help="Generate synthetic images to train on.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), default=200, show_default=True, help="Number of images.")
@click.option("--size", type=click.IntRange(min=64), default=768, show_default=True, help="Side of each image in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random generator.")
@click.option("--font", "fonts", multiple=True, help="Font file for lettering; can be repeated. Default: Pillow's own font.")
def draw(out, count, size, seed, fonts) -> None:
    """Generate synthetic anime-style images in the folder OUT, to train on alone or with others. They have no licence attached.

    Existing images are kept, so a larger --count adds to them.
    """
    import numpy as np
    from PIL import Image
    from tqdm import trange

    from .data.synthetic import draw as draw_image
    from .results.strips import save_image

    for index in trange(count, unit="image", disable=None):
        path = out / f"synthetic-{seed}-{index:05d}.png"
        if not path.exists():
            save_image(Image.fromarray(draw_image(np.random.default_rng([seed, index]), size, fonts)), path)
    click.echo(out)


@click.command(short_help="Measure weights on your own images.")
@click.argument("weights")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--files", multiple=True, metavar="PATTERN", help='Use only these files, as patterns relative to DIR ("part-1/sky/*").')
@click.option("--recipe", help="Use only the validation files of this recipe.")
@click.option(
    "--method", "methods", multiple=True, help="Downscaling method: bicubic, bilinear, area or lanczos. Default: the first three."
)
@click.option("--crop", type=click.IntRange(0), default=0, help="Side of the middle square to measure, in pixels. Default: whole images.")
@click.option("--preset", default="author", show_default=True, help="How else images are degraded: author (only resizing), clean, web, ...")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
def evaluate(weights, folder, files, recipe, methods, crop, preset, device) -> None:
    """Print how close WEIGHTS come to the original images in DIR, compared with bicubic and Lanczos.

    Every image is cropped to a multiple of the weights' scale, downscaled, and upscaled again. PSNR and SSIM are computed on the luma
    unless named otherwise. Edges and flats are defined by the Sobel magnitude of the original. Shift is in pixels of the original,
    positive to the bottom right.
    """
    from .config import load_recipe
    from .results.evaluate import evaluate_weights, format_table

    if recipe:
        files = (*files, *load_recipe(recipe).validation)
    click.echo(format_table(evaluate_weights(weights, folder, files, methods, device, preset, crop)))


@click.group(cls=Messages)
def main() -> None:
    """Train networks on a folder of images and measure them."""
    share_cores()
    log_to_terminal()


COMMANDS = (check, preview, draw, train, evaluate, report, export, average)

for command in COMMANDS:
    main.add_command(command)
