"""Many files: which image goes where, and doing one after the other without losing any."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO, FileIO
from os.path import realpath
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..arch.atomic import write_aside
from .animation import WRITTEN, read_animation, read_frames, write_frames
from .files import FOREIGN, VIDEOS, expand, foreign_format, image_suffixes, search
from .image_io import (
    FORMATS,
    ImageError,
    Unnumbered,
    check_target,
    format_of,
    open_file,
    read_image_from,
    write_image_to,
)
from .memory import is_out_of_memory
from .messages import one_line
from .planning import target_size
from .upscaler import Upscaler
from .video import CONTAINERS, is_video, upscale_video, video_suffix

logger = logging.getLogger(__name__)

ANIMATED_SUFFIXES = (".gif", ".apng")
"""Suffixes that are written for animated images alone."""
STANDARD = "-"
"""On a command line, standard input or output."""
STDIN, STDOUT = Path("<standard input>"), Path("<standard output>")
"""Where the image of a job comes from or goes to instead of a file."""


@dataclass(frozen=True)
class Job:
    """One image or video to upscale."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Failure:
    """An image that could not be done, and why in one sentence."""

    source: Path
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a run has to do. It depends on the files that are there, so of several processes one makes it for all."""

    jobs: list[Job]
    todo: list[Job]
    """The jobs whose result is not there yet, or all where a run does not resume another."""
    failures: list[Failure]


def plan_jobs(inputs: Iterable[str], output: str | None, extension: str, suffix: str, resume: bool = False) -> Plan:
    """Decide where each image goes.

    A file goes beside itself with `suffix` behind its name, or into the folder `output` under its own name; a single file may
    name its target outright. A folder's images, at any depth, go to the same places below `output`, or below a folder beside
    it with `suffix` behind its name. Patterns (`*.png`) are expanded where the shell did not. Videos, which take hours, have to be
    named themselves, and stay videos.

    A name never depends on what else is there. Images that would get the same one (`a.png` and `a.jpg`) are failures, and so are
    those that nothing here reads. Other files of a folder are passed over, which is logged with their number.

    Raises ValueError if an input does not exist, nothing is found, `output` is the name of a file where it has to be a folder, or a target
    is one of the inputs, and OSError if a folder for results cannot be written to.
    """
    inputs = list(inputs)
    if STANDARD in inputs or output == STANDARD:
        return _plan_standard(inputs, output)
    sources = [path for text in inputs for path in expand(text)]
    outright = output is not None and _is_file_name(output, sources)
    jobs: list[Job] = []
    failures: list[Failure] = []
    for source in sources:
        ending = video_suffix(source) if is_video(source) else extension
        if source.is_dir():
            resolved = source.resolve()
            root = Path(output) if output else resolved.with_name(resolved.name + suffix)
            contents = search(source, without=None if os.path.realpath(root) == os.path.realpath(source) else root)
            for line in contents.passed_over():
                logger.warning("%s", one_line(f"{source}: {line}"))
            failures += [_failed(path, reason) for path, reason in contents.unreadable]
            jobs += [Job(path, (root / path.relative_to(source)).with_suffix(extension)) for path in contents.images]
        elif format := foreign_format(source):
            failures.append(_failed(source, f"this is {format}, which is not read here; save it as PNG first"))
        elif output and outright:
            jobs.append(Job(source, Path(output)))
        elif output:
            jobs.append(Job(source, Path(output) / f"{source.stem}{ending}"))
        else:
            jobs.append(Job(source, source.with_name(f"{source.stem}{suffix}{ending}")))
    if not jobs and not failures:
        raise ValueError(f"no images found in {', '.join(map(str, sources))}; expected PNG, JPEG, WebP or another format that Pillow reads")
    jobs = _without_results(jobs)
    failures += _clashes(jobs)
    refused = {failure.source for failure in failures}
    jobs = [job for job in jobs if job.source not in refused]
    todo = [job for job in jobs if not (resume and job.target.exists())]
    _check_folders(todo)
    return Plan(jobs, todo, failures)


def _plan_standard(inputs: list[str], output: str | None) -> Plan:
    """One image, from standard input or to standard output or both."""
    sources = [STDIN if text == STANDARD else path for text in inputs for path in ([STDIN] if text == STANDARD else expand(text))]
    if len(sources) != 1 or sources[0].is_dir() or is_video(sources[0]):
        raise ValueError("- stands for standard input or output, which hold one image; name one image, or a folder with -o")
    to_stdout = output in (None, STANDARD)
    if not to_stdout and not _is_file_name(str(output), sources):
        raise ValueError(f"{output}: expected the name of a file with -o for the image from standard input, or -o -")
    job = Job(sources[0], STDOUT if to_stdout else Path(str(output)))
    return Plan([job], [job], [])


def _is_file_name(output: str, sources: list[Path]) -> bool:
    """Whether `output` is the name of the one result, rather than of a folder for all.

    Raises ValueError where it looks like a file's name and cannot be one; as the name of a folder it has to exist, or end in a slash.
    """
    ending = Path(output).suffix.lower()
    if ending not in {*image_suffixes(), *FOREIGN, *VIDEOS} or Path(output).is_dir() or output.endswith(("/", os.sep)):
        return False
    if len(sources) != 1 or sources[0].is_dir():
        what = "a folder" if len(sources) == 1 else f"{len(sources)} inputs"
        raise ValueError(
            f"{output}: the name of one file, and the input is {what}; give a folder with -o, by a name with a slash at its end"
        )
    video = is_video(sources[0])
    expected = tuple(CONTAINERS) if video else (*(f".{suffix}" for suffix in FORMATS), *ANIMATED_SUFFIXES)
    if ending not in expected:
        raise ValueError(f"{output}: {sources[0]} cannot be written as {ending}; expected one of {', '.join(expected)}")
    return True


def _without_results(jobs: list[Job]) -> list[Job]:
    """Each job once. A source that is the result of another one, beside it, is an earlier run's and is left out.

    Raises ValueError if a target is one of the sources that remain.
    """
    # `Path.resolve` fails where links go in circles
    made = {realpath(job.target) for job in jobs if realpath(job.source) != realpath(job.target)}
    jobs = [job for job in dict.fromkeys(jobs) if not (realpath(job.source) in made and job.source.parent == job.target.parent)]
    sources = {realpath(job.source) for job in jobs}
    for job in jobs:
        if realpath(job.target) in sources:
            raise ValueError(f"{job.target} is one of the inputs and would be overwritten; choose another output folder")
    return jobs


def _clashes(jobs: list[Job]) -> list[Failure]:
    """The images that would become the same file as another."""
    claims: dict[Path, list[Path]] = {}
    for job in jobs:
        claims.setdefault(job.target, []).append(job.source)
    failures = []
    for target, sources in claims.items():
        for source in sources if len(sources) > 1 else []:
            other = sources[source == sources[0]]
            failures.append(_failed(source, f"{other} would become {target} too; rename one, or upscale them into two folders"))
    return failures


def _failed(source: Path, reason: str) -> Failure:
    logger.error("%s", one_line(f"{source}: {reason}"))
    return Failure(source, reason)


def _check_folders(jobs: list[Job]) -> None:
    """Raise OSError if the folders for results cannot be made or written to, before hours of work rather than after."""
    for folder in {_existing(job.target.parent) for job in jobs}:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(f"{folder}: results cannot be written there ({error.strerror}); choose another folder with -o") from error


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def largest_first(jobs: list[Job]) -> list[Job]:
    """Sorted by pixels, so that dealing the jobs out gives everybody about as much to do. Unreadable ones are last."""
    return sorted(jobs, key=lambda job: _pixels(job.source), reverse=True)


def _pixels(path: Path) -> int:
    if is_video(path):
        return sys.maxsize
    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(path) as image:
        return image.width * image.height
    return 0


def run_jobs(
    jobs: list[Job],
    upscaler: Upscaler,
    *,
    factor: float | None = None,
    size: tuple[int, int] | None = None,
    format: str = "png",
    quality: int = 95,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, float], None] = lambda index, share: None,
) -> list[Failure]:
    """Do every job that can be done and return the others.

    Args:
        size: (height, width) of every result.
        format: suffix of a result on standard output; others have a name.
        resume: leave out what is there already; otherwise a target that exists is a failure, unless `overwrite`.
        on_progress: called with the job's index and the share of it that is done, at its end with 1.
    """
    failures = []
    for index, job in enumerate(jobs):
        try:
            if job.target.exists() and not (resume or overwrite):
                raise FileExistsError(f"{job.target} exists; leave finished images out with --resume, or replace them with --overwrite")
            if not (resume and job.target.exists()):
                job.target.parent.mkdir(parents=True, exist_ok=True)
                upscale = upscale_video if is_video(job.source) else functools.partial(_upscale_image, format=format)
                progress = functools.partial(on_progress, index)
                upscale(job.source, job.target, upscaler, factor=factor, size=size, quality=quality, on_progress=progress)
        except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = str(error).removeprefix(f"{job.source}: ").splitlines()[0] if str(error) else "not enough memory"
            failures.append(_failed(job.source, reason))
        on_progress(index, 1.0)
    return failures


def _upscale_image(
    source: Path,
    target: Path,
    upscaler: Upscaler,
    *,
    format: str,
    quality: int,
    on_progress: Callable[[float], None],
    **options,
) -> None:
    suffix = format if target == STDOUT else target.suffix.lower().removeprefix(".")
    with _open_source(source) as file:
        animation = read_animation(file, source)
        written = "GIF" if suffix == "gif" else "PNG" if suffix == "apng" else format_of(target, suffix)
        if animation is None and f".{suffix}" in ANIMATED_SUFFIXES:
            raise ImageError(f"{source}: a still, and .{suffix} files are written for animated images alone; expected png, webp or jpg")
        if animation is None or written not in WRITTEN:
            image = read_image_from(file, source)
            height, width = image.color.shape[:2]
            check_target(target, written, *target_size(height, width, upscaler.scale, **options))  # before the work
            large = upscaler.upscale_image(image, **options, on_progress=lambda done, total: on_progress(done / total))
            with _open_target(target) as out:
                write_image_to(large, out, target, written, quality)
            return
        count = len(animation.durations)

        def upscaled() -> Iterator:
            for index, frame in enumerate(read_frames(file, source, animation)):
                height, width = frame.color.shape[:2]
                check_target(target, written, *target_size(height, width, upscaler.scale, **options))
                yield upscaler.upscale_image(frame, **options)
                on_progress((index + 1) / count)

        with _open_target(target) as out:
            write_frames(upscaled(), animation, out, written, quality)


@contextmanager
def _open_source(source: Path) -> Iterator[BinaryIO]:
    if source == STDIN:
        yield BytesIO(sys.stdin.buffer.read())
        return
    with open_file(source) as file:
        yield file


@contextmanager
def _open_target(target: Path) -> Iterator[BinaryIO]:
    """A file that appears whole or not at all; standard output likewise gets all or nothing."""
    if target == STDOUT:
        buffer = BytesIO()
        yield buffer
        sys.stdout.buffer.write(buffer.getbuffer())
        sys.stdout.buffer.flush()
        return
    with write_aside(target) as aside, Unnumbered(FileIO(aside, "wb")) as file:
        yield file
