"""ComfyUI nodes: pass the host's images, device, memory, progress bar and Cancel button on to `upscale`.

Node ids, input names, options and defaults are saved in users' workflows. They may be added to, but never changed.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from comfy import model_management
from torch import Tensor, nn

from .arch import TransformerSR
from .upscale.checkpoint import CheckpointError
from .upscale.memory import is_out_of_memory
from .upscale.models import as_safetensors, find_in_list, list_models, not_weights, scale_of, stamp
from .upscale.planning import MemoryBudgetError, proportional_size, target_size
from .upscale.upscaler import DTYPES, PURPOSES, Upscaler, crisp_version, find_dtype, find_model, load_blend
from .upscale.video import frames_together, upscale_video, video_size, video_suffix

try:
    from comfy_api.latest import InputImpl
except ImportError:  # a ComfyUI without the VIDEO type
    InputImpl = None

logger = logging.getLogger(__name__)

FOLDERS = ("upscale_models", "transformersr")
SIZE_BY = MODEL_SCALE, FACTOR, EXACT, LONGEST = "model scale", "factor", "width and height", "longest side"
LONGEST_SIDE = 65536
"""The largest size that the inputs accept."""
FEATHER = 4
"""Input pixels over which a mask fades on each side of its edge."""

folder_paths.add_model_folder_path("transformersr", os.path.join(folder_paths.models_dir, "transformersr"))
if "spandrel" in sys.modules:  # ComfyUI has imported it, so its own loader opens our files; importing it ourselves would take a second
    from .upscale.spandrel_arch import register

    register()


# --- models --------------------------------------------------------------------------------------


def available() -> dict[str, Path]:
    """Return the models to choose from, label to file. Cached, because the host asks for every input and folders may be on a network."""
    return _available(int(time.monotonic()))


@lru_cache(maxsize=1)
def _available(second: int) -> dict[str, Path]:
    folders = _folders()
    for path, reason in not_weights(folders).items():
        _warn_once(f"{path} is not listed as a model: {reason}", stamp(path))
    return list_models(folders)


def _folders() -> list[str]:
    return [folder for kind in FOLDERS for folder in folder_paths.get_folder_paths(kind)]


@lru_cache(maxsize=256)
def _warn_once(message: str, version: str) -> None:
    logger.warning("TransformerSR: %s", message)


def find_label(label: str) -> Path:
    """Return the file of a label. Raises FileNotFoundError, with the reason if a file of that name is not listed as a model."""
    try:
        return find_in_list(label, available())
    except FileNotFoundError as error:
        reasons = {path.name: reason for path, reason in not_weights(_folders()).items()}
        reason = reasons.get(str(label).replace("\\", "/").rpartition("/")[2])
        raise FileNotFoundError(f"{label}: {reason}" if reason else str(error)) from None


def safetensors_of(label: str) -> Path:
    """Return the file of a label as safetensors. Raises FileNotFoundError, CheckpointError or OSError with a one-sentence message."""
    return as_safetensors(find_model(find_label(label)), Path(folder_paths.get_user_directory(), "transformersr"))


def version_of(label: str) -> str:
    """Return a text that changes if a label's file or its crisp version changes."""
    path = find_label(label)
    return " ".join(f"{file} {stamp(file)}" for file in (path, crisp_version(path)) if file)


def check_crispness(label: str | None, crispness: float | None) -> None:
    """Raise ValueError if a crispness is invalid or the model does not support it. None stands for a value from another node."""
    if crispness is None:
        return
    if not 0 <= crispness <= 1:
        raise ValueError(f"crispness is {crispness}; expected a number from 0 to 1")
    if crispness and label is not None and crisp_version(find_label(label)) is None:
        crisp = ", ".join(models_with_crisp_version()) or "none"
        raise ValueError(f"{label} has no crisp version, so crispness has to be 0; models with one: {crisp}")


def models_with_crisp_version() -> list[str]:
    """Return the labels of the models that support a crispness above 0."""
    return [label for label, path in available().items() if crisp_version(path)]


