"""Batches: plan which file each image goes to, and upscale them one after the other without letting one failure stop the rest."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, FileIO
from os.path import realpath
from pathlib import Path
from typing import BinaryIO

from .animation import WRITTEN, Animation, read_animation, read_frames, write_frames
from .atomic import write_aside
from .engine import ProgressCallback
from .files import FOREIGN, VIDEOS, expand, foreign_format, image_size, image_suffixes, search, unsupported
from .image_io import FORMATS, ImageData, WriterWithoutFileno, check_target, format_of, read_image_from, write_image_to
from .image_safety import ImageError, open_file
from .memory import is_out_of_memory
from .messages import one_line
from .planning import target_size
from .upscaler import Upscaler
from .video import CONTAINERS, is_video, upscale_video, video_suffix

logger = logging.getLogger(__name__)

ANIMATED_SUFFIXES = (".gif", ".apng")
"""Suffixes that are only written for animated images."""
STANDARD = "-"
"""Stands for standard input or output on the command line."""
STDIN, STDOUT = Path("<standard input>"), Path("<standard output>")
"""Source and target of a job that does not read from or write to a file."""


@dataclass(frozen=True)
class Job:
    """One image or video to upscale."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Failure:
    """An image that could not be upscaled, and the reason in one sentence."""

    source: Path
    reason: str


@dataclass(frozen=True)
class Plan:
    """The jobs of a run. They depend on which files exist, so with several processes, one makes the plan for all."""

    jobs: list[Job]
    todo: list[Job]
    """The jobs that are left to do: when resuming those without a result, otherwise all."""
    failures: list[Failure]


def plan_jobs(inputs: Iterable[str], output: str | None, extension: str, suffix: str, resume: bool = False) -> Plan:
    """Decide where each image goes.

    A file's result goes to the same folder with `suffix` appended to its name, or into the folder `output` under its own name; for a single
    file, `output` may be the target file itself. A folder's images, at any depth, keep their relative paths below `output`, or below a
    sibling folder with `suffix` appended to its name. Patterns (`*.png`) are expanded if the shell has not done so. Videos, which take
    hours, must be named explicitly, and stay videos.

    A result's name never depends on which other files exist. Images that would get the same name (`a.png` and `a.jpg`) are failures, and so
    are images in unsupported formats. Other files in a folder are skipped, and their number is logged.

    Raises ValueError if an input does not exist, no image is found, `output` names a file but must be a folder, or a target is one of the
    inputs; raises OSError if a folder for results is not writable.
    """
    inputs = list(inputs)
    if STANDARD in inputs or output == STANDARD:
        return _plan_standard(inputs, output)
    sources = [path for text in inputs for path in expand(text)]
    output_is_file = output is not None and _is_file_name(output, sources)
    jobs: list[Job] = []
    failures: list[Failure] = []
    for source in sources:
        new_suffix = video_suffix(source) if is_video(source) else extension
        if source.is_dir():
            resolved = source.resolve()
            root = Path(output) if output else resolved.with_name(resolved.name + suffix)
            folder_jobs, folder_failures = _plan_folder(source, root, extension)
            jobs += folder_jobs
            failures += folder_failures
        elif format := foreign_format(source):
            failures.append(_log_failure(source, unsupported(format)))
        elif output and output_is_file:
            jobs.append(Job(source, Path(output)))
        elif output:
            jobs.append(Job(source, Path(output) / f"{source.stem}{new_suffix}"))
        else:
            jobs.append(Job(source, source.with_name(f"{source.stem}{suffix}{new_suffix}")))
    if not jobs and not failures:
        raise ValueError(f"no images found in {', '.join(map(str, sources))}; expected PNG, JPEG, WebP or another format that Pillow reads")
    jobs = _drop_earlier_results(jobs)
    failures += _find_clashes(jobs)
    failed = {failure.source for failure in failures}
    jobs = [job for job in jobs if job.source not in failed]
    todo = [job for job in jobs if not (resume and job.target.exists())]
    _check_folders(todo)
    return Plan(jobs, todo, failures)


