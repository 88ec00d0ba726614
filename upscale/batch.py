"""Many files: which picture goes where, and doing one after the other without losing any."""

from __future__ import annotations

import functools
import glob
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path

from PIL import Image

from .image_io import FORMATS, READABLE, check_target, read_picture, write_picture
from .memory import is_out_of_memory
from .messages import one_line
from .planning import target_size
from .upscaler import Upscaler
from .video import CONTAINERS, enlarge_film, film_suffix, is_film

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One picture or film to enlarge."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Failure:
    """A picture that could not be done, and why in one sentence."""

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
    """Decide where each picture goes.

    A file goes beside itself with `suffix` behind its name, or into the folder `output` under its own name; a single file may
    name its target outright. A folder's pictures, at any depth, go to the same places below `output`, or below a folder beside
    it with `suffix` behind its name. Patterns (`*.png`) are expanded where the shell did not. Films, which take hours, have to be
    named themselves, and stay films.

    A name never depends on what else is there. Pictures that would get the same one (`a.png` and `a.jpg`) are failures.

    Raises ValueError if an input does not exist, nothing is found, or a target is one of the inputs, and OSError if a folder
    for results cannot be written to.
    """
    sources = [path for text in inputs for path in _expand(text)]
    jobs: list[Job] = []
    for source in sources:
        ending = film_suffix(source) if is_film(source) else extension
        if source.is_dir():
            resolved = source.resolve()
            root = Path(output) if output else resolved.with_name(resolved.name + suffix)
            jobs += [Job(path, (root / path.relative_to(source)).with_suffix(extension)) for path in _pictures(source, root)]
        elif output and len(sources) == 1 and _is_name_for(source, Path(output).suffix.lower()):
            jobs.append(Job(source, Path(output)))
        elif output:
            jobs.append(Job(source, Path(output) / f"{source.stem}{ending}"))
        else:
            jobs.append(Job(source, source.with_name(f"{source.stem}{suffix}{ending}")))
    if not jobs:
        raise ValueError(f"no pictures found in {', '.join(map(str, sources))}; expected files ending in {', '.join(READABLE)}")
    jobs = _without_results(jobs)
    failures = _clashes(jobs)
    refused = {failure.source for failure in failures}
    jobs = [job for job in jobs if job.source not in refused]
    todo = [job for job in jobs if not (resume and job.target.exists())]
    _check_folders(todo)
    return Plan(jobs, todo, failures)


def _is_name_for(source: Path, ending: str) -> bool:
    """Whether an ending is that of a file to write, rather than part of a folder's name. Raises ValueError for a film as a picture."""
    if ending not in CONTAINERS and ending.removeprefix(".") not in FORMATS:
        return False
    if is_film(source) != (ending in CONTAINERS):
        expected = CONTAINERS if is_film(source) else FORMATS
        raise ValueError(f"{source}: cannot be written as {ending}; expected one of {', '.join(expected)}")
    return True


def _expand(text: str) -> list[Path]:
    path = Path(text)
    if path.exists():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
    if not found:
        raise ValueError(f"{text}: no such file or folder")
    return found


def _pictures(folder: Path, root: Path) -> list[Path]:
    """Pictures below a folder, those of an earlier run's output in a folder inside it left out."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in READABLE and path.is_file() and not path.name.startswith(".")]
    if root.resolve() != folder.resolve():
        paths = [path for path in paths if root.resolve() not in path.resolve().parents]
    return sorted(paths)


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
    """The pictures that would become the same file as another."""
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
    if is_film(path):
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
    quality: int = 95,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, float], None] = lambda index, share: None,
) -> list[Failure]:
    """Do every job that can be done and return the others.

    Args:
        size: (height, width) of every result.
        resume: leave out what is there already; otherwise a target that exists is a failure, unless `overwrite`.
        on_progress: called with the job's index and the share of it that is done, at its end with 1.
    """
    failures = []
    for index, job in enumerate(jobs):
        try:
            if job.target.exists() and not (resume or overwrite):
                raise FileExistsError(f"{job.target} exists; leave finished pictures out with --resume, or replace them with --overwrite")
            if not (resume and job.target.exists()):
                job.target.parent.mkdir(parents=True, exist_ok=True)
                enlarge = enlarge_film if is_film(job.source) else _enlarge_picture
                progress = functools.partial(on_progress, index)
                enlarge(job.source, job.target, upscaler, factor=factor, size=size, quality=quality, on_progress=progress)
        except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = str(error).removeprefix(f"{job.source}: ").splitlines()[0] if str(error) else "not enough memory"
            failures.append(_failed(job.source, reason))
        on_progress(index, 1.0)
    return failures


def _enlarge_picture(
    source: Path, target: Path, upscaler: Upscaler, *, quality: int, on_progress: Callable[[float], None], **options
) -> None:
    picture = read_picture(source)
    height, width = picture.color.shape[:2]
    check_target(target, *target_size(height, width, upscaler.scale, **options))  # before the work
    large = upscaler.enlarge_picture(picture, **options, on_progress=lambda done, total: on_progress(done / total))
    write_picture(large, target, quality=quality)
