"""Find and list TransformerSR models in a host's folders, and replace pickled files with safetensors.

Listing models neither reads whole files nor runs anything in them: the tensor names in the header of a safetensors file, or at the
beginning of a PyTorch file, are enough to recognise a network.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..arch import TransformerSRConfig
from ..arch.state_dict import SIGNATURES, shown
from .checkpoint import convert_file, find_other_content
from .upscaler import available_models

SUFFIXES = (".safetensors", ".sft", ".pt", ".pth", ".ckpt")
"""Suffixes of files that may contain weights."""
INDEX_BYTES = 2**22
"""Maximum number of bytes read to recognise a file; the index of our largest network is smaller."""
CONVERTED = "converted_from"
"""Metadata key of files written by `as_safetensors`: name, size and modification time of the source."""


# --- lists ---------------------------------------------------------------------------------------


def list_models(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Return the available TransformerSR models as labels and files, the included ones first.

    Labels are stored in workflows and settings, so they must not change: the name of an included model (`x4-tiny`), or the path of a file
    relative to its folder, with "/" and suffix (`anime/mine.pth`). If two files have the same label, the first folder wins. Other networks
    are skipped, and so are copies made by `as_safetensors` of files that still exist. Folders need not exist. Calls are cheap: a file is
    read again only if its size or modification time changes.
    """
    models = available_models()
    for folder in folders:
        for label, path in sorted(_files(Path(folder)), key=lambda item: item[0].lower()):
            if label not in models and is_transformersr(path) and not _is_copy(path):
                models[label] = path
    return models


def find_in_list(label: str, models: dict[str, Path]) -> Path:
    """Return the file of a label. Accepts "\\\\" for "/", and the label of a pickled file of which only the converted copy is left.

    Raises FileNotFoundError with the label and some of the available ones.
    """
    label = str(label).replace("\\", "/")
    path = models.get(label) or models.get(f"{label.rpartition('.')[0] or label}.safetensors")
    if path is None or not path.is_file():
        known = ", ".join(list(models)[:8]) or "none"
        raise FileNotFoundError(f"{shown(label, 200)}: no TransformerSR model of this name; available: {known}")
    return path


def not_weights(folders: Iterable[str | Path]) -> dict[Path, str]:
    """Return the files that have the suffix of weights but contain something else, each with a description."""
    files = (path for folder in folders for _, path in _files(Path(folder)))
    return {path: reason for path in files if (reason := _probe(path).not_weights) and not is_transformersr(path)}


def scale_of(path: Path) -> int | None:
    """Return the scale of one of our safetensors files from its header; None for other files, which would have to be read completely."""
    return _probe(path).scale


def stamp(path: Path) -> str:
    """Return the size and modification time of a file as a string, which changes when the file is replaced."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Return label and path of possible files of weights at any depth. Follows links, but enters each folder once."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        names = [] if real in seen else [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        seen.add(real)
        found += [((path := Path(root, name)).relative_to(folder).as_posix(), path) for name in names]
    return found


# --- recognising ---------------------------------------------------------------------------------


def is_transformersr(path: Path) -> bool:
    """Return whether a file has the tensor names of our networks or of the original author's.

    Files with transformersr in their name pass too. If such a file is damaged or something else, loading it reports the reason.
    """
    return "transformersr" in path.name.lower() or _probe(path).ours


@dataclass(frozen=True)
class _Probe:
    """Information from the index of a file."""

    ours: bool = False
    converted_from: str | None = None
    scale: int | None = None
    not_weights: str | None = None


def _probe(path: Path) -> _Probe:
    """Probe a file, once per version; an unreadable file gives an empty probe."""
    try:
        return _look_into(str(path), stamp(path)) if path.is_file() else _Probe()  # reading a pipe would block
    except (OSError, ValueError, RecursionError):
        return _Probe()


@lru_cache(maxsize=4096)
def _look_into(path: str, stamp: str) -> _Probe:
    with open(path, "rb") as file:
        head = file.read(9)
        if head[8:] == b"{":
            size = min(max(int.from_bytes(head[:8], "little"), 1), INDEX_BYTES)
            try:
                return _look_into_header(json.loads(b"{" + file.read(size - 1)))
            except ValueError:
                return _Probe(not_weights="the file is cut short or damaged; download it again" if size < INDEX_BYTES else None)
        if head[:2] != b"PK" and head[:1] != b"\x80":
            return _Probe(not_weights=find_other_content(head + file.read(503)))
        index = file.read(INDEX_BYTES)  # PyTorch stores the tensor names at the beginning
    return _Probe(any(all(name.encode() in index for name in names) for names in SIGNATURES))


def _look_into_header(header: dict) -> _Probe:
    metadata = header.get("__metadata__")
    metadata = metadata if isinstance(metadata, dict) else {}
    source, config = metadata.get(CONVERTED), metadata.get("config")
    scale = None
    with suppress(ValueError, TypeError, AttributeError):
        scale = TransformerSRConfig.from_json(config).scale if config else None
    return _Probe(any(header.keys() >= set(names) for names in SIGNATURES), source if isinstance(source, str) else None, scale)


# --- converting ----------------------------------------------------------------------------------


def as_safetensors(path: str | Path, cache: str | Path | None = None) -> Path:
    """Return a safetensors file itself, or a safetensors copy of any other file, written on first use and whenever the file changes.

    The copy has the same name and folder. If that name is taken or the folder is read-only, it is written to the folder `cache`.
    If neither works, the file itself is returned, which `load_model` can read as well. The user's files are never changed.

    Raises CheckpointError if the file is not a TransformerSR network, OSError if it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{":
            return path
    source = f"{path.name} {stamp(path)}"
    targets = [target for target in _targets(path, cache) if target != path]
    for target in targets:
        if _probe(target).converted_from == source:
            return target
    for target in targets:
        if target.exists() and (_probe(target).converted_from or "").rpartition(" ")[0] != path.name:
            continue  # not made from this file
        with suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            convert_file(path, target, metadata={CONVERTED: source})
            return target
    return path


def _targets(path: Path, cache: str | Path | None) -> list[Path]:
    next_to_it = path.with_suffix(".safetensors")
    if cache is None:
        return [next_to_it]
    return [next_to_it, Path(cache) / f"{path.stem}-{zlib.crc32(os.fsencode(path.resolve())):08x}.safetensors"]


def _is_copy(path: Path) -> bool:
    """Return whether `as_safetensors` wrote a file as a copy of another one in the same folder."""
    source = (_probe(path).converted_from or "").rpartition(" ")[0]
    return source not in ("", ".", "..") and Path(source).name == source and os.path.isfile(path.with_name(source))
