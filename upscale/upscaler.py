"""`Upscaler`: a network on a device, ready for images of every kind."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..arch import TransformerSR
from .checkpoint import CheckpointError, load_model
from .context import plain_torch, survive_fork
from .engine import ProgressCallback, sanitize, upscale_to
from .image_io import ImageData, from_pil, to_pil
from .memory import saying_what_does_not_fit
from .planning import Workload, memory_required, sizes_of_passes, target_size
from .transparency import bleed

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
DEFAULT_MODEL = "x4-tiny"
CRISP = "-crisp"
"""Suffix of a crisp model's name, after the name of its faithful sibling."""
BATCH_PIXELS = 2**24
"""Maximum number of upscaled float32 pixels of a batch in memory at once, result excluded; a single image may have more."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

AnyImage = TypeVar("AnyImage", Image.Image, np.ndarray, Tensor)


def available_models() -> dict[str, Path]:
    """The models that come with the package: name to file, the default first. Crisp siblings are no models of their own."""
    files = {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors")) if not path.stem.endswith(CRISP)}
    return dict(sorted(files.items(), key=lambda item: item[0] != DEFAULT_MODEL))


def default_model(factor: float | None = None) -> str:
    """The model to use where none is named: of the default's size, the one of the smallest scale that reaches `factor` in one pass."""
    if factor is not None:
        size = DEFAULT_MODEL.partition("-")[2]
        for scale in range(1, 5):
            if scale >= factor and (name := f"x{scale}-{size}") in available_models():
                return name
    return DEFAULT_MODEL


def find_model(name_or_path: str | Path | None = None) -> Path:
    """The file of a model that comes with the package, or the path itself.

    Raises FileNotFoundError listing the names there are, CheckpointError for a shipped file that is not as it was shipped.
    """
    models = available_models()
    name = str(name_or_path or DEFAULT_MODEL)
    path = models.get(name, Path(name))
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: no such model or file; expected one of {', '.join(models) or '(none installed)'}, or a path to weights"
        )
    if path.parent.resolve() == WEIGHTS:
        _check_shipped(path)
    return path


def crisp_sibling(path: Path) -> Path | None:
    """The crisp model next to a faithful one of the same network (`x4-tiny-crisp` for `x4-tiny`), if there is one."""
    sibling = path.with_name(f"{path.stem}{CRISP}{path.suffix}")
    return sibling if sibling.is_file() else None


def load_blend(path: Path, crispness: float = 0.0) -> TransformerSR:
    """The network in a file, its weights moved by `crispness` (0 to 1) towards those of its crisp sibling.

    Between networks of which one was trained on from the other, weights between them give images between theirs (Wang et al. 2019,
    arXiv:1811.10515).

    Raises:
        ValueError: for a crispness out of range, or above 0 for a model without a sibling.
        CheckpointError, OSError: as `load_model`.
    """
    if not 0 <= crispness <= 1:
        raise ValueError(f"crispness is {crispness}; expected a number from 0 to 1")
    model = load_model(path)
    if not crispness:
        return model
    if (sibling := crisp_sibling(path)) is None:
        having = ", ".join(name for name, shipped in available_models().items() if crisp_sibling(shipped)) or "none"
        raise ValueError(f"{path.stem} has no crisp sibling, so crispness has to be 0; models with one: {having}")
    crisp = load_model(find_model(sibling))
    if crisp.config != model.config:
        raise ValueError(f"{sibling.name} is not of the same network as {path.name}; expected {model.config}")
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), crisp.parameters(), strict=True):
            ours.lerp_(theirs, crispness)
    return model


def _check_shipped(path: Path) -> None:
    """Refuse a file of the package whose SHA-256 is not the one in `weights/SHA256SUMS`; a user's own files elsewhere are not checked."""
    sums = WEIGHTS / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    if f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" not in lines:
        raise CheckpointError(
            f"{path} is not the file that came with the package: it is damaged, half a download, a Git LFS pointer, or was replaced (its "
            "SHA-256 differs from the one in SHA256SUMS); install the package again, or to use it as it is, copy it elsewhere and give "
            "that path"
        )


