"""The images of a run, in memory or in one file that all processes map.

Images are kept as raw pixels because cutting a crop out of a PNG would decode all of it. Images in memory serve one process and those
forked from it. A file serves any number of processes and holds more images than fit into memory, and the next run with the same images and
settings starts at once. The cache folder has two files: `images-KEY.rgb` with the pixels of all images, and its index `images.json`. The
index is written last, so it only names complete files.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import multiprocessing
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ...upscale.atomic import write_aside
from ...upscale.files import image_size
from ..config import TrainConfig
from .folders import Split
from .images import Finding, ImageCollector, LoadedImage, TrainingImage, load_image
from .synthetic import draw

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the files' format; files of another version are rebuilt."""
INDEX = "images.json"


@dataclass(frozen=True)
class Synthetic:
    """Procedurally generated images to train on in addition to those in files."""

    count: int = 0
    size: int = 768
    """Their side in pixels."""
    seed: int = 0


@dataclass(frozen=True)
class Cache:
    """Where images may be cached in a file, and when."""

    folder: Path
    """Created if missing; belongs to one run."""
    budget: int = 4 * 2**30
    """Up to this many bytes of pixels are kept in memory instead."""
    shared: bool = False
    """Several processes read the images, so use a file whatever their size. Spawned workers are detected separately."""


@dataclass(frozen=True)
class ImageStore(Sequence[TrainingImage]):
    """The images that can be used, and the findings from reading them."""

    images: Sequence[TrainingImage]
    findings: tuple[Finding, ...] = ()
    hashes: dict[Path, int] = field(default_factory=dict)
    """`dhash` of every usable image that was read from a file."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index]


class MappedImages(Sequence[TrainingImage]):
    """Images in the file that an index describes. Pickles as the path of the index, so each worker process maps the file itself."""

    def __init__(self, index: Path):
        self.path = index
        content = json.loads(index.read_text(encoding="utf-8"))
        self.entries = content["images"]
        self.pixels = np.asarray(np.memmap(index.with_name(content["data"]), np.uint8, "r"))

    def __reduce__(self) -> tuple:
        return MappedImages, (self.path,)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        entry = self.entries[index]
        lq = None if entry["lq"] is None else self._cut(*entry["lq"])
        return TrainingImage(entry["name"], self._cut(*entry["gt"]), lq, entry["synthetic"])

    def _cut(self, start: int, height: int, width: int) -> np.ndarray:
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)


def find_training_images(config: TrainConfig, files: Split, cache: Cache | None = None, workers: int = 0) -> ImageStore:
    """Read the images of a run with their small versions, if any, and generate the synthetic ones."""
    synthetic = Synthetic(config.synthetic, config.synthetic_size, config.seed)
    smallest = config.patch * config.scale
    return read_images(files.train, smallest, config.scale, files.partners, config.max_pixels, synthetic, cache, workers)


def read_images(
    paths: list[Path],
    smallest: int,
    scale: int = 1,
    partners: Mapping[Path, Path | None] | None = None,
    max_pixels: int = 0,
    synthetic: Synthetic = Synthetic(),
    cache: Cache | None = None,
    workers: int = 0,
) -> ImageStore:
    """Read every image once, or take them all from the cache, and log the findings.

    `smallest`, `scale`, `partners` and `max_pixels` are those of `load_image`; `workers` processes read and generate. Synthetic images come
    last, in the order of their numbers. Images that cannot be used are skipped. Raises ValueError if none is left.
    """
    partners = partners or {}
    read = functools.partial(load_image, smallest=smallest, scale=scale, partners=partners, max_pixels=max_pixels)
    generate = functools.partial(_generate, size=max(synthetic.size, smallest), seed=synthetic.seed)
    loaded = map_in_order(read, paths, workers)
    generated = map_in_order(generate, range(synthetic.count), workers)
    files = [file for path in paths for file in (path, partners.get(path)) if file]
    needed = _bytes_needed(files, max_pixels) + synthetic.count * 3 * synthetic.size**2
    if cache and (_needs_file(cache, workers) or synthetic.count or needed > cache.budget):
        store = _read_or_write(cache.folder, _cache_key(files, smallest, scale, max_pixels, synthetic), loaded, generated, needed)
    else:
        store = _load_into_memory(loaded, generated)
    for finding in store.findings:
        logger.warning("%s", finding)
    if not store.hashes:
        raise ValueError(
            f"none of {len(paths)} images can be used; expected one of at least {smallest}x{smallest}: add larger images, or lower patch"
        )
    return store


def map_in_order(function: Callable[[Any], Any], arguments: Sequence[Any], workers: int) -> Iterator[Any]:
    """Apply `function` to every argument in `workers` processes, or in this one without workers; results keep the arguments' order."""
    yield from DataLoader(
        _MappedDataset(function, arguments),
        batch_size=None,
        collate_fn=_identity,
        num_workers=min(workers, len(arguments)),
        generator=torch.Generator(),  # of its own, so that the state of PyTorch's is not changed
    )


