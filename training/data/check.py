"""What `transformersr check` says about a folder of pictures before a run, and pictures that look the same."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .folders import split_pictures
from .pictures import Finding, Notes, look_at, look_to_measure
from .store import in_order

NEAR = 3
"""Bits of 64 in which the hashes of two pictures that look the same may differ."""


def check_pictures(
    folder: Path,
    smallest: int,
    scale: int = 4,
    validation: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    max_pixels: int = 0,
    workers: int = 0,
) -> tuple[int, list[Finding]]:
    """Look at every picture below a folder as a run would: how many can be used, and what there is to know about them and the others.

    `smallest` is the side of a training crop in sharp pixels; `validation` and `exclude` are those of `split_pictures`. Raises ValueError
    for a folder that cannot be trained on.
    """
    split = split_pictures(folder, validation, exclude)
    to_train = functools.partial(look_at, smallest=smallest, scale=scale, partners=split.partners, max_pixels=max_pixels)
    to_measure = functools.partial(look_to_measure, scale=scale, partners=split.partners, max_pixels=max_pixels)
    train, held = Notes(), Notes()
    for notes, paths, look in ((train, split.train, to_train), (held, split.validation, to_measure)):
        for _ in notes.usable(in_order(look, paths, workers)):
            pass  # the pixels are not wanted
    findings = [*train.findings, *held.findings, *near_duplicates(train.looks, held.looks)]
    return len(train.looks) + len(held.looks), findings


def near_duplicates(train: Mapping[Path, int], validation: Mapping[Path, int]) -> list[Finding]:
    """Pictures that look like another one, from their `difference_hash`. Flat pictures, which all look alike, are passed over."""
    paths, hashes = list(train), np.array(list(train.values()), dtype=np.uint64)
    findings = []
    for place, path in enumerate(paths):
        if (other := _near(hashes[place], hashes[:place])) is not None:
            findings.append(Finding(path, True, f"looks the same as {paths[other]}; near-duplicates weigh double"))
    for path, value in validation.items():
        if (other := _near(np.uint64(value), hashes)) is not None:
            text = f"looks the same as {paths[other]}, which is trained on; what is measured on it is too good"
            findings.append(Finding(path, True, text))
    return findings


def _near(value: np.uint64, hashes: np.ndarray) -> int | None:
    """The place of the first hash that differs in few bits."""
    bits = np.unpackbits((hashes ^ value).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
    places = np.flatnonzero((bits <= NEAR) & (hashes != 0) & (value != 0))
    return int(places[0]) if places.size else None
