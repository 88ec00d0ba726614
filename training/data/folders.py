"""Which files of a folder are trained on, which are measured on, and which are small versions of others."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

from ...upscale.files import search

logger = logging.getLogger(__name__)

SHARP = {"hr", "gt", "hq", "high", "target", "sharp", "groundtruth", "highres"}
SMALL = {"lr", "lq", "lo", "low", "input", "small", "lowres"}
"""Words in the names of folders of sharp images, and of those that hold their small versions."""
SCALES = re.compile(r"x?\d+x?$|bicubic|unknown|mild|wild|difficult|downscaled|sub")
"""Words beside them that say how the small ones were made."""
ENDING = re.compile(r"[ _.-]?x[2-9]$", re.IGNORECASE)
"""What the name of a small version may have at its end, as DIV2K's `0001x4.png`."""
SAMPLES = 6
"""Images of two folders that are compared to find out whether one has small versions of the other's."""
NEAR = 3
"""Bits of 64 in which the hashes of two images that look the same may differ."""
ALIKE = 10
"""Bits of 64 in which the hashes of an image and its small version may differ."""


@dataclass(frozen=True)
class Split:
    """Paths for training and for validation, sorted."""

    train: list[Path]
    validation: list[Path]
    partners: dict[Path, Path | None] = field(default_factory=dict)
    """Small versions of sharp images, see `find_partners`."""
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    """Images that are not used whatever is in them, each with the reason."""
    passed_over: list[str] = field(default_factory=list)
    """Lines about files that were taken for no images."""

    def tell(self) -> None:
        """Name in the log what is not used."""
        for path, reason in self.left_out:
            logger.warning("%s is left out: %s", path, reason)
        for line in self.passed_over:
            logger.warning("%s", line)