def load_network(label: str, crispness: float) -> TransformerSR:
    """Load the network of a label. Raises ValueError, FileNotFoundError, CheckpointError or OSError with a one-sentence message."""
    check_crispness(label, crispness)
    # a crisp version is found by its name in the same folder, and a converted copy may be in another one
    return load_blend(find_model(find_label(label)) if crispness else safetensors_of(label), crispness)


def make_patcher(model: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """Hand a network to the host's memory management: on the device while it runs, off it when another model needs the memory.

    `CoreModelPatcher` is the class of the host's own models, which the host chooses at startup. If ours were of a different class, the host
    would unload all other models to make room.
    """
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=model_management.get_torch_device(), offload_device=model_management.unet_offload_device())


@contextmanager
def on_device(patcher: comfy.model_patcher.ModelPatcher, memory: int) -> Iterator[None]:
    """Load a network to its device, with `memory` bytes free in addition. Afterwards the host decides how long it stays there."""
    model_management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    if getattr(patcher, "is_dynamic", bool)():  # it moves the parameters itself
        yield
        return
    not_loaded = any(parameter.device != patcher.load_device for parameter in patcher.model.parameters())
    patcher.model.to(patcher.load_device)
    try:
        yield
    finally:
        if not_loaded:  # when short of memory (--novram), the host only moves layers of its own classes
            patcher.model.to(patcher.offload_device)


@contextmanager
def builtin_errors(memory_gb: float = 0.0) -> Iterator[None]:
    """Convert our exceptions to built-in ones, because the host shows a custom class with its module path.

    If the memory budget is too small, the message names the node's input that sets it.
    """
    try:
        yield
    except MemoryBudgetError as error:
        hint = ". The budget is memory (GB) in this node; 0 uses what is free" if memory_gb else ""
        raise ValueError(f"{error}{hint}") from error
    except CheckpointError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Settings:
    """Values of the inputs that both upscaling nodes have. Workflows may omit any of them."""

    size_by: str = MODEL_SCALE
    factor: float = 2.0
    width: int = 0
    height: int = 0
    longest_side: int = 2048
    precision: str = "auto"
    memory_gb: float = 0.0
    crispness: float = 0.0
    ensemble: bool = False

    def target(self, old_height: int, old_width: int) -> dict:
        """Return the requested size as arguments of `Upscaler`; empty if the model decides."""
        if self.size_by == FACTOR:
            return {"factor": self.factor}
        if self.size_by == EXACT:
            if not (self.height or self.width):
                raise ValueError(NO_SIZE)
            return {"size": proportional_size(old_height, old_width, self.height, self.width)}
        if self.size_by == LONGEST:
            side = (self.longest_side, 0) if old_height > old_width else (0, self.longest_side)
            return {"size": proportional_size(old_height, old_width, *side)}
        return {}