def _plan_folder(source: Path, root: Path, extension: str) -> tuple[list[Job], list[Failure]]:
    """Plan the images below a folder, whose results go to the same relative paths below `root`. Logs what is skipped."""
    contents = search(source, without=None if realpath(root) == realpath(source) else root)
    for line in contents.skipped_lines():
        logger.warning("%s", one_line(f"{source}: {line}"))
    jobs = [Job(path, (root / path.relative_to(source)).with_suffix(extension)) for path in contents.images]
    return jobs, [_log_failure(path, reason) for path, reason in contents.unreadable]


def _plan_standard(inputs: list[str], output: str | None) -> Plan:
    """Plan a run with a single image that comes from standard input, goes to standard output, or both."""
    sources = [STDIN if text == STANDARD else path for text in inputs for path in ([STDIN] if text == STANDARD else expand(text))]
    if len(sources) != 1 or sources[0].is_dir() or is_video(sources[0]):
        raise ValueError("standard input and output (-) hold one image; give a single image, or a folder with -o")
    to_stdout = output in (None, STANDARD)
    if not to_stdout and not _is_file_name(str(output), sources):
        raise ValueError(f"{output}: expected a file name or - with -o for an image from standard input")
    job = Job(sources[0], STDOUT if to_stdout else Path(str(output)))
    return Plan([job], [job], [])


