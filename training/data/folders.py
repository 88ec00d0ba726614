"""Which files of a folder are trained on, which are measured on, and which are small versions of others."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from ...upscale.files import search

logger = logging.getLogger(__name__)

PAIRED = {"hr": "lr", "gt": "lq"}
"""Folders of sharp pictures, and beside each the folder that holds their small versions."""


@dataclass(frozen=True)
class Split:
    """Paths for training and for validation, sorted."""

    train: list[Path]
    validation: list[Path]
    partners: dict[Path, Path | None] = field(default_factory=dict)
    """Small versions of sharp pictures, see `find_partners`."""


def find_pictures(folder: str | Path, without: Path | None = None) -> list[Path]:
    """All picture files below a folder, sorted, those below `without` and hidden ones left out. Raises ValueError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of pictures, and there is no such folder")
    paths = search(folder, without).images
    if not paths:
        raise ValueError(f"{folder}: no pictures found; expected PNG, JPEG, WebP or another format that Pillow reads")
    return paths


def find_partners(folder: str | Path, paths: Iterable[Path]) -> dict[Path, Path | None]:
    """The small version of every sharp picture in a folder of pairs: the file of the same relative name, whatever its suffix.

    Pairs are in `hr` and `lr`, or `gt` and `lq`, directly below the folder. None stands where a picture of either has no partner, or has
    several. Pictures elsewhere are not in the result: they are sharp ones alone.
    """
    paths = list(paths)
    partners: dict[Path, Path | None] = {}
    for sharp, small in PAIRED.items():
        if (Path(folder) / sharp).is_dir() and (Path(folder) / small).is_dir():
            sharps, smalls = (_by_name(Path(folder) / name, paths) for name in (sharp, small))
            for name, group in sharps.items():
                found = smalls.get(name, [])
                partners.update(dict.fromkeys(group, found[0] if len(found) == 1 else None))
            for name, group in smalls.items():
                if name not in sharps or len(group) > 1:
                    partners.update(dict.fromkeys(group))
    return partners


def _by_name(folder: Path, paths: list[Path]) -> dict[Path, list[Path]]:
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        if folder in path.parents:
            groups.setdefault(path.relative_to(folder).with_suffix(""), []).append(path)
    return groups


def split_pictures(
    folder: str | Path, validation: tuple[str, ...] = (), exclude: tuple[str, ...] = (), without: Path | None = None
) -> Split:
    """Divide a folder's pictures, those below `without` left out; patterns are relative to it.

    Without patterns, or where they match nothing (a recipe's, made for other pictures), every twentieth content hash is for validation, and
    three of twenty pictures at least. Of pairs the sharp picture counts. Pictures that lack their partner are among those for training,
    where reading will name them.
    """
    folder = Path(folder)

    def matches(path: Path, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)

    everything = find_pictures(folder, without)
    partners = find_partners(folder, everything)
    small = set(partners.values())
    paths = [path for path in everything if path not in small and not matches(path, exclude)]
    whole = [path for path in paths if partners.get(path, path)]
    held = [path for path in whole if matches(path, validation)]
    if validation and not held:
        logger.warning("no picture in %s matches validation (%s); some are chosen by their content instead", folder, ", ".join(validation))
    if not held:
        hashes = {path: hashlib.sha256(path.read_bytes()).digest() for path in whole}
        least = max(1, min(3, len(whole) // 6))
        held = [path for path in whole if hashes[path][0] < 256 // 20]
        held = held if len(held) >= least else sorted(sorted(whole, key=hashes.__getitem__)[:least])
    train = [path for path in paths if path not in set(held)]
    if not train or not held:
        raise ValueError(f"{folder}: {len(train)} pictures for training and {len(held)} for validation; expected at least one of each")
    return Split(train, held, partners)
