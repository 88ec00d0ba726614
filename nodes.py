"""ComfyUI nodes: the host's image, device, memory, progress bar and Cancel handed to `upscale`.

Node ids, input names, options and defaults are saved in people's workflows: they may be added to and never changed.
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

from .arch import CheckpointError, TransformerSR
from .upscale.memory import is_out_of_memory
from .upscale.models import as_safetensors, find_in_list, list_models, not_weights, scale_of, stamp
from .upscale.planning import MemoryBudgetError, proportional_size, target_size
from .upscale.upscaler import DTYPES, Upscaler, crisp_sibling, find_dtype, find_model, load_blend
from .upscale.video import frames_together, upscale_video, video_size, video_suffix

try:
    from comfy_api.latest import InputImpl
except ImportError:  # a ComfyUI without the type VIDEO
    InputImpl = None

logger = logging.getLogger(__name__)

FOLDERS = ("upscale_models", "transformersr")
SIZE_BY = MODEL_SCALE, FACTOR, EXACT, LONGEST = "model scale", "factor", "width and height", "longest side"
LONGEST_SIDE = 65536
"""The largest size that the inputs take."""
FEATHER = 4
"""Pixels of the input over which a mask fades to each side of its edge."""
PURPOSES = {"x4-tiny": "faithful to crisp, 4x", "x2-tiny": "faithful, 2x"}
"""What the models that come with the node are for, as their list shows it."""

folder_paths.add_model_folder_path("transformersr", os.path.join(folder_paths.models_dir, "transformersr"))
if "spandrel" in sys.modules:  # always in ComfyUI, whose own loader then opens our files; importing it here would take a second
    from .upscale.spandrel_arch import register

    register()


# --- models --------------------------------------------------------------------------------------


def available() -> dict[str, Path]:
    """Every model there is to choose, label to file. The host asks once for every input of a node, and folders may be far away."""
    return _available(int(time.monotonic()))


@lru_cache(maxsize=1)
def _available(second: int) -> dict[str, Path]:
    folders = _folders()
    for path, reason in not_weights(folders).items():
        _say_once(f"{path} is not listed as a model: {reason}", stamp(path))
    return list_models(folders)


def _folders() -> list[str]:
    return [folder for kind in FOLDERS for folder in folder_paths.get_folder_paths(kind)]


@lru_cache(maxsize=256)
def _say_once(message: str, version: str) -> None:
    logger.warning("TransformerSR: %s", message)


def find_label(label: str) -> Path:
    """The file of a label. Raises FileNotFoundError that says why it is not in the list, where a file of that name is no model."""
    try:
        return find_in_list(label, available())
    except FileNotFoundError as error:
        reasons = {path.name: reason for path, reason in not_weights(_folders()).items()}
        reason = reasons.get(str(label).replace("\\", "/").rpartition("/")[2])
        raise FileNotFoundError(f"{label}: {reason}" if reason else str(error)) from None


def safetensors_of(label: str) -> Path:
    """The file of a label, as safetensors. Raises FileNotFoundError, CheckpointError, OSError with one sentence."""
    return as_safetensors(find_model(find_label(label)), Path(folder_paths.get_user_directory(), "transformersr"))


def version_of(label: str) -> str:
    """Another text when the file of a label or its crisp sibling is another one, or has been replaced."""
    path = find_label(label)
    return " ".join(f"{file} {stamp(file)}" for file in (path, crisp_sibling(path)) if file)


def check_crispness(label: str | None, crispness: float | None) -> None:
    """Raise ValueError for a crispness that is none, or that the model cannot have; what another node is going to give is None."""
    if crispness is None:
        return
    if not 0 <= crispness <= 1:
        raise ValueError(f"crispness is {crispness}; expected a number from 0 to 1")
    if crispness and label is not None and crisp_sibling(find_label(label)) is None:
        having = ", ".join(with_crisp_sibling()) or "none"
        raise ValueError(f"{label} has no crisp sibling, so crispness has to be 0; models with one: {having}")


def with_crisp_sibling() -> list[str]:
    """The labels of the models for which crispness can be above 0."""
    return [label for label, path in available().items() if crisp_sibling(path)]


def load_network(label: str, crispness: float) -> TransformerSR:
    """The network of a label. Raises ValueError, FileNotFoundError, CheckpointError, OSError with one sentence."""
    check_crispness(label, crispness)
    # the siblings lie side by side under their own names, which a converted copy may not
    return load_blend(find_model(find_label(label)) if crispness else safetensors_of(label), crispness)


def managed(model: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """A network in the host's care: on the device while it works, and off it when another model needs the room.

    `CoreModelPatcher` is the class that the host's own models have; the host decides at its start which one that is. Among models of
    another class ours would make the host drop them all to make room.
    """
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=model_management.get_torch_device(), offload_device=model_management.unet_offload_device())


@contextmanager
def on_device(patcher: comfy.model_patcher.ModelPatcher, memory: int) -> Iterator[None]:
    """Have a network on its device, and `memory` bytes free next to it. Afterwards it stays there for as long as the host likes."""
    model_management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    if getattr(patcher, "is_dynamic", bool)():  # swaps the parameters itself
        yield
        return
    stayed = any(parameter.device != patcher.load_device for parameter in patcher.model.parameters())
    patcher.model.to(patcher.load_device)
    try:
        yield
    finally:
        if stayed:  # the host moves only layers of its own kind when it is short of memory (--novram)
            patcher.model.to(patcher.offload_device)


@contextmanager
def in_the_hosts_words(memory_gb: float = 0.0) -> Iterator[None]:
    """Our errors as Python's own: the host shows the class, with the path of its module where it is somebody's.

    A budget that is too small was set in the node, under another name.
    """
    try:
        yield
    except MemoryBudgetError as error:
        hint = ". The budget is memory (GB) in this node; 0 takes what is free" if memory_gb else ""
        raise ValueError(f"{error}{hint}") from error
    except CheckpointError as error:
        raise ValueError(str(error)) from error


class _ChoosesModel:
    """What the nodes with a list of models have in common."""

    @staticmethod
    def choice() -> tuple[list[str], dict]:
        """The input `model_name`; `web/transformersr.js` reads the scales, the purposes, and which models have a crispness."""
        models = available()
        options = {
            "tooltip": MODEL_TOOLTIP,
            "scales": {label: scale_of(path) for label, path in models.items()},
            "purposes": PURPOSES,
            "crisp": with_crisp_sibling(),
        }
        return list(models), {**options, **({"default": next(iter(models))} if models else {})}

    @staticmethod
    def crispness_input() -> dict:
        return {"crispness": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": CRISPNESS_TOOLTIP})}

    @classmethod
    def VALIDATE_INPUTS(cls, model_name: str | None = None, crispness: float | None = None) -> bool | str:
        """Refuse a model that is not there, and a crispness that it cannot have, before anything runs.

        What another node is going to give is None.
        """
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
        """Another value when a file has been replaced."""
        return "" if model_name is None else version_of(model_name)


class _Upscales(_ChoosesModel):
    """What the nodes that run a network have in common: the choice of the size, and the network of the last run."""

    @staticmethod
    def size_inputs() -> dict:
        side = {"default": 0, "min": 0, "max": LONGEST_SIDE, "step": 1}
        return {
            "size_by": (list(SIZE_BY), {"default": MODEL_SCALE, "tooltip": SIZE_BY_TOOLTIP}),
            "factor": ("FLOAT", {"default": 2.0, "min": 0.1, "max": 16.0, "step": 0.05, "round": 0.001, "tooltip": FACTOR_TOOLTIP}),
            "width": ("INT", {**side, "tooltip": WIDTH_TOOLTIP}),
            "height": ("INT", {**side, "tooltip": HEIGHT_TOOLTIP}),
            "longest_side": ("INT", {**side, "default": 2048, "min": 1, "tooltip": LONGEST_TOOLTIP}),
        }

    @staticmethod
    def advanced_inputs() -> dict:
        memory = {"default": 0.0, "min": 0.0, "max": 1024.0, "step": 0.25, "advanced": True, "tooltip": MEMORY_TOOLTIP}
        return {
            "precision": (["auto", *DTYPES], {"default": "auto", "advanced": True, "tooltip": PRECISION_TOOLTIP}),
            "memory_gb": ("FLOAT", memory),
        }

    @classmethod
    def later_inputs(cls) -> dict:
        """Those that came later: after all others, where the values in workflows saved before still fit."""
        ensemble = ("BOOLEAN", {"default": False, "advanced": True, "tooltip": ENSEMBLE_TOOLTIP})
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
        """Refuse a model that is not there, a size that is none, a crispness that cannot be; what another node is going to give is None.

        The host checks nothing about an input that is named here.
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

    def _upscaler(self, model_name: str, precision: str, memory_gb: float, crispness: float, ensemble: bool) -> Upscaler:
        """The network of the last run, if it is still the one asked for."""
        if not 0 <= memory_gb < float("inf"):
            raise ValueError(f"memory_gb is {memory_gb}; expected 0 or more")
        dtype = _dtype(precision, model_management.get_torch_device())
        key = (version_of(model_name), crispness, dtype)
        if self._patcher is None or self._key != key:
            self._patcher = None  # not two of them in memory
            self._patcher, self._key = managed(load_network(model_name, crispness).to(dtype)), key
        return _Cancellable(self._patcher.model, int(memory_gb * 2**30) or None, ensemble)


