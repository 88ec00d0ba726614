"""Split a folder's images into training and validation, and find small versions of other images."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from ...upscale.files import FolderContents, image_size, search

logger = logging.getLogger(__name__)

SHARP = {"hr", "gt", "hq", "high", "target", "sharp", "groundtruth", "highres"}
SMALL = {"lr", "lq", "lo", "low", "input", "small", "lowres"}
"""Words in the names of folders of sharp images and of folders of their small versions."""
SCALES = re.compile(r"x?\d+x?$|bicubic|unknown|mild|wild|difficult|downscaled|sub")
"""Additional words that describe how the small versions were made."""
SCALE_SUFFIX = re.compile(r"[ _.-]?x[2-9]$", re.IGNORECASE)
"""Optional end of a small version's name, as in DIV2K's `0001x4.png`."""
SAMPLES = 6
"""Image pairs to compare to decide whether one folder holds small versions of another's images."""
NEAR_DUPLICATE_BITS = 3
"""Most bits of 64 in which the hashes of two near-duplicates differ."""
SMALL_VERSION_BITS = 10
"""Most bits of 64 in which the hashes of an image and its small version differ."""


@dataclass(frozen=True)
class Split:
    """Sorted paths for training and validation."""

    train: list[Path]
    validation: list[Path]
    partners: dict[Path, Path | None] = field(default_factory=dict)
    """Small versions of sharp images, see `find_partners`."""
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """Images that are not used, each with the reason."""
    ignored: list[str] = field(default_factory=list)
    """One line for each kind of file that is not an image."""

    def log_skipped(self) -> None:
        """Log the files that are not used."""
        for path, reason in self.skipped:
            logger.warning("%s is skipped: %s", path, reason)
        for line in self.ignored:
            logger.warning("%s", line)


def find_images(folder: str | Path, without: Path | None = None) -> list[Path]:
    """List the image files below a folder, sorted, without hidden ones and those below `without`. Raises ValueError if there are none."""
    return search_images(folder, without).images


