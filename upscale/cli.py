"""The `transformersr` command."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..training.cli import COMMANDS
from .cores import share_cores
from .messages import BAR, Messages, log_to_terminal, one_line

if TYPE_CHECKING:
    from .batch import Failure, Job, Plan


OUTPUT_FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpg", ".jpeg": "jpg", ".gif": "gif"}
"""Suffixes of a single result and the choice of `--format` that they stand for."""


class Size(click.ParamType):
    """A size as WIDTHxHEIGHT, converted to (height, width)."""

    name = "WxH"

    def convert(self, value, param, ctx):
        match = re.fullmatch(r"([0-9]+)x([0-9]+)", str(value).lower())
        if not match or 0 in (int(match[1]), int(match[2])):
            self.fail(f"{value!r} is not a size; expected WIDTHxHEIGHT, for example 3840x2160", param, ctx)
        return int(match[2]), int(match[1])


class Factor(click.ParamType):
    """An upscaling factor in the range that the engine supports, which excludes nan and inf."""

    name = "F"

    def convert(self, value, param, ctx):
        factor = click.FLOAT.convert(value, param, ctx)
        if not 0 < factor < 1000:
            self.fail(f"{value} is not a number above 0 and below 1000", param, ctx)
        return factor


class Checked(click.ParamType):
    """A value that a function of `upscaler` checks and converts. It is imported late, because PyTorch takes seconds to load."""

    def __init__(self, name: str, function: str):
        self.name, self.function = name, function

    def convert(self, value, param, ctx):
        from . import upscaler

        try:
            return getattr(upscaler, self.function)(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Commands(Messages):
    """The commands; a file or folder in the place of a command gets a message with the command for it."""

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args[0] not in self.commands and os.path.exists(args[0]):
            raise click.UsageError(
                f"{one_line(args[0])}: expected a command first; to upscale it: transformersr upscale {one_line(args[0])}"
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="transformersr")
def main() -> None:
    """Upscale anime-style images with clean lines, and train networks to do so."""
    share_cores()
    log_to_terminal()


class FilesCommand(click.Command):
    """A command that treats the name of an existing file as a file even if it looks like an option: `*.png` may become `-x.png`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        escaped = [f"./{text}" if re.match(r"-.*\.\w+$", text) and os.path.exists(text) else text for text in args]
        return super().parse_args(ctx, escaped)


@main.command(short_help="Upscale images, folders and videos.", cls=FilesCommand)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="Folder for the results, file name for a single result, or - for standard output. Default: next to the input.",
)
@click.option("-s", "--scale", "factor", type=Factor(), help="Upscaling factor, for example 1.5 or 3. Default: the model's own scale.")
@click.option("--size", type=Size(), metavar="WxH", help="Exact size of the result as WIDTHxHEIGHT, instead of --scale.")
@click.option(
    "-m",
    "--model",
    metavar="M",
    help="A name from `transformersr models`, or a weights file. Default: one that fits --scale and --crispness.",
)
@click.option(
    "--device", type=Checked("DEVICE", "check_device_name"), default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Number format of the computation; auto is fp16 on CUDA cards that are fast in it, else fp32.",
)
@click.option("--crispness", type=click.FloatRange(0, 1), default=0.0, help="0 is faithful, 1 is crispest. Default: 0.")
@click.option("--ensemble", is_flag=True, help="Average over eight rotated and mirrored versions: slightly better, eight times slower.")
@click.option(
    "--memory",
    type=Checked("BYTES", "parse_bytes"),
    help="Memory limit for the network's tensors, for example 2G. Does not change the result.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["png", "webp", "jpg", "gif"], case_sensitive=False),
    default="png",
    show_default=True,
    help="File format of the results; gif only for animated images.",
)
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="For jpg, webp (lossless at 100) and videos.")
@click.option("--resume", is_flag=True, help="Skip images whose result already exists.")
@click.option("--overwrite", is_flag=True, help="Replace existing results. Inputs are never replaced.")
def upscale(inputs, output, factor, size, model, device, dtype, crispness, ensemble, memory, format_, quality, resume, overwrite) -> None:
    """Upscale images: files, folders with their subfolders, patterns, or - for standard input. Videos must be named one by one.

    Animated images (GIF, APNG, WebP, AVIF) stay animated in png, webp and gif. Metadata, colour profile, transparency and 16-bit depth are
    kept. If an image fails, its name and the reason are logged, the others continue, and the exit code is 1. When started with
    `accelerate launch` or `torchrun`, several processes share the images.
    """
    from .batch import largest_first, plan_jobs, run_jobs
    from .processes import find_processes
    from .upscaler import Upscaler, default_model

    if factor is not None and size is not None:
        raise click.UsageError("--scale and --size were both given; use only one of them")
    chosen = click.get_current_context().get_parameter_source("format_") is ParameterSource.COMMANDLINE
    named = OUTPUT_FORMATS.get(Path(output or "").suffix.lower(), format_)
    if chosen and named != format_ and not Path(output).is_dir():
        raise click.UsageError(f"-o {output} and --format {format_} contradict each other; leave out --format")
    processes = find_processes()
    if processes.count > 1 and "-" in (*inputs, output):
        raise click.UsageError("standard input and output (-) cannot be shared by several processes; use files, or start one process")
    if ("-" in inputs and output is None) or output == "-":
        refuse_terminal()

    @functools.cache
    def upscaler() -> Upscaler:
        return Upscaler.from_pretrained(
            model or default_model(factor, crispness), processes.device(device), dtype, memory, crispness, ensemble
        )

    def plan() -> tuple[Plan, list[Job]]:
        scale = upscaler().scale  # load the model here, so that with several processes only one reports a problem with it
        suffix = f"_{size[1]}x{size[0]}" if size else f"_x{factor or scale:g}"
        plan = plan_jobs(inputs, output, f".{format_}", suffix, resume)
        return plan, largest_first(plan.todo) if processes.count > 1 else plan.todo

    total_plan, todo = processes.from_first(plan)
    jobs = processes.share(todo)
    with show_progress(jobs, hidden=processes.index > 0) as show, exit_on_sigterm():
        failures = run_jobs(
            jobs,
            upscaler(),
            factor=factor,
            size=size,
            format=format_,
            quality=quality,
            resume=resume,
            overwrite=overwrite,
            on_progress=show,
        )
    failures = [*total_plan.failures, *processes.gather(failures)]
    # all processes wait here for the summary: a launcher kills the others as soon as one exits
    sys.exit(processes.from_first(lambda: print_summary(total_plan, failures)))