# --- texts ---------------------------------------------------------------------------------------

MODEL_TOOLTIP = (
    "The network. x4-tiny: 4x, from faithful to crisp, see crispness. x2-tiny: faithful, 2x. TransformerSR files in "
    "models/upscale_models and models/transformersr are listed after these. Press R in the browser after adding one."
)
IMAGE_TOOLTIP = "The images to upscale: one, a batch, or the frames of a video. Transparency is kept."
VIDEO_TOOLTIP = "The video to upscale, of any length. Sound, subtitles and frame times are kept."
SIZE_BY_TOOLTIP = (
    "How the size of the result is set. model scale: the model's own, 4x for an x4 model; the sharpest. factor, width and height, longest "
    "side: the input that then appears. The network runs until that size is reached; the result is then resized down to the exact size."
)
FACTOR_TOOLTIP = "How many times longer each side becomes. Used when size by is factor."
WIDTH_TOOLTIP = "Width of the result in pixels; 0 keeps the proportions. Used when size by is width and height."
HEIGHT_TOOLTIP = "Height of the result in pixels; 0 keeps the proportions. Used when size by is width and height."
LONGEST_TOOLTIP = "The longer side of the result in pixels; the other keeps the proportions. Used when size by is longest side."
PRECISION_TOOLTIP = (
    "Number format of the network. auto: fp16 on cards that are fast in it, else fp32. An image that overflows in half precision is "
    "automatically retried in fp32."
)
MEMORY_TOOLTIP = (
    "The most memory in GB that the network may use; 0 takes what is free. Less is slower and gives the same image: there are no tiles "
    "and no seams."
)
MASK_TOOLTIP = (
    "Optional: only what the mask covers comes from the network, the rest from a plain resize, with a soft edge. The network still sees "
    "the whole image, so a mask does not save time."
)
CRISPNESS_TOOLTIP = (
    "0 is faithful to the pixels; 1 has the crispest lines, for images straight from a diffusion model. Only for models that have a crisp "
    "sibling, such as x4-tiny."
)
ENSEMBLE_TOOLTIP = (
    "Averages over eight turned and mirrored versions of the image: slightly better, eight times slower. waifu2x calls it TTA."
)
QUALITY_TOOLTIP = "Quality of the H.264 video, 1 to 100. 95 is visually lossless; lower makes a smaller file."
NO_SIZE = "width and height are both 0; set one of them (0 keeps the proportions), or choose another size by"