def search_images(folder: str | Path, without: Path | None = None) -> FolderContents:
    """List everything below a folder, like `search`. Raises ValueError if there are no images."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected a folder of images")
    contents = search(folder, without)
    if not contents.images:
        raise ValueError(f"{folder}: no images found; expected PNG, JPEG, WebP or another format that Pillow reads")
    return contents


def matches_any(path: Path, folder: Path, patterns: Iterable[str]) -> bool:
    """Whether a path matches one of the patterns, which are relative to a folder (`part-1/sky/*`)."""
    return any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)


def find_partners(folder: str | Path, paths: Iterable[Path], scale: int | None = None) -> dict[Path, Path | None]:
    """Find the small version of every sharp image in paired folders: the file of the same relative name, with any suffix.

    Folders are paired by name, ignoring case (`SHARP`, `SMALL`): hr and lr, GT and LQ, train_HR and train_LR, DIV2K_train_HR and
    DIV2K_train_LR_bicubic/X4. A small version's name may end in the scale; of several, the one of `scale` is used. The value is None for an
    image of either folder with no partner or several. Images in other folders are not in the result: they are sharp images without a pair.
    """
    sharps: dict[tuple, list[Path]] = {}
    smalls: dict[tuple, list[Path]] = {}
    for path in paths:
        role, name = _pair_role(path.relative_to(folder))
        if role:
            (sharps if role == "sharp" else smalls).setdefault(name, []).append(path)
    both = {name[0] for name in sharps} & {name[0] for name in smalls}  # a folder called low on its own is not part of a pair
    partners: dict[Path, Path | None] = {}
    taken: set[Path] = set()
    for name, group in sharps.items():
        if name[0] in both:
            found = smalls.get(name) or smalls.get((*name[:-1], SCALE_SUFFIX.sub("", name[-1]))) or []
            found = [path for path in found if _has_scale(group[0], path, scale)] if len(found) > 1 else found
            partners.update(dict.fromkeys(group, found[0] if len(found) == 1 else None))
            taken.update(found if len(found) == 1 else [])
    for name, group in smalls.items():
        if name[0] in both:
            partners.update(dict.fromkeys(path for path in group if path not in taken))
    return partners


def _pair_role(path: Path) -> tuple[str | None, tuple]:
    """Tell from its path whether an image is sharp or small; also return the key that it shares with its partner: folders and name."""
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
    stem = SCALE_SUFFIX.sub("", path.stem) if role == "small" else path.stem
    return role, (folders[0], tuple(folders[1:]), stem)


def _has_scale(sharp: Path, small: Path, scale: int | None) -> bool:
    return scale is not None and image_size(sharp) == tuple(scale * side for side in image_size(small))


def find_small_versions(folder: Path, paths: list[Path], scale: int) -> dict[Path, Path]:
    """Find images that are small versions of others by content: same name, `1 / n` of the size, and similar hashes.

    Returns the sharp image for each. Only a few image pairs of two folders (or within one folder) are compared.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(SCALE_SUFFIX.sub("", path.stem).lower(), []).append(path)
    pairs: dict[tuple[Path, Path], list[tuple[Path, Path]]] = {}
    for group in groups.values():
        sizes = {path: image_size(path) for path in group} if len(group) > 1 else {}
        for small in sizes:
            for sharp in sizes:
                if _is_multiple(sizes[sharp], sizes[small]):
                    pairs.setdefault((sharp.parent, small.parent), []).append((sharp, small))
    found: dict[Path, Path] = {}
    for candidates in pairs.values():
        step = -(-len(candidates) // SAMPLES)
        alike = [_look_alike(*pair) for pair in candidates[::step]]
        if 2 * sum(alike) > len(alike):
            found.update((small, sharp) for sharp, small in candidates)
    return found


def _is_multiple(large: tuple[int, int], small: tuple[int, int]) -> bool:
    return min(small) > 0 and any(large == (factor * small[0], factor * small[1]) for factor in range(2, 9))


def _look_alike(*paths: Path) -> bool:
    first, second = (_file_dhash(path) for path in paths)
    return 0 not in (first, second) and bin(first ^ second).count("1") <= SMALL_VERSION_BITS


def find_near(value: int, hashes: np.ndarray) -> np.ndarray:
    """Indices of the `dhash`es (uint64) that differ from `value` in few bits. Hashes of flat images, 0, are ignored."""
    bits = np.unpackbits((hashes ^ np.uint64(value)).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
    return np.flatnonzero((bits <= NEAR_DUPLICATE_BITS) & (hashes != 0) & (value != 0))


def _file_dhash(path: Path) -> int:
    """`dhash` of an image file; 0 if it cannot be read, which is reported when the image is used."""
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
    """Split a folder's images into training and validation, without those below `without`; patterns are relative to the folder.

    Without `validation` patterns, or if they match nothing (a recipe made for other images), one image in twenty is chosen by its content
    hash, and at least three if there are eighteen images or more. The sharp image stands for a pair. Images without their partner are put
    into training, where reading them reports the problem. Identical files are used once. No training image looks the same as a validation
    image: images without near-duplicates are preferred for validation, and if a pattern names one with near-duplicates, these are skipped.
    """
    folder = Path(folder)
    contents = search_images(folder, without)
    skipped = list(contents.unreadable)
    partners = find_partners(folder, contents.images, scale)
    small = set(partners.values())
    paths = [path for path in contents.images if path not in small and not matches_any(path, folder, exclude)]
    if scale:
        paths = _drop_small_versions(folder, paths, scale, partners, skipped)
    hashes = {path: hashlib.sha256(path.read_bytes()).digest() for path in paths}
    paths = _drop_duplicates(paths, hashes, partners, skipped)
    candidates = [path for path in paths if partners.get(path, path)]
    held_out = [path for path in candidates if matches_any(path, folder, validation)]
    if validation and not held_out:
        logger.warning("no image in %s matches validation (%s); images are chosen by content hash instead", folder, ", ".join(validation))
    duplicates = _near_duplicates(candidates)
    held_out = held_out or _choose_by_hash(candidates, hashes, duplicates)
    train = [path for path in paths if path not in set(held_out)]
    seen = {duplicate: path for path in held_out for duplicate in duplicates.get(path, [])}
    skipped += [(path, f"it looks the same as {seen[path]}, which is used for validation") for path in train if path in seen]
    train = [path for path in train if path not in seen]
    if not train or not held_out:
        raise ValueError(f"{folder}: {len(train)} images for training and {len(held_out)} for validation; expected at least one of each")
    return Split(train, held_out, partners, skipped, contents.skipped_lines())


def _choose_by_hash(paths: list[Path], hashes: dict[Path, bytes], duplicates: Container[Path]) -> list[Path]:
    """Choose about one image in twenty, and at least three of eighteen or more, preferably none of `duplicates`."""
    minimum = max(1, min(3, len(paths) // 6))
    chosen = [path for path in paths if path not in duplicates and hashes[path][0] < 256 // 20]
    if len(chosen) < minimum:
        chosen = sorted(sorted(paths, key=lambda path: (path in duplicates, hashes[path]))[:minimum])
    return chosen


def _near_duplicates(paths: list[Path]) -> dict[Path, list[Path]]:
    """Map each image that has near-duplicates to them."""
    hashes = np.array([_file_dhash(path) for path in paths], dtype=np.uint64)
    groups = {path: [paths[index] for index in find_near(int(value), hashes)] for path, value in zip(paths, hashes, strict=True)}
    return {path: [other for other in group if other != path] for path, group in groups.items() if len(group) > 1}


def _drop_small_versions(
    folder: Path, paths: list[Path], scale: int, partners: dict[Path, Path | None], skipped: list[tuple[Path, str]]
) -> list[Path]:
    """Remove small versions of other images. Those of the right scale become partners, the others are added to `skipped`."""
    smalls = find_small_versions(folder, [path for path in paths if path not in partners], scale)
    for path, sharp in smalls.items():
        if _has_scale(sharp, path, scale) and sharp not in smalls and sharp not in partners:
            partners[sharp] = path
        else:
            skipped.append((path, f"it is a small version of {sharp}; expected 1 / {scale} of its size"))
    return [path for path in paths if path not in smalls]


def _drop_duplicates(
    paths: list[Path], hashes: dict[Path, bytes], partners: dict[Path, Path | None], skipped: list[tuple[Path, str]]
) -> list[Path]:
    """Remove identical files. The first by name is kept, preferably one with a partner; the others are added to `skipped`."""
    first: dict[bytes, Path] = {}
    for path in sorted(paths, key=lambda path: (partners.get(path, path) is None, path)):
        other = first.setdefault(hashes[path], path)
        if other != path:
            skipped.append((path, f"it is the same file as {other}"))
    return sorted(first.values())
