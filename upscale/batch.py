"""Many files: which picture goes where, and doing one after the other without losing any."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .engine import is_out_of_memory
from .image_io import FORMATS, READABLE, read_picture, write_picture
from .upscaler import Upscaler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One picture to enlarge."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Failure:
    """A picture that could not be done, and why in one sentence."""

    source: Path
    reason: str


def plan_jobs(inputs: Iterable[str], output: str | None, extension: str, suffix: str) -> list[Job]:
    """Decide where each picture goes.

    A file goes beside itself with `suffix` behind its name, or into the folder `output` under its own name; a single file may
    name its target outright. A folder's pictures, at any depth, go to the same places below `output`, or below a folder beside
    it with `suffix` behind its name. Patterns (`*.png`) are expanded where the shell did not.

    Raises ValueError if an input does not exist, nothing is found, or a target is one of the inputs.
    """
    sources = [path for text in inputs for path in _expand(text)]
    jobs: list[Job] = []
    for source in sources:
        if source.is_dir():
            resolved = source.resolve()
            root = Path(output) if output else resolved.with_name(resolved.name + suffix)
            jobs += [Job(path, (root / path.relative_to(source)).with_suffix(extension)) for path in _pictures(source, root)]
        elif output and len(sources) == 1 and Path(output).suffix.lower().removeprefix(".") in FORMATS:
            jobs.append(Job(source, Path(output)))
        elif output:
            jobs.append(Job(source, Path(output) / f"{source.stem}{extension}"))
        else:
            jobs.append(Job(source, source.with_name(f"{source.stem}{suffix}{extension}")))
    if not jobs:
        raise ValueError(f"no pictures found in {', '.join(map(str, sources))}; expected files ending in {', '.join(READABLE)}")
    return _without_clashes(jobs)


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


def _without_clashes(jobs: list[Job]) -> list[Job]:
    """Sources that differ in their ending alone keep it in the name; no target may be a source.

    A source that is the result of another one, beside it, is an earlier run's and is left out.
    """
    made = {job.target.resolve() for job in jobs if job.source.resolve() != job.target.resolve()}
    jobs = [job for job in dict.fromkeys(jobs) if not (job.source.resolve() in made and job.source.parent == job.target.parent)]
    counts: dict[Path, int] = {}
    for job in jobs:
        counts[job.target] = counts.get(job.target, 0) + 1
    jobs = [
        job
        if counts[job.target] == 1
        else Job(job.source, job.target.with_stem(f"{job.target.stem}_{job.source.suffix.removeprefix('.').lower()}"))
        for job in jobs
    ]
    sources = {job.source.resolve() for job in jobs}
    targets: dict[Path, Path] = {}
    for job in jobs:
        if job.target.resolve() in sources:
            raise ValueError(f"{job.target} is one of the inputs and would be overwritten; choose another output folder")
        if (other := targets.setdefault(job.target, job.source)) != job.source:
            raise ValueError(f"{other} and {job.source} would both become {job.target}; upscale them in two runs")
    return jobs


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
                picture = read_picture(job.source)
                large = upscaler.enlarge_picture(
                    picture, factor=factor, size=size, on_progress=lambda done, total, index=index: on_progress(index, done / total)
                )
                job.target.parent.mkdir(parents=True, exist_ok=True)
                write_picture(large, job.target, quality=quality)
        except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = str(error).removeprefix(f"{job.source}: ").splitlines()[0] if str(error) else "not enough memory"
            failures.append(Failure(job.source, reason))
            logger.error("%s: %s", job.source, reason)
        on_progress(index, 1.0)
    return failures