# --- nodes ---------------------------------------------------------------------------------------


class TransformerSRUpscale(_Upscales):
    """The node people use: image in, larger image out."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {"image": ("IMAGE", {"tooltip": IMAGE_TOOLTIP}), "model_name": cls.choice()},
            "optional": {
                **cls.size_inputs(),
                **cls.advanced_inputs(),
                "mask": ("MASK", {"tooltip": MASK_TOOLTIP}),
                **cls.later_inputs(),
            },
        }

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The upscaled images, with as many channels as came in.",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"
    DESCRIPTION = (
        "Upscales anime images, drawings and video frames: clean lines, flat colours, any size. The whole image is processed at once, "
        "whatever the memory, so there are no tiles and no seams."
    )
    SEARCH_ALIASES = [
        "upscale",
        "upscaler",
        "upscale",
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

    def upscale(
        self,
        image: Tensor,
        model_name: str,
        size_by: str = MODEL_SCALE,
        factor: float = 2.0,
        width: int = 0,
        height: int = 0,
        longest_side: int = 2048,
        precision: str = "auto",
        memory_gb: float = 0.0,
        mask: Tensor | None = None,
        crispness: float = 0.0,
        ensemble: bool = False,
    ) -> dict:
        """`[b, h, w, c]` in [0, 1] to the same, larger, where the host keeps images between nodes."""
        if not isinstance(image, Tensor) or image.ndim != 4:
            raise ValueError(f"image is {_kind(image)}; expected images [count, height, width, channels]")
        count, old_height, old_width, channels = image.shape
        asked = _size(size_by, (old_height, old_width), factor, (height, width), longest_side)
        covered = None if mask is None else _fitted(mask, count, old_height, old_width)
        with in_the_hosts_words(memory_gb):
            upscaler = self._upscaler(model_name, precision, memory_gb, crispness, ensemble)
            new_height, new_width = target_size(old_height, old_width, upscaler.scale, **asked)
            large = _new_images(count, new_height, new_width, channels)
            if covered is None or covered.any():
                with on_device(self._patcher, upscaler.memory_required(count, old_height, old_width, **asked)):
                    upscaler.upscale_batch(image.movedim(-1, 1), **asked, on_progress=_Progress(), out=large.movedim(-1, 1))
        if covered is not None:
            _resize_outside(image, covered, large)
        return _with_size((large,), old_height, old_width, upscaler.scale)


class TransformerSRUpscaleVideo(_Upscales):
    """A video in, a larger one out, frame by frame through a file, so that its length costs no memory."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        quality = ("INT", {"default": 95, "min": 1, "max": 100, "tooltip": QUALITY_TOOLTIP})
        return {
            "required": {"video": ("VIDEO", {"tooltip": VIDEO_TOOLTIP}), "model_name": cls.choice()},
            "optional": {**cls.size_inputs(), "quality": quality, **cls.advanced_inputs(), **cls.later_inputs()},
        }

    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The upscaled video, for Save Video, which copies it without encoding it again.",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"
    DESCRIPTION = (
        "Upscales a video of any length in constant memory: frames are read, upscaled and written one after the other. Sound, subtitles "
        "and frame times are kept."
    )
    SEARCH_ALIASES = ["video upscale", "upscale video", "anime video", "video super resolution", "Real-ESRGAN video", "waifu2x video", "4x"]

    def upscale(
        self,
        video: object,
        model_name: str,
        size_by: str = MODEL_SCALE,
        factor: float = 2.0,
        width: int = 0,
        height: int = 0,
        longest_side: int = 2048,
        quality: int = 95,
        precision: str = "auto",
        memory_gb: float = 0.0,
        crispness: float = 0.0,
        ensemble: bool = False,
    ) -> dict:
        """The host's video to one in its folder of temporary files, the same as the command line makes."""
        temp = Path(folder_paths.get_temp_directory())
        temp.mkdir(parents=True, exist_ok=True)
        with in_the_hosts_words(memory_gb), as_file(video, temp) as source:
            upscaler = self._upscaler(model_name, precision, memory_gb, crispness, ensemble)
            old_height, old_width = video_size(source)
            asked = _size(size_by, (old_height, old_width), factor, (height, width), longest_side)
            target = temp / f"transformersr-{uuid.uuid4().hex}{video_suffix(source)}"
            together = frames_together(old_height, old_width, upscaler)
            progress = _Progress()
            with on_device(self._patcher, upscaler.memory_required(together, old_height, old_width, **asked)):
                upscale_video(
                    source, target, upscaler, **asked, quality=quality, on_progress=lambda share: progress(int(share * 1000), 1000)
                )
        return _with_size((InputImpl.VideoFromFile(str(target)),), old_height, old_width, upscaler.scale)


