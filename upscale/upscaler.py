"""`Upscaler`: a network on a device that upscales images of any kind."""

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
from .engine import ProgressCallback, sanitize, upscale_to
from .image_io import ImageData, from_pil, to_pil
from .memory import explain_out_of_memory
from .planning import Workload, memory_required, sizes_of_passes, target_size
from .torch_context import plain_torch, survive_fork
from .transparency import bleed

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
DEFAULT_MODEL = "x4-base"
PURPOSES = {
    "x4-base": "4x, best quality",
    "x4-tiny": "4x, twice as fast",
    "x4-tiny-cleanup": "4x, removes JPEG artifacts",
    "x2-tiny": "2x",
}
"""What the included models are for, the default first."""
CRISP = "-crisp"
"""Suffix of a crisp model's name, after the name of the faithful one."""
BATCH_PIXELS = 2**24
"""Maximum number of upscaled pixels of a batch in memory at once, in addition to the result. A single image may be larger."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

AnyImage = TypeVar("AnyImage", Image.Image, np.ndarray, Tensor)


def available_models() -> dict[str, Path]:
    """Return the included models by name, in the order of `PURPOSES`. Crisp versions are not listed."""
    files = {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors")) if not path.stem.endswith(CRISP)}
    order = [*PURPOSES, *files]
    return {name: files[name] for name in sorted(files, key=order.index)}


def default_model(factor: float | None = None, crispness: float = 0.0) -> str:
    """Return the model to use if none is named: the first one of the smallest scale that reaches `factor` in one pass.

    If `crispness` is above 0, only models that have a crisp version are considered.
    """
    models = [name for name, path in available_models().items() if not crispness or crisp_version(path)]
    scales = [scale for scale in range(1, 5) if factor is not None and scale >= factor]
    return next((name for scale in scales for name in models if name.startswith(f"x{scale}-")), DEFAULT_MODEL)


def find_model(name_or_path: str | Path | None = None) -> Path:
    """Return the file of an included model, or the path itself.

    Raises FileNotFoundError with the available names, or CheckpointError if an included file was changed.
    """
    models = available_models()
    name = str(name_or_path or DEFAULT_MODEL)
    path = models.get(name, Path(name))
    if path.is_dir():
        example = path / "best.safetensors"  # the folder of a run
        raise FileNotFoundError(f"{name}: this is a folder; expected a weights file{f', such as {example}' if example.is_file() else ''}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: no such model or file; expected one of {', '.join(models) or '(none installed)'}, or a path to weights"
        )
    if path.parent.resolve() == WEIGHTS:
        _check_shipped(path)
    return path


def crisp_version(path: Path) -> Path | None:
    """Return the crisp model next to a faithful one (`x4-tiny-crisp` for `x4-tiny`), if there is one."""
    version = path.with_name(f"{path.stem}{CRISP}{path.suffix}")
    return version if version.is_file() else None


def load_blend(path: Path, crispness: float = 0.0) -> TransformerSR:
    """Load a network with its weights interpolated by `crispness` (0 to 1) towards those of its crisp version.

    If one network was fine-tuned from the other, interpolated weights give interpolated images (Wang et al. 2019, arXiv:1811.10515).

    Raises:
        ValueError: if crispness is out of range, or above 0 for a model without one.
        CheckpointError, OSError: as `load_model`.
    """
    if not 0 <= crispness <= 1:
        raise ValueError(f"crispness is {crispness}; expected a number from 0 to 1")
    model = load_model(path)
    if not crispness:
        return model
    if (crisp_path := crisp_version(path)) is None:
        having = ", ".join(name for name, shipped in available_models().items() if crisp_version(shipped)) or "none"
        raise ValueError(f"{path.stem} has no crisp version, so crispness has to be 0; models with one: {having}")
    crisp = load_model(find_model(crisp_path))
    if crisp.config != model.config:
        raise ValueError(f"{crisp_path.name} is not of the same network as {path.name}; expected {model.config}")
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), crisp.parameters(), strict=True):
            ours.lerp_(theirs, crispness)
    return model


def _check_shipped(path: Path) -> None:
    """Refuse an included file whose SHA-256 is not the one in `weights/SHA256SUMS`. Files elsewhere are not checked."""
    sums = WEIGHTS / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    if f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" not in lines:
        raise CheckpointError(
            f"{path} is not the file that came with the package: it is damaged, cut short, a Git LFS pointer, or was replaced (its "
            "SHA-256 differs from the one in SHA256SUMS); install the package again, or use this file from another folder"
        )


def check_device_name(name: str) -> str:
    """Return the name of a device, which this machine need not have. Raises ValueError if it is not one."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]+)?", name):
        raise ValueError(f"device is {name!r}; expected auto, cpu, cuda, cuda:1 or mps")
    return name


