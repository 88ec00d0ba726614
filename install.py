"""Install missing dependencies. ComfyUI-Manager runs this after installation, the WebUI at every start.

Prints nothing when everything is installed. Never upgrades a package and never touches PyTorch: choosing its build is up to the host.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import suppress

REQUIRED = ("einops", "safetensors")
"""Packages that a host may lack. The name on PyPI is also the module's name, and neither package has dependencies."""


class InstallError(Exception):
    """A package could not be installed. The message says what to do instead."""


def main() -> int:
    """Install what is missing and return the exit code."""
    try:
        install_missing()
    except InstallError as error:
        print(f"TransformerSR: {error}", file=sys.stderr)
        return 1
    return 0


def install_missing() -> None:
    """Install the packages of `REQUIRED` that cannot be imported."""
    for name in REQUIRED:
        if importlib.util.find_spec(name) is None:
            print(f"TransformerSR: installing {name}")
            try:
                pip_install(name)
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                raise InstallError(
                    f"{name} is missing and could not be installed; once you are online, run: {sys.executable} -m pip install {name}"
                ) from error


def pip_install(name: str) -> None:
    """Install a package with the WebUI's own pip function, which uses its mirrors, or else with this Python's pip."""
    with suppress(ImportError):  # outside the WebUI there is no `launch`, or it belongs to another program
        from launch import run_pip

        return run_pip(f"install --no-deps {name}", name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", name]
    subprocess.run(command, check=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