def _category_of_cores_loader() -> str:
    core = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    return getattr(core.get("UpscaleModelLoader"), "CATEGORY", "loaders")


class TransformerSRModelLoader(_ChoosesModel):
    """For other node packs and core: Upscale Image (using Model), Ultimate SD Upscale, and whatever else takes an UPSCALE_MODEL."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model_name": cls.choice()}, "optional": cls.crispness_input()}

    RETURN_TYPES = ("UPSCALE_MODEL",)
    RETURN_NAMES = ("upscale_model",)
    OUTPUT_TOOLTIPS = ("For Upscale Image (using Model), Ultimate SD Upscale and other nodes that take an upscale model.",)
    FUNCTION = "load"
    CATEGORY = _category_of_cores_loader()
    DESCRIPTION = (
        "Loads a TransformerSR model for other nodes, which run it in tiles of their own. Upscale (TransformerSR) needs no loader, and "
        "it is the one that gives the exact image."
    )
    SEARCH_ALIASES = ["upscale model", "load upscaler", "transformersr", "anime upscaler", "Ultimate SD Upscale model"]

    def load(self, model_name: str, crispness: float = 0.0) -> tuple:
        """What core's loader gives: spandrel's description of the network, and in new versions of ComfyUI a patcher on it."""
        from .upscale.spandrel_arch import describe, register

        register()
        with in_the_hosts_words():
            network = load_network(model_name, crispness)
        model = describe(network.config, network.state_dict())
        model.patcher = managed(model.model)
        return (model,)


# --- translation ---------------------------------------------------------------------------------


class _Progress:
    """Tells the host of the progress after every band. The host raises there when the user cancels."""

    STEPS = 1000

    def __init__(self):
        self.bar = comfy.utils.ProgressBar(self.STEPS)
        self.shown = 0

    def __call__(self, done: int, total: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        step = done * self.STEPS // total
        if step != self.shown:
            self.shown = step
            self.bar.update_absolute(step)


class _Cancellable(Upscaler):
    """Stops within a frame too when the user cancels: a video's progress is counted in frames, and one may take long."""

    def __call__(self, image, factor=None, size=None, on_progress=None):
        def check(done: int, total: int) -> None:
            model_management.throw_exception_if_processing_interrupted()
            if on_progress is not None:
                on_progress(done, total)

        return super().__call__(image, factor, size, check)


