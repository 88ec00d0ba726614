"""The `transformersr` command."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import click
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..training.cli import COMMANDS
from .cores import share_cores
from .messages import Messages

FORMATS = {"png": ".png", "webp": ".webp", "jpg": ".jpg"}


class Size(click.ParamType):
    """A size as WIDTHxHEIGHT; gives (height, width)."""

    name = "WxH"

    def convert(self, value, param, ctx):
        match = re.fullmatch(r"([0-9]+)x([0-9]+)", str(value).lower())
        if not match:
            self.fail(f"{value!r} is not a size such as 3840x2160", param, ctx)
        return int(match[2]), int(match[1])


@click.group(cls=Messages, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="transformersr")
def main() -> None:
    """Enlarge anime-style pictures with clean lines, and train networks that do."""
    share_cores()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


@main.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="PATH", help="Folder for the results, or for a single picture its file. Default: beside the input.")
@click.option("--scale", "factor", type=float, metavar="F", help="How many times larger, 1.5 or 3 say. Default: what the model gives.")
@click.option("--size", type=Size(), help="Exact size of the result instead, as WIDTHxHEIGHT.")
@click.option("-m", "--model", metavar="M", help="A model of `transformersr models`, or a file of weights. Default: one that fits --scale.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, fp32, bf16, fp16.")
@click.option("--memory", metavar="BYTES", help="Most memory the network's tensors may take, 2G say; the result is the same for any.")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="png", show_default=True, help="File format of the results.")
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of jpg and webp; webp is lossless at 100.")
@click.option("--resume", is_flag=True, help="Leave out pictures whose result exists.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist. Inputs are never replaced.")
def upscale(inputs, output, factor, size, model, device, dtype, memory, format_, quality, resume, overwrite) -> None:
    """Enlarge pictures: files, folders with everything below them, patterns.

    Metadata, colour profile, transparency and 16-bit depth are kept. A picture that cannot be done is named, the others go on, and the
    exit code is 1.
    """
    from .batch import plan_jobs, run_jobs
    from .upscaler import Upscaler, default_model

    if factor is not None and size is not None:
        raise click.UsageError("--scale and --size were both given; give one of them")
    upscaler = Upscaler.from_pretrained(model or default_model(factor), device, dtype, memory)
    suffix = f"_{size[1]}x{size[0]}" if size else f"_x{factor or upscaler.scale:g}"
    jobs = plan_jobs(inputs, output, FORMATS[format_], suffix)
    with tqdm(total=len(jobs), unit="picture", bar_format=BAR, disable=None) as bar, logging_redirect_tqdm():

        def show(index: int, share: float) -> None:
            bar.set_description_str(jobs[index].source.name[-40:], refresh=False)
            bar.update(index + share - bar.n)

        failures = run_jobs(jobs, upscaler, factor=factor, size=size, quality=quality, resume=resume, overwrite=overwrite, on_progress=show)
    if len(jobs) == 1 and not failures:
        click.echo(jobs[0].target)
    elif len(jobs) > 1:
        click.echo(f"{len(jobs) - len(failures)} of {len(jobs)} pictures done")
    if failures:
        sys.exit(1)


BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed} done, {remaining} left"


@main.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Number format to store. Default: as in the file.")
@click.option("--window", "window_size", type=int, help="Window size, for an original file that was renamed.")
@click.option("--heads", "num_heads", type=int, help="Number of heads, likewise.")
def convert(source, target, dtype, window_size, num_heads) -> None:
    """Convert weights, the original author's too, to our safetensors. IN is left as it is."""
    from ..arch.checkpoint import convert_file
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
    """Say what a model or a file of weights is."""
    from ..arch.checkpoint import describe
    from .upscaler import find_model

    for name, value in describe(find_model(path)).items():
        click.echo(f"{name + ':':15}{value}")


@main.command()
def models() -> None:
    """List the models that come with the package, the default first."""
    from .upscaler import available_models

    for name, path in available_models().items():
        click.echo(f"{name:20}{path.stat().st_size / 2**20:6.1f} MiB  {path}")


for command in COMMANDS:
    main.add_command(command)