def find_device(name: str | torch.device = "auto") -> torch.device:
    """A device by name; "auto" is the first of CUDA, MPS and CPU that is there. Raises ValueError for one that is not."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]+)?", str(name)):
        raise ValueError(f"device is {str(name)!r}; expected auto, cpu, cuda, cuda:1 or mps")
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); expected auto, cpu, cuda or mps") from error
    return device


def find_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A precision by name, or itself; "auto" is fp16 on CUDA cards that compute in it, else fp32. Raises ValueError for an unknown one."""
    if name in DTYPES.values():
        return name  # type: ignore[return-value]
    if name == "auto":
        return torch.float16 if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[str(name)]


def parse_bytes(text: str | int | None) -> int | None:
    """A number of bytes from "2G", "1.5GiB", "800M" or a number. Raises ValueError for anything else."""
    if text is None or isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?B)?\s*", text, re.IGNORECASE)
    try:
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise ValueError(f"memory is {text!r}; expected a size such as 2G or 800M") from error


class Upscaler:
    """Upscales images with a network: `Upscaler.from_pretrained()` makes one, and calling it with an image gives a larger one back.

        upscaler = Upscaler.from_pretrained()
        large = upscaler(Image.open("image.png"))  # or a numpy array, or a torch tensor
        large = upscaler(image, factor=2)  # or size=(height, width)

    Every call is independent; one object may be used for any number of images of any size, by one thread at a time.
    """

    def __init__(self, model: TransformerSR, memory: int | None = None, ensemble: bool = False):
        """Use a network of RGB as it is, on its device and in its dtype; `memory` in bytes and `ensemble` as for `from_pretrained`."""
        if model.config.channels != 3:
            raise ValueError(f"the network takes {model.config.channels} channels; expected one that takes 3, RGB")
        survive_fork()
        self.model = model.eval()
        self.memory = memory
        self.ensemble = ensemble

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        memory: str | int | None = None,
        crispness: float = 0.0,
        ensemble: bool = False,
    ) -> Upscaler:
        """Load a network.

        Args:
            name_or_path: a model that comes with the package (`available_models`), or a file of weights; None takes the default.
            device: "auto", "cpu", "cuda", "cuda:1", "mps", or a torch.device.
            dtype: "auto", "fp32", "bf16", "fp16", or one of PyTorch's. Norms and softmax are computed in float32 whatever it is.
            memory: most bytes that the network's tensors may take, also as "2G"; None takes what is free.
            crispness: 0 is the faithful model, 1 its crisp sibling, and between them weights between the two; for models that have one.
            ensemble: average over the eight turned and mirrored versions of the image: slightly better, eight times slower.

        Raises:
            FileNotFoundError, CheckpointError, ValueError: with one sentence on what was expected.
        """
        found = find_device(device)
        model = load_blend(find_model(name_or_path), crispness)
        return cls(model.to(found, find_dtype(dtype, found)), parse_bytes(memory), ensemble)

    def __repr__(self) -> str:
        return f"Upscaler(scale={self.scale}, device='{self.model.device}', dtype={self.model.dtype}, memory={self.memory})"

    @property
    def scale(self) -> int:
        """Scale factor of one pass."""
        return self.model.config.scale

    def __call__(
        self, image: AnyImage, factor: float | None = None, size: tuple[int, int] | None = None, on_progress: ProgressCallback | None = None
    ) -> AnyImage:
        """Upscale an image and return one of the same kind.

        Args:
            image: a PIL image of any mode; numpy `(h, w)`, `(h, w, c)` or `(b, h, w, c)`, uint8, uint16 or float; or torch `(c, h, w)`
                or `(b, c, h, w)`, uint8 or float. Floats are in [0, 1]; c is 1, 3 or 4: grey, RGB, RGB and transparency.
            factor: upscale each side by this and round; None takes the network's scale.
            size: instead, the (height, width) wanted.
            on_progress: called with (done, total) as the work goes on; it may raise to stop.

        Returns:
            The same type, layout and dtype, on the same device; numpy floats come back as float32, PIL images with 8 bits a channel.
        """
        images, restore = _to_batch(image)
        return restore(self.upscale_batch(images, factor, size, on_progress))

    def upscale_image(self, image: ImageData, **options) -> ImageData:
        """Upscale a `ImageData`; what it carries goes along."""
        images, restore = _image_to_batch(image)
        return restore(self.upscale_batch(images, **options))

    @plain_torch()
    def upscale_batch(
        self,
        images: Tensor,
        factor: float | None = None,
        size: tuple[int, int] | None = None,
        on_progress: ProgressCallback | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Upscale images of one size, a whole video say, a few at a time: `(b, c, h, w)` as for a call, into `out` where given.

        `out` is `(b, c, height, width)` of any float dtype, on any device, in any layout. Without it the result is like `images`.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3, 4) or 0 in images.shape or not images.is_floating_point():
            raise ValueError(
                f"tensor has shape {tuple(images.shape)} and is {images.dtype}; "
                "expected (b, c, h, w) with c = 1, 3 or 4, at least 1x1, a float type"
            )
        height, width = target_size(images.shape[2], images.shape[3], self.scale, factor, size)
        count, shape = len(images), (*images.shape[:2], height, width)
        step = max(1, BATCH_PIXELS // max(height * width, images[0, 0].numel() * self.scale**2))
        if out is not None and out.shape != shape:
            raise ValueError(f"out has shape {tuple(out.shape)}; expected {shape}")
        if out is None and count > step:
            with saying_what_does_not_fit(count, height, width):
                out = images.new_empty(shape)
        for start in range(0, count, step):
            some = sanitize(images[start : start + step].detach().float())
            progress = _share_of_batch(on_progress, start, len(some), count)
            with saying_what_does_not_fit(len(some), height, width):
                large = upscale_to(
                    self.model, _as_rgb(some), height, width, memory=self.memory, ensemble=self.ensemble, on_progress=progress
                )
                large = _like(some, large)
                if out is None:
                    return large.to(images.dtype)
                out[start : start + step] = large
        assert out is not None
        return out

    def memory_required(self, count: int, height: int, width: int, factor: float | None = None, size: tuple[int, int] | None = None) -> int:
        """Bytes that upscaling `count` images of a size takes where it is not short of them, for a host that makes room."""
        if self.memory is not None:
            return self.memory
        target = target_size(height, width, self.scale, factor, size)
        *_, (height, width) = sizes_of_passes(height, width, self.scale, *target)  # the last one has the most to do
        return memory_required(Workload(self.model.config, height, width, self.model.dtype.itemsize), count)


# --- kinds of images -----------------------------------------------------------------------------

Restore = Callable[[Tensor], Any]
"""Turns a batch `(b, c, height, width)` of results into what the caller gave."""


def _to_batch(image: Any) -> tuple[Tensor, Restore]:
    """Any image as a float batch `(b, c, h, w)` in [0, 1], and the way back."""
    if isinstance(image, Image.Image):
        images, restore = _image_to_batch(from_pil(image))
        return images, lambda large: to_pil(restore(large))
    if isinstance(image, Tensor):
        return _tensor_to_batch(image)
    if isinstance(image, np.ndarray):
        return _array_to_batch(image)
    raise TypeError(
        f"image is a {type(image).__name__}; expected a PIL image, a numpy array or a torch tensor: "
        "open a file with PIL.Image.open, and give the images of a list one by one"
    )


def _image_to_batch(image: ImageData) -> tuple[Tensor, Restore]:
    channels = image.color if image.alpha is None else np.dstack([image.color, image.alpha])

    def restore(large: Tensor) -> ImageData:
        upscaled = large[0].permute(1, 2, 0).numpy()
        return ImageData(upscaled[..., :3], None if image.alpha is None else upscaled[..., 3], image.carried)

    return torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)[None])), restore


