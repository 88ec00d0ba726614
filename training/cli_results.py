"""The commands for the results of a run: `report`, `export` and `average`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click


@click.command(short_help="Write the report.html of a run.")
@click.argument("run", type=click.Path(path_type=Path))
def report(run) -> None:
    """Write report.html into the folder RUN: metrics, curves, images and settings of a run, finished or not."""
    from .results.report import write_report

    click.echo(write_report(run))


@click.command(short_help="Export the weights of a run.")
@click.argument("run")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="File to write. Default: in the run's folder, named after it.")
@click.option("--dtype", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True, help="Number format to store.")
@click.option(
    "--install", "host", metavar="FOLDER", type=click.Path(path_type=Path), help="Install into this ComfyUI, WebUI or models folder."
)
@click.option(
    "--onnx", metavar="FILE", type=click.Path(path_type=Path), help="Write an fp32 ONNX file for any height and width; takes a minute."
)
@click.option("--last", is_flag=True, help="Export the last weights instead of the best.")
def export(run, out, dtype, host, onnx, last) -> None:
    """Export the best weights of RUN (a run's folder or a weights file) as one file to use or share.

    The file is verified by loading it and comparing it with the run's weights. Existing files are not replaced.
    With only --install or --onnx, no other file is written.
    """
    from ..upscale.checkpoint import load_model
    from .results.export import export_weights, find_weights, install_weights, model_folder, model_name, training_metadata
    from .results.onnx_export import export_onnx, require_onnx

    source = find_weights(run, last)
    name, folder = model_name(source), model_folder(host) if host else None
    if onnx:
        require_onnx(onnx)  # before anything is written
    if out:
        _print_export(export_weights(source, out, dtype), source)
    elif not (folder or onnx):
        _print_export(install_weights(source, source.parent, name, dtype), source)
    if folder:
        _print_export(install_weights(source, folder, name, dtype), source)
        click.echo("to see it, press R in ComfyUI, or restart the WebUI")
    if onnx:
        checks = export_onnx(load_model(source), onnx, training_metadata(source))
        click.echo("\n".join([_describe_file(onnx), *checks]))


@click.command(short_help="Average the weights of several runs.")
@click.argument("sources", nargs=-1, required=True, metavar="RUN[=SHARE]...")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write.")
def average(sources, out) -> None:
    """Average the weights of several RUNs, which are folders, weights files, or names of shipped models.

    The mean of runs that started from the same weights is often better than each of them. SHARE is a run's share in it; without one,
    all have the same. A negative share subtracts: "NEW x4-tiny-crisp.safetensors x4-tiny=-1" makes a crisp version of NEW.
    """
    from .results.average import average_weights, parse_share

    average_weights([parse_share(source) for source in sources], out)
    click.echo(_describe_file(out))


def _print_export(exported, source: Path) -> None:
    click.echo(_describe_file(exported.path))
    click.echo(f"verified: its results differ from those of {source.name} by at most {exported.error * 255:.2g} of 255 levels")


def _describe_file(path: Path) -> str:
    return f"{path}\n{path.stat().st_size:,} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
