"""One image to train on: read from its file once, and everything that there is to say about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...upscale.image_io import ImageData, ImageError, read_image

NO_PARTNERS: Mapping[Path, Path | None] = {}


@dataclass(frozen=True)
class TrainingImage:
    """Pixels `(h, w, 3)` uint8 that crops are cut from."""

    name: str
    gt: np.ndarray
    """The sharp image."""
    lq: np.ndarray | None = None
    """Its small version, exactly `1 / scale` of it, where there is one; otherwise every crop is made small on its own."""
    synthetic: bool = False
    """Made by `transformersr.training.data.synthetic`, so it is in no file."""


@dataclass(frozen=True)
class Finding:
    """Something to know about an image; one that is not `usable` is left out of training."""

    path: Path
    usable: bool
    text: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.usable else ' is left out'}: {self.text}"


@dataclass(frozen=True)
class LoadedImage:
    """What reading an image file gave."""

    path: Path
    image: TrainingImage | None
    """None where it cannot be used."""
    dhash: int
    """Its `dhash`; 0 where it could not be read."""
    findings: tuple[Finding, ...]


class Notes:
    """What is said about images while they pass by."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.hashes: dict[Path, int] = {}

    def usable(self, loaded: Iterable[LoadedImage]) -> Iterator[TrainingImage]:
        """The images that can be used, in turn."""
        for one in loaded:
            self.findings += one.findings
            if one.image is not None:
                self.hashes[one.path] = one.dhash
                yield one.image


class Unusable(ValueError):
    """An image that cannot be trained on; the message says why, without the image's name."""


def load_image(path: Path, smallest: int, scale: int, partners: Mapping[Path, Path | None], max_pixels: int = 0) -> LoadedImage:
    """Read an image, and its small version where `partners` has one.

    Args:
        smallest: the side of a training crop in sharp pixels, which both sides must have.
        scale: how many times smaller a small version has to be.
        partners: small versions of sharp images; None for an image that should have one and does not.
        max_pixels: larger images are made smaller than this; 0 leaves them as they are. Images with a small version always stay.
    """
    hash_ = 0
    try:
        image = read_or_reject(path)
        gt = to_rgb(image)
        hash_ = dhash(gt)
        if max_pixels and path not in partners:
            gt = downscale_to(gt, max_pixels)
        if min(gt.shape[:2]) < smallest:
            raise Unusable(f"{_size(gt)} is smaller than a crop of {smallest}x{smallest}")
        lq = read_partner(path, gt, scale, partners)
    except Unusable as error:
        return LoadedImage(path, None, hash_, (Finding(path, False, str(error)),))
    remarks = tuple(Finding(path, True, text) for text in _remarks(path, image))
    return LoadedImage(path, TrainingImage(str(path), gt, lq), hash_, remarks)


def load_validation_image(path: Path, scale: int, partners: Mapping[Path, Path | None] = NO_PARTNERS, max_pixels: int = 0) -> LoadedImage:
    """Read a validation image; one too small for the window of SSIM cannot be used."""
    return load_image(path, -(-(11 + 2 * scale) // scale) * scale, scale, partners, max_pixels)


def read_rgb(path: Path) -> np.ndarray:
    """An image file as `(h, w, 3)` uint8; transparent parts lie on grey. Raises ImageError, OSError."""
    return to_rgb(read_image(path))


def to_rgb(image: ImageData) -> np.ndarray:
    """An image as `(h, w, 3)` uint8; transparent parts lie on grey."""
    color = image.color
    if image.alpha is not None:
        alpha = image.alpha[..., None]
        color = color * alpha + 0.5 * (1 - alpha)
    return np.rint(color * 255).astype(np.uint8)


def read_partner(path: Path, gt: np.ndarray, scale: int, partners: Mapping[Path, Path | None]) -> np.ndarray | None:
    """The small version of the image at `path`, `(h, w, 3)` uint8; None where it has none. Raises Unusable where the two do not fit."""
    if path not in partners:
        return None
    partner = partners[path]
    if partner is None:
        raise Unusable("expected one image of this name in the other folder of the pairs")
    try:
        lq = to_rgb(read_or_reject(partner))
    except Unusable as error:
        raise Unusable(f"its small version {partner}: {error}") from error
    if gt.shape[:2] != (lq.shape[0] * scale, lq.shape[1] * scale):
        raise Unusable(f"{_size(gt)} is not exactly {scale} times {_size(lq)}, the size of {partner}")
    return lq


def downscale_to(rgb: np.ndarray, max_pixels: int) -> np.ndarray:
    """An image made smaller to have at most `max_pixels`.

    By a Hamming window: nearly an area filter, without the uneven steps that a box leaves on lines where the factor is no whole number.
    """
    height, width = rgb.shape[:2]
    if height * width <= max_pixels:
        return rgb
    factor = math.sqrt(max_pixels / (height * width))
    size = max(1, int(width * factor)), max(1, int(height * factor))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.HAMMING))


def dhash(rgb: np.ndarray) -> int:
    """64 bits that say where an image `(h, w, 3)` uint8 gets brighter from left to right at 9x8 pixels (Krawetz's dHash)."""
    values = np.asarray(Image.fromarray(rgb).convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    return int.from_bytes(np.packbits(values[:, 1:] > values[:, :-1]).tobytes(), "big")


def read_or_reject(path: Path) -> ImageData:
    try:
        return read_image(path)
    except (OSError, ImageError) as error:
        raise Unusable(str(error).removeprefix(f"{path}: ")) from error


def _size(rgb: np.ndarray) -> str:
    return f"{rgb.shape[1]}x{rgb.shape[0]}"


def _remarks(path: Path, image: ImageData) -> Iterator[str]:
    if image.alpha is not None:
        yield "has transparent parts, which are put on grey"
    if image.carried.bits == 16:
        yield "has 16 bits a channel, which are rounded to 8"
    if image.carried.animated:
        yield "has several frames or pages, of which the first is used"
    with Image.open(path) as header:  # the pixels are not read again
        if header.mode in ("CMYK", "LAB"):
            yield f"is stored as {header.mode}, which becomes sRGB"