def refuse_terminal() -> None:
    """Raise UsageError if the image would be written to a terminal."""
    if sys.stdout.isatty():
        raise click.UsageError("the image would be written to the terminal; redirect it (> FILE, | PROGRAM), or name a file with -o")


@contextmanager
def show_progress(jobs: list[Job], hidden: bool) -> Iterator[Callable[[int, float], None]]:
    """Show a progress bar on a terminal; yields a function that takes a job's index and the completed fraction of the job."""
    with tqdm(total=len(jobs), unit="image", bar_format=BAR, disable=hidden or None) as bar, logging_redirect_tqdm():

        def show(index: int, share: float) -> None:
            bar.set_description_str(one_line(jobs[index].source.name)[-40:], refresh=False)
            bar.update(index + share - bar.n)

        yield show


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Exit cleanly on SIGTERM, so that partly written files are removed, as with Ctrl-C. A launcher sends it if another process fails."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_summary(plan: Plan, failures: list[Failure]) -> int:
    """Print the path of a single result, or how many of several images are done. Returns the exit code."""
    from .batch import STDOUT

    total = len(plan.jobs) + len(plan.failures)
    if plan.jobs and plan.jobs[0].target == STDOUT:
        return 1 if failures else 0
    if total == 1 and not failures:
        click.echo(plan.jobs[0].target)
    elif total > 1:
        existing = len(plan.jobs) - len(plan.todo)
        click.echo(f"{total - len(failures)} of {total} images done" + (f", {existing} of them before this run" if existing else ""))
    return 1 if failures else 0


@main.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Number format to store. Default: that of the input.")
@click.option("--window", "window_size", type=int, help="Window size, needed if an original author's file was renamed.")
@click.option("--heads", "num_heads", type=int, help="Number of heads, needed in the same case.")
def convert(source, target, dtype, window_size, num_heads) -> None:
    """Convert weights, including the original author's, to our safetensors format. IN is not changed."""
    from .checkpoint import convert_file
    from .upscaler import DTYPES, find_model

    if target.suffix != ".safetensors":
        raise click.UsageError(f"{target}: expected a name ending in .safetensors")
    if target.exists():
        raise click.UsageError(f"{target} exists; choose another name")
    convert_file(find_model(source), target, DTYPES.get(dtype), window_size=window_size, num_heads=num_heads)
    click.echo(target)


@main.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def info(path) -> None:
    """Describe a model or a weights file."""
    from .checkpoint import describe
    from .upscaler import find_model

    for name, value in describe(find_model(path)).items():
        click.echo(f"{name + ':':19} {value}")


@main.command()
def models() -> None:
    """List the models that come with the package, starting with the default."""
    from .upscaler import PURPOSES, available_models

    for name, path in available_models().items():
        click.echo(f"{name:18}{path.stat().st_size / 2**20:5.1f} MiB  {PURPOSES.get(name, ''):33}{path}")


for command in COMMANDS:
    main.add_command(command)