def _is_file_name(output: str, sources: list[Path]) -> bool:
    """Whether `output` names the single result file rather than a folder.

    Raises ValueError if it looks like a file name but cannot be one. A folder with such a name must exist, or end in a slash.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in {*image_suffixes(), *FOREIGN, *VIDEOS} or Path(output).is_dir() or output.endswith(("/", os.sep)):
        return False
    if len(sources) != 1 or sources[0].is_dir():
        given = "the input is a folder" if len(sources) == 1 else f"there are {len(sources)} inputs"
        raise ValueError(f"{output}: this is a file name, but {given}; give a folder with -o, ending in a slash if it is new")
    expected = tuple(CONTAINERS) if is_video(sources[0]) else (*(f".{name}" for name in FORMATS), *ANIMATED_SUFFIXES)
    if suffix not in expected:
        raise ValueError(f"{output}: {sources[0]} cannot be written as {suffix}; expected one of {', '.join(expected)}")
    return True


def _drop_earlier_results(jobs: list[Job]) -> list[Job]:
    """Drop duplicates, and sources that are the result of another job in the same folder, written by an earlier run.

    Raises ValueError if a target is one of the remaining sources.
    """
    # `Path.resolve` fails on circular links
    results = {realpath(job.target) for job in jobs if realpath(job.source) != realpath(job.target)}
    jobs = [job for job in dict.fromkeys(jobs) if not (realpath(job.source) in results and job.source.parent == job.target.parent)]
    sources = {realpath(job.source) for job in jobs}
    for job in jobs:
        if realpath(job.target) in sources:
            raise ValueError(f"{job.target} is one of the inputs and would be overwritten; choose another output folder")
    return jobs


def _find_clashes(jobs: list[Job]) -> list[Failure]:
    """Return a failure for each image that has the same target as another."""
    sources_of: dict[Path, list[Path]] = {}
    for job in jobs:
        sources_of.setdefault(job.target, []).append(job.source)
    failures = []
    for target, sources in sources_of.items():
        for source in sources if len(sources) > 1 else []:
            other = sources[source == sources[0]]
            failures.append(_log_failure(source, f"{other} would become {target} too; rename one, or upscale them into two folders"))
    return failures


def _log_failure(source: Path, reason: str) -> Failure:
    logger.error("%s", one_line(f"{source}: {reason}"))
    return Failure(source, reason)


def _check_folders(jobs: list[Job]) -> None:
    """Raise OSError if a folder for results cannot be created or written to, so that a run fails before hours of work."""
    for folder in {_existing_parent(job.target.parent) for job in jobs}:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(f"{folder}: cannot write results there ({error.strerror}); choose another folder with -o") from error


def _existing_parent(folder: Path) -> Path:
    return folder if folder.exists() else _existing_parent(folder.parent)


def largest_first(jobs: list[Job]) -> list[Job]:
    """Sort jobs by pixel count, so that dealing them out gives each process a similar amount of work. Unreadable files come last."""
    return sorted(jobs, key=lambda job: _count_pixels(job.source), reverse=True)


def _count_pixels(path: Path) -> int:
    return sys.maxsize if is_video(path) else math.prod(image_size(path))


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
    """Run every job and return the failures.

    Args:
        size: (height, width) of every result.
        format: format of a result on standard output; other results get theirs from the target's suffix.
        resume: skip jobs whose target exists. Without it, an existing target is a failure, unless `overwrite` is set.
        on_progress: called with the job's index and the completed fraction of it; 1 when the job has ended.
    """
    failures = []
    for index, job in enumerate(jobs):
        try:
            if job.target.exists() and not (resume or overwrite):
                raise FileExistsError(f"{job.target} already exists; skip finished images with --resume, or replace them with --overwrite")
            if not (resume and job.target.exists()):
                job.target.parent.mkdir(parents=True, exist_ok=True)
                upscale = upscale_video if is_video(job.source) else functools.partial(_upscale_image, format=format)
                progress = functools.partial(on_progress, index)
                upscale(job.source, job.target, upscaler, factor=factor, size=size, quality=quality, on_progress=progress)
        except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = str(error).removeprefix(f"{job.source}: ").splitlines()[0] if str(error) else "not enough memory"
            failures.append(_log_failure(job.source, reason))
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
    """Upscale an image; an animated one stays animated if the target's format allows it."""
    suffix = format if target == STDOUT else target.suffix.lower().removeprefix(".")
    with _open_source(source) as file:
        animation = read_animation(file, source)
        pil_format = "GIF" if suffix == "gif" else "PNG" if suffix == "apng" else format_of(target, suffix)
        if animation is None and f".{suffix}" in ANIMATED_SUFFIXES:
            raise ImageError(f"{source}: not animated, and .{suffix} is only written for animated images; expected png, webp or jpg")

        def upscale(image: ImageData, on_progress: ProgressCallback | None = None) -> ImageData:
            height, width = image.color.shape[:2]
            check_target(target, pil_format, *target_size(height, width, upscaler.scale, **options))  # before upscaling
            return upscaler.upscale_image(image, **options, on_progress=on_progress)

        if animation is None or pil_format not in WRITTEN:
            large = upscale(read_image_from(file, source), lambda done, total: on_progress(done / total))
            with _open_target(target) as out:
                write_image_to(large, out, target, pil_format, quality)
            return

        def upscale_frames(animation: Animation) -> Iterator[ImageData]:
            for index, frame in enumerate(read_frames(file, source, animation), start=1):
                yield upscale(frame)
                on_progress(index / len(animation.durations))

        with _open_target(target) as out:
            write_frames(upscale_frames(animation), animation, out, pil_format, quality)


@contextmanager
def _open_source(source: Path) -> Iterator[BinaryIO]:
    if source == STDIN:
        yield BytesIO(sys.stdin.buffer.read())
        return
    with open_file(source) as file:
        yield file


@contextmanager
def _open_target(target: Path) -> Iterator[BinaryIO]:
    """Open a target that is written completely or not at all, including standard output."""
    if target == STDOUT:
        buffer = BytesIO()
        yield buffer
        sys.stdout.buffer.write(buffer.getbuffer())
        sys.stdout.buffer.flush()
        return
    with write_aside(target) as aside, WriterWithoutFileno(FileIO(aside, "wb")) as file:
        yield file
