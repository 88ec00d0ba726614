"""What `transformersr check` says about a folder of pictures before a run, and pictures that look the same."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .folders import near, split_pictures
from .pictures import Finding, Notes, look_at
from .store import in_order
from .validate import look_to_measure

logger = logging.getLogger(__name__)


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
    split = split_pictures(folder, validation, exclude, scale=scale)
    for line in split.passed_over:
        logger.warning("%s", line)
    to_train = functools.partial(look_at, smallest=smallest, scale=scale, partners=split.partners, max_pixels=max_pixels)
    to_measure = functools.partial(look_to_measure, scale=scale, partners=split.partners, max_pixels=max_pixels)
    train, held = Notes(), Notes()
    for notes, paths, look in ((train, split.train, to_train), (held, split.validation, to_measure)):
        for _ in notes.usable(in_order(look, paths, workers)):
            pass  # the pixels are not wanted
    left_out = [Finding(path, False, reason) for path, reason in split.left_out]
    findings = [*left_out, *train.findings, *held.findings, *near_duplicates(train.looks)]
    return len(train.looks) + len(held.looks), findings


def near_duplicates(looks: Mapping[Path, int]) -> list[Finding]:
    """Pictures that look like another one, from their `difference_hash`. Flat pictures, which all look alike, are passed over."""
    paths, hashes = list(looks), np.array(list(looks.values()), dtype=np.uint64)
    findings = []
    for place, path in enumerate(paths):
        if (others := near(int(hashes[place]), hashes[:place])).size:
            findings.append(Finding(path, True, f"looks the same as {paths[others[0]]}; near-duplicates weigh double"))
    return findings