def find_device(name: str | torch.device = "auto") -> torch.device:
    """Return a device by name; "auto" is the first available of CUDA, MPS and CPU. Raises ValueError if it is not available."""
    check_device_name(str(name))
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); expected auto, cpu, cuda or mps") from error
    return device


def find_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return a dtype by name; "auto" is fp16 on CUDA cards with fast fp16, else fp32. Raises ValueError for an unknown name."""
    if name in DTYPES.values():
        return name  # type: ignore[return-value]
    if name == "auto":
        return torch.float16 if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[str(name)]


def parse_bytes(text: str | int | None) -> int | None:
    """Parse a number of bytes such as "2G", "1.5GiB" or "800M". Raises ValueError for anything else."""
    if text is None or isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?B)?\s*", text, re.IGNORECASE)
    try:
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise ValueError(f"memory is {text!r}; expected a size such as 2G or 800M") from error


class Upscaler:
    """Upscales images with a network. Call it with an image to get a larger image of the same kind.

        upscaler = Upscaler.from_pretrained()
        large = upscaler(Image.open("image.png"))  # or a numpy array, or a torch tensor
        large = upscaler(image, factor=2)  # or size=(height, width)

    Calls are independent. An object can upscale any number of images of any size, in one thread at a time.
    """

    def __init__(self, model: TransformerSR, memory: int | None = None, ensemble: bool = False):
        """Use an RGB network on its own device and in its own dtype. `memory` (in bytes) and `ensemble` are those of `from_pretrained`."""
        if model.config.channels != 3:
            raise ValueError(f"the network takes {model.config.channels} channels; expected an RGB network with 3")
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
            name_or_path: an included model (`available_models`), or a file of weights; None is the default model.
            device: "auto", "cpu", "cuda", "cuda:1", "mps", or a torch.device.
            dtype: "auto", "fp32", "bf16", "fp16", or a torch.dtype. Norms and softmax are always computed in float32.
            memory: maximum memory of the network's tensors in bytes, or as "2G"; None uses the free memory.
            crispness: 0 is the faithful model, 1 its crisp version; values in between interpolate. Only for models that have one.
            ensemble: average the results for the eight rotated and mirrored versions of the image: slightly better, eight times slower.

        Raises:
            FileNotFoundError, CheckpointError, ValueError: with one sentence that says what was expected.
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
                or `(b, c, h, w)`, uint8 or float. Floats are in [0, 1]; c is 1 (grey), 3 (RGB) or 4 (RGB and alpha).
            factor: scale factor of each side; the result is rounded. None is the network's scale.
            size: the target (height, width), instead of a factor.
            on_progress: called with (done, total); it may raise an exception to stop.

        Returns:
            The same type, layout and dtype, on the same device. Numpy floats become float32, and PIL images have 8 bits per channel.
        """
        images, restore = _to_batch(image)
        return restore(self.upscale_batch(images, factor, size, on_progress))

    def upscale_image(self, image: ImageData, **options) -> ImageData:
        """Upscale an `ImageData` and keep its metadata."""
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
        """Upscale images of one size, such as the frames of a video, a few at a time: `(b, c, h, w)` as for a call, optionally into `out`.

        `out` is `(b, c, height, width)` of any float dtype, on any device, in any layout. The default is a tensor like `images`.
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
            with explain_out_of_memory(count, height, width):
                out = images.new_empty(shape)
        for start in range(0, count, step):
            part = sanitize(images[start : start + step].detach().float())
            progress = _share_of_batch(on_progress, start, len(part), count)
            with explain_out_of_memory(len(part), height, width):
                large = upscale_to(
                    self.model, _as_rgb(part), height, width, memory=self.memory, ensemble=self.ensemble, on_progress=progress
                )
                large = _like(part, large)
                if out is None:
                    return large.to(images.dtype)
                out[start : start + step] = large
        assert out is not None
        return out

    def memory_required(self, count: int, height: int, width: int, factor: float | None = None, size: tuple[int, int] | None = None) -> int:
        """Return the bytes needed to upscale `count` images of a size at full speed, for hosts that free memory in advance."""
        if self.memory is not None:
            return self.memory
        target = target_size(height, width, self.scale, factor, size)
        *_, (height, width) = sizes_of_passes(height, width, self.scale, *target)  # the last pass is the largest
        return memory_required(Workload(self.model.config, height, width, self.model.dtype.itemsize), count)


# --- kinds of images -----------------------------------------------------------------------------

Restore = Callable[[Tensor], Any]
"""Converts a batch `(b, c, height, width)` of results to the caller's kind of image."""