@dataclass
class _MappedDataset(Dataset):
    function: Callable[[Any], Any]
    arguments: Sequence[Any]

    def __len__(self) -> int:
        return len(self.arguments)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.arguments[index])


def _identity(value: Any) -> Any:
    return value


def _generate(number: int, size: int, seed: int) -> TrainingImage:
    return TrainingImage(f"synthetic {seed}-{number}", draw(np.random.default_rng([seed, number]), size), synthetic=True)


def _load_into_memory(loaded: Iterable[LoadedImage], generated: Iterable[TrainingImage]) -> ImageStore:
    notes = ImageCollector()
    images = [*notes.usable(loaded), *generated]
    return ImageStore(images, tuple(notes.findings), notes.hashes)


def _needs_file(cache: Cache, workers: int) -> bool:
    """Whether images must be in a file: workers that are not forked would each be sent a copy of all images."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return cache.shared or (workers > 0 and method != "fork")


def _bytes_needed(paths: Iterable[Path], max_pixels: int) -> int:
    """Bytes of pixels in image files, from their headers."""
    return sum(3 * min(pixels, max_pixels or pixels) for pixels in (math.prod(image_size(path)) for path in paths))


# --- the file ------------------------------------------------------------------------------------


def _cache_key(files: list[Path], smallest: int, scale: int, max_pixels: int, synthetic: Synthetic) -> str:
    """A key that changes with the files and the settings."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    everything = [VERSION, stats, smallest, scale, max_pixels, dataclasses.astuple(synthetic)]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]


def _read_or_write(folder: Path, key: str, loaded: Iterable[LoadedImage], generated: Iterable[TrainingImage], needed: int) -> ImageStore:
    """Read the store of this key from `folder`; if there is none or it is damaged, rebuild it."""
    index = folder / INDEX
    if store := _read_cached(index, key):
        logger.info("%d images are already in %s", len(store), folder)
        return store
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"images-{key}.rgb"
    _remove(set(folder.glob("images-*.rgb")))
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ValueError(
            f"{folder}: {free / 1e9:.1f} GB are free; expected {needed / 1e9:.1f} GB for the images: free some space, or set max_pixels"
        )
    logger.info("reading images into %s", folder)
    notes, entries = ImageCollector(), []
    with write_aside(data) as aside, aside.open("wb") as file:
        pixels = _PixelWriter(file)
        for source in (notes.usable(loaded), generated):
            entries += [pixels.append(image) for image in source]
    if not notes.hashes:
        _remove([data])
        return ImageStore([], tuple(notes.findings))
    content = {
        "key": key,
        "data": data.name,
        "bytes": pixels.end,
        "crc32": pixels.crc,
        "images": entries,
        "findings": [[str(finding.path), finding.usable, finding.text] for finding in notes.findings],
        "hashes": {str(path): value for path, value in notes.hashes.items()},
    }
    with write_aside(index) as aside:
        aside.write_text(json.dumps(content), encoding="utf-8")
    logger.info("cached %d images (%.1f GB) in %s", len(entries), pixels.end / 1e9, folder)
    return _open_index(index, content)


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):  # on Windows, if another process still has it open
            file.unlink()


class _PixelWriter:
    """Writes images one after another and remembers where each one is."""

    def __init__(self, file: BinaryIO):
        self.file, self.end, self.crc = file, 0, 0

    def append(self, image: TrainingImage) -> dict[str, Any]:
        lq = None if image.lq is None else self._write(image.lq)
        return {"name": image.name, "gt": self._write(image.gt), "lq": lq, "synthetic": image.synthetic}

    def _write(self, rgb: np.ndarray) -> list[int]:
        pixels, start = np.ascontiguousarray(rgb).reshape(-1), self.end
        self.file.write(pixels.data)
        self.crc = zlib.crc32(pixels.data, self.crc)
        self.end += pixels.size
        return [start, *rgb.shape[:2]]


def _read_cached(index: Path, key: str) -> ImageStore | None:
    """Read the store of an index; None unless it has this key and is undamaged."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        data = index.with_name(content["data"])
        if data.stat().st_size != content["bytes"] or _crc(data) != content["crc32"]:
            logger.warning("%s is damaged and will be rebuilt", data)
            return None
        return _open_index(index, content)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            crc = zlib.crc32(block, crc)
    return crc


def _open_index(index: Path, content: dict[str, Any]) -> ImageStore:
    findings = tuple(Finding(Path(path), usable, text) for path, usable, text in content["findings"])
    hashes = {Path(path): value for path, value in content["hashes"].items()}
    return ImageStore(MappedImages(index), findings, hashes)
