"""Commands to go on with, ready to be pasted into a shell."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def shell(*words: object) -> str:
    """A command of `transformersr`, quoted where a path needs it."""
    texts = ["transformersr", *map(str, words)]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def resume(run: Path) -> str:
    """Go on with a run that was stopped."""
    return shell("train", "--resume", run)


def train_longer(run: Path, settings: Mapping[str, Any], minutes: float = 0.0, steps: int = 0) -> str | None:
    """Go on with a finished run until it has so many minutes or steps, twice its length by default; None for a run of fixed phases."""
    if settings.get("phases"):
        return None
    if settings.get("minutes"):
        return shell("train", "--resume", run, "--minutes", f"{minutes or 2 * settings['minutes']:g}")
    if settings.get("steps"):
        return shell("train", "--resume", run, "--steps", steps or 2 * settings["steps"])
    return None