def _tensor_to_batch(image: Tensor) -> tuple[Tensor, Restore]:
    """`(c, h, w)` or `(b, c, h, w)`, uint8 or float."""
    images = image[None] if image.ndim == 3 else image
    if images.ndim == 4 and images.shape[1] not in (1, 3, 4) and images.shape[3] in (1, 3, 4):
        raise ValueError(f"tensor has shape {tuple(image.shape)}, channels last; expected (b, c, h, w): give image.movedim(-1, -3)")
    levels = image.dtype == torch.uint8

    def restore(large: Tensor) -> Tensor:
        large = large.mul_(255).round_().to(torch.uint8) if levels else large
        return large[0] if image.ndim == 3 else large

    return images.float() / 255 if levels else images, restore


def _array_to_batch(image: np.ndarray) -> tuple[Tensor, Restore]:
    """`(h, w)`, `(h, w, c)` or `(b, h, w, c)`, uint8, uint16 or float."""
    images = image[..., None] if image.ndim == 2 else image
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        raise ValueError(f"array has shape {image.shape}; expected (h, w), (h, w, c) or (b, h, w, c) with c = 1, 3 or 4")
    if image.dtype.kind not in "uf" or image.dtype.itemsize > (2 if image.dtype.kind == "u" else 8):
        raise ValueError(f"array is {image.dtype}; expected uint8, uint16 or a float type with values in [0, 1]")
    peak = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1

    def restore(large: Tensor) -> np.ndarray:
        upscaled = large.permute(0, 2, 3, 1).numpy()
        upscaled = np.rint(upscaled * peak).astype(image.dtype) if peak > 1 else upscaled
        upscaled = upscaled if image.ndim == 4 else upscaled[0]
        return upscaled[..., 0] if image.ndim == 2 else upscaled

    channels = (images.astype(np.float32) / np.float32(peak)).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(channels)), restore


