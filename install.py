"""Run by ComfyUI-Manager after an installation and by the WebUI at each start; by hand it can also fetch the original author's network.

    python install.py                      install what is missing; says and does nothing where all is there
    python install.py --fetch-original     fetch the original author's published checkpoint into the host's folder of models

Nothing that is installed is ever upgraded, and PyTorch is never touched: its right build is the host's affair.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import runpy
import subprocess
import sys
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEEDED = ("einops", "safetensors")
"""What a host may lack, in names that are both pip's and Python's. Neither has dependencies."""
ORIGINAL = "https://huggingface.co/Craap/models/resolve/main/transformerSR_b8_d256_w4_h16.pt"
"""Where the author's README says that the published checkpoint is: 8 pairs of blocks, 256 channels, windows of 4, 16 heads."""


SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
MOST_BYTES = 2**32
"""Where a download ends at the latest; the published checkpoint has a fiftieth of it."""


class InstallError(Exception):
    """What could not be done, and what to do instead, in one sentence."""


def main(arguments: list[str]) -> int:
    """Do what is asked for and return the exit code."""
    options = parse(arguments)
    try:
        install_missing()
        if options.fetch_original:
            print(f"TransformerSR: {fetch(options.fetch_original, options.to or models_folder(), options.sha256)}")
    except InstallError as error:
        print(f"TransformerSR: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fetch-original", metavar="URL", nargs="?", const=ORIGINAL, help=f"fetch a checkpoint, by default {ORIGINAL}")
    parser.add_argument(
        "--to", metavar="FOLDER", type=Path, help="where to put it; by default the folder of models of the host around this one"
    )
    parser.add_argument("--sha256", metavar="HEX", help="refuse a file whose SHA-256 is another one")
    return parser.parse_args(arguments)


# --- what is missing -----------------------------------------------------------------------------


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


# --- the original checkpoint ---------------------------------------------------------------------


def models_folder() -> Path:
    """The host's folder for upscalers, where this folder lies in a host. Raises InstallError elsewhere."""
    models = ROOT.parent.parent / "models"
    names = {"custom_nodes": "upscale_models", "extensions": "TransformerSR"}
    if ROOT.parent.name not in names or not models.is_dir():
        raise InstallError(
            f"{ROOT} is neither in ComfyUI's custom_nodes nor in the WebUI's extensions; say where to put the file with --to FOLDER"
        )
    return models / names[ROOT.parent.name]


def fetch(url: str, folder: Path, sha256: str | None = None) -> str:
    """Fetch a checkpoint into a folder, whole or not at all; return what came, in words. A file that is there is never replaced."""
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InstallError(f"--sha256 is {sha256!r}; expected 64 hexadecimal digits")
    target = folder / file_name(url)
    try:
        if target.exists():
            return f"{target} is there already ({size_and_digest(target.stat().st_size, digest_of(target))})"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(f"{target} cannot be put there ({error.strerror}); choose another folder with --to") from error
    write_aside = runpy.run_path(str(ROOT / "arch" / "atomic.py"))["write_aside"]  # without the package, which needs PyTorch
    try:
        with write_aside(target) as aside:
            size = download(url, aside)
            check_download(url, aside, size, sha256)
            found = size_and_digest(size, digest_of(aside))
    except (OSError, HTTPException, ValueError) as error:  # ValueError: no address at all
        raise InstallError(f"{url} could not be fetched ({error}); download it in a browser and put it into {folder}") from error
    return f"{target} ({found})"


def file_name(url: str) -> str:
    """What a file from an address is called: one that a host lists, and in no other folder."""
    name = re.split("[?#]", url)[0].rpartition("/")[2]
    if not url.lower().startswith(("https://", "http://")) or not name.endswith(SUFFIXES) or not re.fullmatch(r"[\w .%()+,=@~-]+", name):
        raise InstallError(f"{url!r} is no address of a file of weights; expected https://.../NAME ending in {', '.join(SUFFIXES)}")
    return name


def download(url: str, target: Path) -> int:
    """Write what an address has to a file and return the number of bytes. Raises OSError, and InstallError for a part of it."""
    from urllib.request import Request, urlopen

    size = 0
    with urlopen(Request(url, headers={"User-Agent": "TransformerSR"}), timeout=30) as response, target.open("wb") as file:
        promised = int(response.headers.get("Content-Length") or -1)
        while promised <= MOST_BYTES and (block := response.read(2**20)):
            size += file.write(block)
            if size > MOST_BYTES:
                break
    if max(size, promised) > MOST_BYTES:
        raise InstallError(f"{url} gives more than {MOST_BYTES:,} bytes, and no network of ours is as large; nothing was kept")
    if promised not in (-1, size):
        raise InstallError(f"{url}: {size:,} of {promised:,} bytes came, then the connection broke; try again")
    return size


def check_download(url: str, path: Path, size: int, sha256: str | None) -> None:
    """Refuse what is no file of weights, or not the one expected."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[:2] != b"PK" and head[:1] != b"\x80" and head[8:] != b"{":
        raise InstallError(f"{url} gave no file of weights but {size:,} bytes of something else, perhaps a web page; nothing was kept")
    if sha256 and digest_of(path) != sha256.lower():
        raise InstallError(f"{url} gave a file with the SHA-256 {digest_of(path)}, expected {sha256.lower()}; nothing was kept")


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def size_and_digest(size: int, digest: str) -> str:
    """Size and digest for people to compare."""
    return f"{size:,} bytes, SHA-256 {digest}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