@contextmanager
def as_file(video: Any, folder: Path) -> Iterator[Path]:
    """The host's video as a file: the one it comes from, or a temporary one for a video that was trimmed or is in memory."""
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    whole = not any(video.get_active_trim_window()) if hasattr(video, "get_active_trim_window") else True
    if isinstance(source, str) and whole:
        yield Path(source)
        return
    copy = folder / f"transformersr-{uuid.uuid4().hex}-source.mp4"
    try:
        if source is not None and whole:
            copy = copy if "mp4" in video.get_container_format() else copy.with_suffix(".mkv")
            copy.write_bytes(source.getbuffer())
        elif "crf" in inspect.signature(video.save_to).parameters:
            video.save_to(str(copy), crf=0)
        else:
            logger.warning("TransformerSR: this ComfyUI encodes frames in memory with loss; upscale them before Create Video instead")
            video.save_to(str(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _kind(image: object) -> str:
    return f"of shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"


def _size(size_by: str, old: tuple[int, int], factor: float, new: tuple[int, int], longest: int) -> dict:
    """The size asked for, in the words of `Upscaler`; nothing where the model decides. Sizes are (height, width)."""
    if size_by == FACTOR:
        return {"factor": factor}
    if size_by == EXACT:
        if not any(new):
            raise ValueError(NO_SIZE)
        return {"size": proportional_size(*old, *new)}
    if size_by == LONGEST:
        return {"size": proportional_size(*old, *((longest, 0) if old[0] > old[1] else (0, longest)))}
    return {}


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    """The precision asked for; "auto" is half only where the host does not think that it is slow or broken, or has been told so."""
    dtype = find_dtype(precision, device)
    if precision == "auto" and dtype == torch.float16 and not model_management.should_use_fp16(device):
        return torch.float32
    return dtype


def _new_images(count: int, height: int, width: int, channels: int) -> Tensor:
    """Room for the result where the host keeps images between nodes. Raises MemoryBudgetError where there is none."""
    dtype = getattr(model_management, "intermediate_dtype", lambda: torch.float32)()  # newer than most installations
    try:
        return torch.empty(count, height, width, channels, dtype=dtype, device=model_management.intermediate_device())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        needed = count * height * width * channels * dtype.itemsize / 2**30
        raise MemoryBudgetError(
            f"the result, {count} of {width}x{height}, needs {needed:.1f} GiB, more than there is; make it smaller or take fewer frames"
        ) from error


def _fitted(mask: Tensor, count: int, height: int, width: int) -> Tensor:
    """A mask of the host's as `(b, 1, h, w)` of the images' size, 1 where the network's result is wanted, with soft edges."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if len(mask) not in (1, count):
        raise ValueError(f"mask has {len(mask)} frames and image {count}; expected as many, or one for all")
    if mask.shape[2:] != (height, width):
        mask = F.interpolate(mask, (height, width), mode="bilinear", align_corners=False, antialias=True)
    padded = F.pad(mask.clamp(0, 1), [FEATHER] * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * FEATHER + 1, stride=1).expand(count, -1, -1, -1)


def _resize_outside(image: Tensor, covered: Tensor, large: Tensor) -> None:
    """Put a plain resize of `image` into `large` wherever `covered`, of `image`'s size, is below 1. One image after the other."""
    for index in range(len(image)):
        size = large.shape[1:3]
        plain = F.interpolate(image[index : index + 1].movedim(-1, 1).float(), size, mode="bicubic", align_corners=False, antialias=True)
        share = F.interpolate(covered[index : index + 1].to(plain.device), size, mode="bilinear", align_corners=False)[0, 0, ..., None]
        plain = plain[0].movedim(0, -1).clamp(0, 1).to(large.device)
        share = share.to(large.device)
        large[index] = torch.where(share > 0, plain.lerp(large[index].float(), share), plain).to(large.dtype)


def _with_size(result: tuple, height: int, width: int, scale: int) -> dict:
    """A result, and for the page the size of what came in and the model's scale: `web/transformersr.js` shows the resulting size."""
    return {"ui": {"transformersr": [{"width": width, "height": height, "scale": scale}]}, "result": result}


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