def _to_batch(image: Any) -> tuple[Tensor, Restore]:
    """Convert any image to a float batch `(b, c, h, w)` in [0, 1]. Returns also the function for the way back."""
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
    """Convert `(b, c, h, w)`, c = 1, 3 or 4, to RGB network input, followed by the alpha channels as grey images if they vary."""
    color, alpha = images[:, :3].expand(-1, 3, -1, -1), images[:, 3:]
    if not _varies(alpha):
        return color
    color = torch.stack([_bleed_color(*pair) for pair in zip(color, alpha, strict=True)])
    return torch.cat([color, alpha.expand(-1, 3, -1, -1)])


def _like(images: Tensor, large: Tensor) -> Tensor:
    """Convert the upscaled result of `_as_rgb` back to the channels of `images`."""
    count, alpha = len(images), images[:, 3:]
    if _varies(alpha):
        return torch.cat([large[:count], _within_range(large[count:].mean(1, keepdim=True), alpha)], 1)
    if alpha.numel():
        return torch.cat([large, alpha[:, :, :1, :1].expand(-1, -1, *large.shape[2:])], 1)
    return large.mean(1, keepdim=True) if images.shape[1] == 1 else large


def _varies(alpha: Tensor) -> bool:
    return alpha.numel() > 0 and bool(alpha.min() < alpha.max())


def _share_of_batch(progress: ProgressCallback | None, start: int, part: int, count: int) -> ProgressCallback | None:
    """Convert the progress of `part` images into that of `count` images, `start` of which are done."""
    if progress is None:
        return None
    return lambda done, total: progress(start * total + part * done, count * total)


def _within_range(large: Tensor, small: Tensor) -> Tensor:
    """Clamp upscaled alpha to the local range of the original, so opaque stays opaque and transparent stays transparent."""
    high, low = F.max_pool2d(small, 5, 1, 2), -F.max_pool2d(-small, 5, 1, 2)
    low, high = (F.interpolate(bound, large.shape[2:], mode="nearest") for bound in (low, high))
    return large.clamp(low, high)


def _bleed_color(color: Tensor, alpha: Tensor) -> Tensor:
    """Extend visible colour under transparent pixels: `(3, h, w)` and alpha `(1, h, w)` to `(3, h, w)`."""
    filled = bleed(color.permute(1, 2, 0).float().cpu().numpy(), alpha[0].float().cpu().numpy())
    return torch.from_numpy(filled).permute(2, 0, 1).to(color)
