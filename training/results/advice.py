"""Suggested next commands, ready to paste into a shell."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def command_line(*words: object) -> str:
    """A `transformersr` command line, quoted for the shell."""
    arguments = ["transformersr", *map(str, words)]
    return subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)


def resume_command(run: Path) -> str:
    """The command that resumes a stopped run."""
    return command_line("train", "--resume", run)


def train_longer_command(run: Path, settings: Mapping[str, Any], minutes: float = 0.0, steps: int = 0) -> str | None:
    """The command that continues a finished run to this many minutes or steps in total, by default twice its length.

    None for a run with phases.
    """
    if settings.get("phases"):
        return None
    if settings.get("minutes"):
        return command_line("train", "--resume", run, "--minutes", f"{minutes or 2 * settings['minutes']:g}")
    if settings.get("steps"):
        return command_line("train", "--resume", run, "--steps", steps or 2 * settings["steps"])
    return None