def find_images(folder: str | Path, without: Path | None = None) -> list[Path]:
    """All image files below a folder, sorted, those below `without` and hidden ones left out. Raises ValueError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of images, and there is no such folder")
    paths = search(folder, without).images
    if not paths:
        raise ValueError(f"{folder}: no images found; expected PNG, JPEG, WebP or another format that Pillow reads")
    return paths


def find_partners(folder: str | Path, paths: Iterable[Path], scale: int | None = None) -> dict[Path, Path | None]:
    """The small version of every sharp image in folders of pairs: the file of the same relative name, whatever its suffix.

    Folders are pairs by their names, in any letters (`SHARP`, `SMALL`): hr and lr, GT and LQ, train_HR and train_LR, DIV2K_train_HR and
    DIV2K_train_LR_bicubic/X4. A small version may have the scale at the end of its name; of several the one of `scale` counts. None stands
    where an image of either has no partner, or has several. Images elsewhere are not in the result: they are sharp ones alone.
    """
    sharps: dict[tuple, list[Path]] = {}
    smalls: dict[tuple, list[Path]] = {}
    for path in paths:
        role, name = _role(path.relative_to(folder))
        if role:
            (sharps if role == "sharp" else smalls).setdefault(name, []).append(path)
    both = {name[0] for name in sharps} & {name[0] for name in smalls}  # a folder called low alone is none of pairs
    partners: dict[Path, Path | None] = {}
    taken: set[Path] = set()
    for name, group in sharps.items():
        if name[0] in both:
            found = smalls.get(name) or smalls.get((*name[:-1], ENDING.sub("", name[-1]))) or []
            found = [path for path in found if _fits(group[0], path, scale)] if len(found) > 1 else found
            partners.update(dict.fromkeys(group, found[0] if len(found) == 1 else None))
            taken.update(found if len(found) == 1 else [])
    for name, group in smalls.items():
        if name[0] in both:
            partners.update(dict.fromkeys(path for path in group if path not in taken))
    return partners


def _role(path: Path) -> tuple[str | None, tuple]:
    """What a relative path is by the names of its folders, and what it has in common with its partner: folders and name."""
    role, folders = None, []
    for part in path.parts[:-1]:
        words = [word for word in re.split(r"[ _.-]+", part.lower()) if word]
        if role is None and (set(words) & SHARP or set(words) & SMALL):
            role = "sharp" if set(words) & SHARP else "small"
            folders.append("_".join(word for word in words if word not in SHARP | SMALL and not SCALES.match(word)))
        elif role is None or not SCALES.match(part.lower()):
            folders.append(part)
    if role is None:
        return None, ()
    stem = ENDING.sub("", path.stem) if role == "small" else path.stem
    return role, (folders[0], tuple(folders[1:]), stem)


def _size(path: Path) -> tuple[int, int]:
    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        return (image.height, image.width) if turned else image.size
    return (0, 0)


def _fits(sharp: Path, small: Path, scale: int | None) -> bool:
    return scale is not None and _size(sharp) == tuple(scale * side for side in _size(small))


def find_small_versions(folder: Path, paths: list[Path], scale: int) -> dict[Path, Path]:
    """Images that are small versions of others by what is in them: of like names in another folder, `1 / n` of the size, and alike.

    Gives the sharp one for each. Two folders are compared by a few of their images, as are images beside each other.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(ENDING.sub("", path.stem).lower(), []).append(path)
    pairs: dict[tuple[Path, Path], list[tuple[Path, Path]]] = {}
    for group in groups.values():
        sizes = {path: _size(path) for path in group} if len(group) > 1 else {}
        for small in sizes:
            for sharp in sizes:
                if _is_multiple(sizes[sharp], sizes[small]):
                    pairs.setdefault((sharp.parent, small.parent), []).append((sharp, small))
    found: dict[Path, Path] = {}
    for candidates in pairs.values():
        step = -(-len(candidates) // SAMPLES)
        alike = [_are_alike(*pair) for pair in candidates[::step]]
        if 2 * sum(alike) > len(alike):
            found.update((small, sharp) for sharp, small in candidates)
    return found


def _is_multiple(large: tuple[int, int], small: tuple[int, int]) -> bool:
    return min(small) > 0 and any(large == (factor * small[0], factor * small[1]) for factor in range(2, 9))


def _are_alike(*paths: Path) -> bool:
    first, second = (_hash(path) for path in paths)
    return 0 not in (first, second) and bin(first ^ second).count("1") <= ALIKE


def near(value: int, hashes: np.ndarray) -> np.ndarray:
    """The places of the `dhash`es (uint64) that differ from one in few bits; those of flat images, 0, are passed over."""
    bits = np.unpackbits((hashes ^ np.uint64(value)).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
    return np.flatnonzero((bits <= NEAR) & (hashes != 0) & (value != 0))


def _hash(path: Path) -> int:
    """`dhash`, 0 where an image cannot be read, which is said where it is used."""
    from .images import dhash, read_rgb

    try:
        return dhash(read_rgb(path))
    except (OSError, ValueError):
        return 0


def split_images(
    folder: str | Path,
    validation: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    without: Path | None = None,
    scale: int | None = None,
) -> Split:
    """Divide a folder's images, those below `without` left out; patterns are relative to it.

    Without patterns, or where they match nothing (a recipe's, made for other images), every twentieth content hash is for validation, and
    three of twenty images at least. Of pairs the sharp image counts. Images that lack their partner are among those for training,
    where reading will name them. Of identical files one is used, and no image for training looks the same as one for validation: those
    that look like no other are preferred for it, and where a pattern names one, what looks the same is left out.
    """
    folder = Path(folder)

    def matches(path: Path, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)

    everything = find_images(folder, without)
    contents = search(folder, without)
    left_out = list(contents.unreadable)
    partners = find_partners(folder, everything, scale)
    small = set(partners.values())
    paths = [path for path in everything if path not in small and not matches(path, exclude)]
    if scale:
        paths = _without_small_versions(folder, paths, scale, partners, left_out)
    hashes = {path: hashlib.sha256(path.read_bytes()).digest() for path in paths}
    paths = _without_doubles(paths, hashes, partners, left_out)
    whole = [path for path in paths if partners.get(path, path)]
    held = [path for path in whole if matches(path, validation)]
    if validation and not held:
        logger.warning("no image in %s matches validation (%s); some are chosen by their content instead", folder, ", ".join(validation))
    twins = _twins(whole)
    if not held:
        least = max(1, min(3, len(whole) // 6))
        alone = [path for path in whole if path not in twins]
        held = [path for path in alone if hashes[path][0] < 256 // 20]
        held = held if len(held) >= least else sorted(sorted(whole, key=lambda path: (path in twins, hashes[path]))[:least])
    train = [path for path in paths if path not in set(held)]
    seen = {twin: path for path in held for twin in twins.get(path, [])}
    left_out += [(path, f"it looks the same as {seen[path]}, which is measured on") for path in train if path in seen]
    train = [path for path in train if path not in seen]
    if not train or not held:
        raise ValueError(f"{folder}: {len(train)} images for training and {len(held)} for validation; expected at least one of each")
    return Split(train, held, partners, left_out, contents.skipped_lines())


def _twins(paths: list[Path]) -> dict[Path, list[Path]]:
    """The images that look the same as another one, and those that each of them looks like."""
    hashes = np.array([_hash(path) for path in paths], dtype=np.uint64)
    found = {path: [paths[place] for place in near(int(value), hashes)] for path, value in zip(paths, hashes, strict=True)}
    return {path: [twin for twin in group if twin != path] for path, group in found.items() if len(group) > 1}


def _without_small_versions(
    folder: Path, paths: list[Path], scale: int, partners: dict[Path, Path | None], left_out: list[tuple[Path, str]]
) -> list[Path]:
    """Paths that are not small versions of others; those of the scale become the partners of the others, the rest is left out."""
    smalls = find_small_versions(folder, [path for path in paths if path not in partners], scale)
    for path, sharp in smalls.items():
        if _fits(sharp, path, scale) and sharp not in smalls and sharp not in partners:
            partners[sharp] = path
        else:
            left_out.append((path, f"it is a small version of {sharp}; to learn from, expected 1 / {scale} of its size"))
    return [path for path in paths if path not in smalls]


def _without_doubles(
    paths: list[Path], hashes: dict[Path, bytes], partners: dict[Path, Path | None], left_out: list[tuple[Path, str]]
) -> list[Path]:
    """Paths of which no two are the same file again; the first by name stays, and one that has its partner before others."""
    first: dict[bytes, Path] = {}
    for path in sorted(paths, key=lambda path: (partners.get(path, path) is None, path)):
        other = first.setdefault(hashes[path], path)
        if other != path:
            left_out.append((path, f"the same file as {other}"))
    return sorted(first.values())
