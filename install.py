"""Run by ComfyUI-Manager after an installation and by the WebUI at each start: installs what is missing, and is silent otherwise.

Nothing that is installed is ever upgraded, and PyTorch is never touched: its right build is the host's affair.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import suppress

NEEDED = ("einops", "safetensors")
"""What a host may lack, in names that are both pip's and Python's. Neither has dependencies."""


class InstallError(Exception):
    """What could not be done, and what to do instead, in one sentence."""


def main() -> int:
    """Install what is missing and return the exit code."""
    try:
        install_missing()
    except InstallError as error:
        print(f"TransformerSR: {error}", file=sys.stderr)
        return 1
    return 0


def install_missing() -> None:
    """Install those of `NEEDED` that are not there, as the host does it."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            print(f"TransformerSR: installing {name}")
            try:
                pip_install(name)
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                raise InstallError(
                    f"{name} is missing and could not be installed; with a connection, run: {sys.executable} -m pip install {name}"
                ) from error


def pip_install(name: str) -> None:
    """Install a package with the WebUI's pip, which knows its mirrors, or with this Python's."""
    with suppress(ImportError):  # there is no such module outside the WebUI, or one of another program
        from launch import run_pip

        return run_pip(f"install --no-deps {name}", name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", name]
    subprocess.run(command, check=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