class _ModelNode:
    """Base of the nodes with a list of models."""

    @staticmethod
    def model_input() -> tuple[list[str], dict]:
        """Return the input `model_name`. `web/transformersr.js` reads the scales, the purposes, and which models support crispness."""
        models = available()
        options = {
            "tooltip": MODEL_TOOLTIP,
            "scales": {label: scale_of(path) for label, path in models.items()},
            "purposes": PURPOSES,
            "crisp": models_with_crisp_version(),
        }
        return list(models), {**options, **({"default": next(iter(models))} if models else {})}

    @staticmethod
    def crispness_input() -> dict:
        return {"crispness": ("FLOAT", {"default": Settings.crispness, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": CRISPNESS_TOOLTIP})}

    @classmethod
    def VALIDATE_INPUTS(cls, model_name: str | None = None, crispness: float | None = None) -> bool | str:
        """Reject a missing model and an unsupported crispness before anything runs. None stands for a value from another node."""
        try:
            if model_name is not None:
                find_label(model_name)
            check_crispness(model_name, crispness)
        except FileNotFoundError as error:
            return f"{error}. Put a TransformerSR file into models/upscale_models and press R, or choose another model in the node."
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, model_name: str | None = None, **others) -> str:
        """Return a value that changes when a model file is replaced."""
        return "" if model_name is None else version_of(model_name)


class _UpscaleNode(_ModelNode):
    """Base of the nodes that run a network: handles the size inputs and caches the network of the last run."""

    @staticmethod
    def size_inputs() -> dict:
        side = {"default": 0, "min": 0, "max": LONGEST_SIDE, "step": 1}
        return {
            "size_by": (list(SIZE_BY), {"default": Settings.size_by, "tooltip": SIZE_BY_TOOLTIP}),
            "factor": (
                "FLOAT",
                {"default": Settings.factor, "min": 0.1, "max": 16.0, "step": 0.05, "round": 0.001, "tooltip": FACTOR_TOOLTIP},
            ),
            "width": ("INT", {**side, "tooltip": WIDTH_TOOLTIP}),
            "height": ("INT", {**side, "tooltip": HEIGHT_TOOLTIP}),
            "longest_side": ("INT", {**side, "default": Settings.longest_side, "min": 1, "tooltip": LONGEST_TOOLTIP}),
        }

    @staticmethod
    def advanced_inputs() -> dict:
        memory = {"default": Settings.memory_gb, "min": 0.0, "max": 1024.0, "step": 0.25, "advanced": True, "tooltip": MEMORY_TOOLTIP}
        return {
            "precision": (["auto", *DTYPES], {"default": Settings.precision, "advanced": True, "tooltip": PRECISION_TOOLTIP}),
            "memory_gb": ("FLOAT", memory),
        }

    @classmethod
    def added_inputs(cls) -> dict:
        """Return inputs that were added later. They must come last, because saved workflows store values by position."""
        ensemble = ("BOOLEAN", {"default": Settings.ensemble, "advanced": True, "tooltip": ENSEMBLE_TOOLTIP})
        return {**cls.crispness_input(), "ensemble": ensemble}

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        model_name: str | None = None,
        crispness: float | None = None,
        size_by: str | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> bool | str:
        """Reject a missing model, an invalid size and an invalid crispness. None stands for a value from another node.

        The host does not check the inputs that are parameters of this method.
        """
        if size_by is not None and size_by not in SIZE_BY:
            return f"size by is {size_by!r}; expected one of {', '.join(SIZE_BY)}"
        for name, side in (("width", width), ("height", height)):
            if side is not None and not 0 <= side <= LONGEST_SIDE:
                return f"{name} is {side}; expected 0 to {LONGEST_SIDE}"
        if size_by == EXACT and (width, height) == (0, 0):
            return NO_SIZE
        return super().VALIDATE_INPUTS(model_name, crispness)

    def __init__(self):
        self._key: tuple | None = None
        self._patcher: comfy.model_patcher.ModelPatcher | None = None

    def _upscaler(self, model_name: str, settings: Settings) -> Upscaler:
        """Return an upscaler, reusing the network of the last run if it is still the right one."""
        if not 0 <= settings.memory_gb < float("inf"):
            raise ValueError(f"memory_gb is {settings.memory_gb}; expected 0 or more")
        dtype = _find_dtype(settings.precision, model_management.get_torch_device())
        key = (version_of(model_name), settings.crispness, dtype)
        if self._patcher is None or self._key != key:
            self._patcher = None  # free the old network first
            self._patcher, self._key = make_patcher(load_network(model_name, settings.crispness).to(dtype)), key
        return _CancellableUpscaler(self._patcher.model, int(settings.memory_gb * 2**30) or None, settings.ensemble)


# --- tooltips and messages -----------------------------------------------------------------------

MODEL_TOOLTIP = (
    "The model that upscales. x4-base: 4x, best quality, from faithful to crisp (see crispness). x4-tiny: 4x, twice as fast. "
    "x4-tiny-cleanup: 4x, removes JPEG artifacts. x2-tiny: 2x. TransformerSR files in "
    "models/upscale_models and models/transformersr are listed below these. After adding a file, press R in the browser."
)
IMAGE_TOOLTIP = "The images to upscale: a single image, a batch or the frames of a video. Transparency is kept."
VIDEO_TOOLTIP = "The video to upscale, of any length. Sound, subtitles and frame timestamps are kept."
SIZE_BY_TOOLTIP = (
    "How to set the size of the result. model scale: the model's own scale, 4x for an x4 model. factor, width and height, longest side: "
    "enter the value in the input that appears. The model upscales to at least that size; the result is then resized down to it."
)
FACTOR_TOOLTIP = "How many times longer each side becomes. Used when size by is factor."
WIDTH_TOOLTIP = "Width of the result in pixels. 0 keeps the aspect ratio. Used when size by is width and height."
HEIGHT_TOOLTIP = "Height of the result in pixels. 0 keeps the aspect ratio. Used when size by is width and height."
LONGEST_TOOLTIP = "Longer side of the result in pixels. The other side keeps the aspect ratio. Used when size by is longest side."
PRECISION_TOOLTIP = (
    "Number format of the model. auto: fp16 on GPUs that are fast at it, otherwise fp32. An image that overflows in half precision is "
    "automatically retried in fp32."
)
MEMORY_TOOLTIP = (
    "The most memory in GB that the model may use. 0 uses what is free. Less memory is slower but gives the same image, without tiles "
    "or seams."
)
MASK_TOOLTIP = (
    "Optional. Only the masked area is upscaled by the model; the rest is resized normally, and the edge is soft. The model still "
    "processes the whole image, so a mask does not save time."
)
CRISPNESS_TOOLTIP = (
    "0 is faithful to the pixels. 1 gives the crispest lines and invents some detail, for images straight from a diffusion model. "
    "Only for models with a crisp version, such as x4-base."
)
ENSEMBLE_TOOLTIP = (
    "Averages the results of eight rotated and mirrored versions of the image: slightly better, eight times slower. waifu2x calls this TTA."
)
QUALITY_TOOLTIP = "Quality of the H.264 video, from 1 to 100. 95 is visually lossless. Lower values make a smaller file."
NO_SIZE = "width and height are both 0; set one of them (0 keeps the aspect ratio), or choose another option in size by"


# --- nodes ---------------------------------------------------------------------------------------


class TransformerSRUpscale(_UpscaleNode):
    """The main node: image in, larger image out."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {"image": ("IMAGE", {"tooltip": IMAGE_TOOLTIP}), "model_name": cls.model_input()},
            "optional": {
                **cls.size_inputs(),
                **cls.advanced_inputs(),
                "mask": ("MASK", {"tooltip": MASK_TOOLTIP}),
                **cls.added_inputs(),
            },
        }

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The upscaled images, with as many channels as the input.",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"
    DESCRIPTION = (
        "Upscales anime images, drawings and video frames to any size, with clean lines and flat colours. Processes the whole image at "
        "once, with any amount of memory: no tiles, no seams."
    )
    SEARCH_ALIASES = [
        "upscale",
        "upscaler",
        "enlarge",
        "anime",
        "super resolution",
        "SR",
        "waifu2x",
        "Real-ESRGAN",
        "Real-CUGAN",
        "4x",
        "2x",
        "hires fix",
        "AI upscale image",
        "upscale with mask",
    ]

    def upscale(self, image: Tensor, model_name: str, mask: Tensor | None = None, **inputs: Any) -> dict:
        """Upscale `[b, h, w, c]` in [0, 1], to where the host keeps images between nodes. `inputs` are those of `Settings`."""
        settings = Settings(**inputs)
        if not isinstance(image, Tensor) or image.ndim != 4:
            raise ValueError(f"image is {_describe(image)}; expected images [count, height, width, channels]")
        count, old_height, old_width, channels = image.shape
        target = settings.target(old_height, old_width)
        mask = None if mask is None else _fit_mask(mask, count, old_height, old_width)
        with builtin_errors(settings.memory_gb):
            upscaler = self._upscaler(model_name, settings)
            new_height, new_width = target_size(old_height, old_width, upscaler.scale, **target)
            large = _allocate_images(count, new_height, new_width, channels)
            if mask is None or mask.any():
                with on_device(self._patcher, upscaler.memory_required(count, old_height, old_width, **target)):
                    upscaler.upscale_batch(image.movedim(-1, 1), **target, on_progress=_Progress(), out=large.movedim(-1, 1))
        if mask is not None:
            _resize_outside(image, mask, large)
        return _node_result(large, old_height, old_width, upscaler.scale)


class TransformerSRUpscaleVideo(_UpscaleNode):
    """Video in, larger video out, frame by frame through a file, so that a long video needs no more memory than a short one."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        quality = ("INT", {"default": 95, "min": 1, "max": 100, "tooltip": QUALITY_TOOLTIP})
        return {
            "required": {"video": ("VIDEO", {"tooltip": VIDEO_TOOLTIP}), "model_name": cls.model_input()},
            "optional": {**cls.size_inputs(), "quality": quality, **cls.advanced_inputs(), **cls.added_inputs()},
        }

    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The upscaled video. Save Video copies it without re-encoding.",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"
    DESCRIPTION = (
        "Upscales a video of any length in constant memory: frames are read, upscaled and written one at a time. Sound, subtitles and "
        "frame timestamps are kept."
    )
    SEARCH_ALIASES = ["video upscale", "upscale video", "anime video", "video super resolution", "Real-ESRGAN video", "waifu2x video", "4x"]

    def upscale(self, video: object, model_name: str, quality: int = 95, **inputs: Any) -> dict:
        """Upscale the host's video to a file in its temporary folder, as the command line does. `inputs` are those of `Settings`."""
        settings = Settings(**inputs)
        temp = Path(folder_paths.get_temp_directory())
        temp.mkdir(parents=True, exist_ok=True)
        with builtin_errors(settings.memory_gb), as_file(video, temp) as source:
            upscaler = self._upscaler(model_name, settings)
            old_height, old_width = video_size(source)
            target = settings.target(old_height, old_width)
            result = temp / f"transformersr-{uuid.uuid4().hex}{video_suffix(source)}"
            batch_size = frames_together(old_height, old_width, upscaler)
            progress = _Progress()
            with on_device(self._patcher, upscaler.memory_required(batch_size, old_height, old_width, **target)):
                upscale_video(
                    source, result, upscaler, **target, quality=quality, on_progress=lambda share: progress(int(share * 1000), 1000)
                )
        return _node_result(InputImpl.VideoFromFile(str(result)), old_height, old_width, upscaler.scale)


def _core_loader_category() -> str:
    core = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    return getattr(core.get("UpscaleModelLoader"), "CATEGORY", "loaders")


class TransformerSRModelLoader(_ModelNode):
    """Loads a model for core and other node packs: Upscale Image (using Model), Ultimate SD Upscale, anything with an UPSCALE_MODEL."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model_name": cls.model_input()}, "optional": cls.crispness_input()}

    RETURN_TYPES = ("UPSCALE_MODEL",)
    RETURN_NAMES = ("upscale_model",)
    OUTPUT_TOOLTIPS = ("For Upscale Image (using Model), Ultimate SD Upscale and other nodes with an upscale model input.",)
    FUNCTION = "load"
    CATEGORY = _core_loader_category()
    DESCRIPTION = (
        "Loads a TransformerSR model for nodes with an upscale model input. Those nodes cut the image into tiles. Upscale (TransformerSR) "
        "does not, and needs no loader."
    )
    SEARCH_ALIASES = ["upscale model", "load upscaler", "transformersr", "anime upscaler", "Ultimate SD Upscale model"]

    def load(self, model_name: str, crispness: float = 0.0) -> tuple:
        """Return what core's loader returns: spandrel's model descriptor, with the patcher that new versions of ComfyUI expect."""
        from .upscale.spandrel_arch import describe, register

        register()
        with builtin_errors():
            network = load_network(model_name, crispness)
        model = describe(network.config, network.state_dict())
        model.patcher = make_patcher(model.model)
        return (model,)


# --- conversion between the host and `upscale` ---------------------------------------------------


class _Progress:
    """Updates the host's progress bar after every band. Raises the host's exception if the user has cancelled."""

    STEPS = 1000

    def __init__(self):
        self.bar = comfy.utils.ProgressBar(self.STEPS)
        self.last_step = 0

    def __call__(self, done: int, total: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        step = done * self.STEPS // total
        if step != self.last_step:
            self.last_step = step
            self.bar.update_absolute(step)


class _CancellableUpscaler(Upscaler):
    """Can be cancelled within a frame: a video reports its progress once per frame, and a frame may take long."""

    def __call__(self, image, factor=None, size=None, on_progress=None):
        def check(done: int, total: int) -> None:
            model_management.throw_exception_if_processing_interrupted()
            if on_progress is not None:
                on_progress(done, total)

        return super().__call__(image, factor, size, check)


@contextmanager
def as_file(video: Any, folder: Path) -> Iterator[Path]:
    """Yield the host's video as a file: the original one, or a temporary one if the video was trimmed or is in memory."""
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    untrimmed = not any(video.get_active_trim_window()) if hasattr(video, "get_active_trim_window") else True
    if isinstance(source, str) and untrimmed:
        yield Path(source)
        return
    copy = folder / f"transformersr-{uuid.uuid4().hex}-source.mp4"
    try:
        if source is not None and untrimmed:
            copy = copy if "mp4" in video.get_container_format() else copy.with_suffix(".mkv")
            copy.write_bytes(source.getbuffer())
        elif "crf" in inspect.signature(video.save_to).parameters:
            video.save_to(str(copy), crf=0)
        else:
            logger.warning("TransformerSR: this ComfyUI can only encode in-memory video lossily; upscale the frames before Create Video")
            video.save_to(str(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _describe(image: object) -> str:
    return f"of shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"


def _find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the requested precision. "auto" is half precision only if the host supports it on this device and allows it."""
    dtype = find_dtype(precision, device)
    if precision == "auto" and dtype == torch.float16 and not model_management.should_use_fp16(device):
        return torch.float32
    return dtype


def _allocate_images(count: int, height: int, width: int, channels: int) -> Tensor:
    """Allocate the result where the host keeps images between nodes. Raises MemoryBudgetError if there is not enough memory."""
    dtype = getattr(model_management, "intermediate_dtype", lambda: torch.float32)()  # missing in older ComfyUI
    try:
        return torch.empty(count, height, width, channels, dtype=dtype, device=model_management.intermediate_device())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        needed = count * height * width * channels * dtype.itemsize / 2**30
        raise MemoryBudgetError(
            f"the result, {count} of {width}x{height}, needs {needed:.1f} GiB, more than is free; choose a smaller size or fewer frames"
        ) from error


def _fit_mask(mask: Tensor, count: int, height: int, width: int) -> Tensor:
    """Convert the host's mask to `(b, 1, h, w)` at the images' size, 1 where the network's result is used, with soft edges."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if len(mask) not in (1, count):
        raise ValueError(f"mask has {len(mask)} frames and image has {count}; expected the same number, or a single mask")
    if mask.shape[2:] != (height, width):
        mask = F.interpolate(mask, (height, width), mode="bilinear", align_corners=False, antialias=True)
    padded = F.pad(mask.clamp(0, 1), [FEATHER] * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * FEATHER + 1, stride=1).expand(count, -1, -1, -1)


def _resize_outside(image: Tensor, mask: Tensor, large: Tensor) -> None:
    """Blend a plain resize of `image` into `large` wherever `mask`, which has `image`'s size, is below 1; one image at a time."""
    for index in range(len(image)):
        size = large.shape[1:3]
        plain = F.interpolate(image[index : index + 1].movedim(-1, 1).float(), size, mode="bicubic", align_corners=False, antialias=True)
        weight = F.interpolate(mask[index : index + 1].to(plain.device), size, mode="bilinear", align_corners=False)[0, 0, ..., None]
        plain = plain[0].movedim(0, -1).clamp(0, 1).to(large.device)
        weight = weight.to(large.device)
        large[index] = torch.where(weight > 0, plain.lerp(large[index].float(), weight), plain).to(large.dtype)


def _node_result(result: object, height: int, width: int, scale: int) -> dict:
    """Return a node's result, with the input's size and the model's scale, from which `web/transformersr.js` shows the new size."""
    return {"ui": {"transformersr": [{"width": width, "height": height, "scale": scale}]}, "result": (result,)}


NODE_CLASS_MAPPINGS = {
    "TransformerSRUpscale": TransformerSRUpscale,
    "TransformerSRModelLoader": TransformerSRModelLoader,
    **({"TransformerSRUpscaleVideo": TransformerSRUpscaleVideo} if InputImpl else {}),
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "TransformerSRUpscale": "Upscale (TransformerSR)",
    "TransformerSRUpscaleVideo": "Upscale Video (TransformerSR)",
    "TransformerSRModelLoader": "Load TransformerSR Model",
}
