"""Files of weights in a host's folders: which of them are ours, what they are called in a list, and safetensors in place of pickled ones.

Nothing here reads a whole file, or runs anything in it, to make a list: the names of the tensors stand in clear in the header of a
safetensors file and at the beginning of a PyTorch one, which is enough to recognise a network.
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
"""Endings of files that may hold weights."""
INDEX_BYTES = 2**22
"""The most that is read of a file to recognise it; the index of the largest network of ours is smaller."""
CONVERTED = "converted_from"
"""Metadata key of a file that `as_safetensors` made: the name, size and time of its source."""


# --- lists ---------------------------------------------------------------------------------------


def list_models(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Every TransformerSR model a user can choose: label to file, those that come with the package first.

    Labels are for saved workflows and settings, and so do not change: the name for a shipped model (`x4-tiny`), the path below its
    folder with "/" and ending for a file (`anime/mine.pth`). Of two files with one label the earlier folder's counts. Other networks are
    skipped, and so are copies that `as_safetensors` made of a file that is still there. Folders need not exist. Cheap: a file is read
    again only when its size or time changes.
    """
    models = available_models()
    for folder in folders:
        for label, path in sorted(_files(Path(folder)), key=lambda item: item[0].lower()):
            if label not in models and is_transformersr(path) and not _is_copy(path):
                models[label] = path
    return models


def find_in_list(label: str, models: dict[str, Path]) -> Path:
    """The file of a label. Forgives a "\\\\" for "/", and a pickled file of which only the converted one is left.

    Raises FileNotFoundError naming the label and the first of those there are.
    """
    label = str(label).replace("\\", "/")
    path = models.get(label) or models.get(f"{label.rpartition('.')[0] or label}.safetensors")
    if path is None or not path.is_file():
        known = ", ".join(list(models)[:8]) or "none"
        raise FileNotFoundError(f"{shown(label, 200)}: no TransformerSR model of this name; there are {known}")
    return path


def not_weights(folders: Iterable[str | Path]) -> dict[Path, str]:
    """Files that `list_models` leaves out because they hold no weights at all, though named as if, each with what it is instead."""
    files = (path for folder in folders for _, path in _files(Path(folder)))
    return {path: reason for path in files if (reason := _probe(path).not_weights) and not is_transformersr(path)}


def scale_of(path: Path) -> int | None:
    """The scale of a safetensors of ours, from its header; None for any other file, which would have to be read for it."""
    return _probe(path).scale


def stamp(path: Path) -> str:
    """A string of size and modification time, which changes when a file is replaced."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Label and path of what may be weights, at any depth, through links but not in circles."""
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
    """Whether the tensor names of a file are those of our networks or the original author's.

    A file named transformersr passes too: if it is something else, or damaged, loading it reports why.
    """
    return "transformersr" in path.name.lower() or _probe(path).ours


@dataclass(frozen=True)
class _Probe:
    """Facts from the index of a file."""

    ours: bool = False
    converted_from: str | None = None
    scale: int | None = None
    not_weights: str | None = None


def _probe(path: Path) -> _Probe:
    """Probe a file, once per version; an unreadable file gives an empty probe."""
    try:
        return _look_into(str(path), stamp(path)) if path.is_file() else _Probe()  # a pipe would be waited for
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
        index = file.read(INDEX_BYTES)  # PyTorch names the tensors at the beginning
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
    """The file itself if it is safetensors, else a safetensors copy, made on first use and after every change of the file.

    The copy is written next to the file, under the same name, or to the folder `cache` if that name is taken or the folder is read-only.
    If neither works, the file itself is returned, which `load_model` reads as well. No file of the user's is ever changed.

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
    beside = path.with_suffix(".safetensors")
    if cache is None:
        return [beside]
    return [beside, Path(cache) / f"{path.stem}-{zlib.crc32(os.fsencode(path.resolve())):08x}.safetensors"]


def _is_copy(path: Path) -> bool:
    """Whether `as_safetensors` made a file from another one in the same folder."""
    source = (_probe(path).converted_from or "").rpartition(" ")[0]
    return source not in ("", ".", "..") and Path(source).name == source and os.path.isfile(path.with_name(source))
