"""Run the command line in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from transformersr.upscale.cli import main


def run(*arguments: object, **options) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False, **options)


def run_process(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a command in its own process; outputs are bytes."""
    return subprocess.run([sys.executable, "-m", "transformersr", *map(str, arguments)], capture_output=True, timeout=120, **options)


def list_files(folder: Path) -> list[str]:
    """All files below a folder, relative to it, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