# --- grey and transparency -----------------------------------------------------------------------


def _as_rgb(images: Tensor) -> Tensor:
    """Network input for `(b, c, h, w)`, c = 1, 3 or 4: RGB, followed by transparency as grey images where it varies."""
    color, alpha = images[:, :3].expand(-1, 3, -1, -1), images[:, 3:]
    if not _varies(alpha):
        return color
    color = torch.stack([_bleed_color(*pair) for pair in zip(color, alpha, strict=True)])
    return torch.cat([color, alpha.expand(-1, 3, -1, -1)])


def _like(images: Tensor, large: Tensor) -> Tensor:
    """The result of `_as_rgb`, upscaled, in the channels of `images`."""
    count, alpha = len(images), images[:, 3:]
    if _varies(alpha):
        return torch.cat([large[:count], _within_range(large[count:].mean(1, keepdim=True), alpha)], 1)
    if alpha.numel():
        return torch.cat([large, alpha[:, :, :1, :1].expand(-1, -1, *large.shape[2:])], 1)
    return large.mean(1, keepdim=True) if images.shape[1] == 1 else large


def _varies(alpha: Tensor) -> bool:
    return alpha.numel() > 0 and bool(alpha.min() < alpha.max())


def _share_of_batch(progress: ProgressCallback | None, start: int, some: int, count: int) -> ProgressCallback | None:
    """Progress of `some` images as progress of `count`, of which `start` are done."""
    if progress is None:
        return None
    return lambda done, total: progress(start * total + some * done, count * total)


def _within_range(large: Tensor, small: Tensor) -> Tensor:
    """Clamp upscaled transparency to the range around each place in the original, so opaque stays opaque and empty stays empty."""
    high, low = F.max_pool2d(small, 5, 1, 2), -F.max_pool2d(-small, 5, 1, 2)
    low, high = (F.interpolate(bound, large.shape[2:], mode="nearest") for bound in (low, high))
    return large.clamp(low, high)


def _bleed_color(color: Tensor, alpha: Tensor) -> Tensor:
    """Extend visible colour under transparent pixels: `(3, h, w)` and `(1, h, w)` to `(3, h, w)`."""
    filled = bleed(color.permute(1, 2, 0).float().cpu().numpy(), alpha[0].float().cpu().numpy())
    return torch.from_numpy(filled).permute(2, 0, 1).to(color)
