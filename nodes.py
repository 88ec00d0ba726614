"""ComfyUI nodes: the host's image, device, memory, progress bar and Cancel handed to `upscale`.

Node ids, input names, options and defaults are saved in people's workflows: they may be added to and never changed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .arch import load_model
from .arch.checkpoint import read_checkpoint
from .upscale.memory import is_out_of_memory
from .upscale.models import as_safetensors, find_in_list, list_models, stamp
from .upscale.planning import MemoryBudgetError, proportional_size, target_size
from .upscale.upscaler import DTYPES, Upscaler, find_dtype, find_model

FOLDERS = ("upscale_models", "transformersr")
MODEL_SCALE, FACTOR, EXACT, LONGEST = "model scale", "factor", "width and height", "longest side"

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
    return list_models(folder for kind in FOLDERS for folder in folder_paths.get_folder_paths(kind))


def safetensors_of(label: str) -> Path:
    """The file of a label, as safetensors. Raises FileNotFoundError, CheckpointError, OSError with one sentence."""
    return as_safetensors(find_model(find_in_list(label, available())), Path(folder_paths.get_user_directory(), "transformersr"))


def managed(model: nn.Module) -> ModelPatcher:
    """A network in the host's care: on the device while it works, and off it when somebody else needs the room."""
    return ModelPatcher(model, load_device=model_management.get_torch_device(), offload_device=model_management.unet_offload_device())


@contextmanager
def on_device(patcher: ModelPatcher, memory: int) -> Iterator[None]:
    """Have a network on its device, and `memory` bytes free beside it. Afterwards it stays there for as long as the host likes."""
    model_management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    stayed = any(parameter.device != patcher.load_device for parameter in patcher.model.parameters())
    patcher.model.to(patcher.load_device)
    try:
        yield
    finally:
        if stayed:  # the host moves only layers of its own kind when it is short of memory (--novram)
            patcher.model.to(patcher.offload_device)


@contextmanager
def naming_the_input(memory_gb: float) -> Iterator[None]:
    """Say where the budget that is too small was set: in the node, under another name."""
    try:
        yield
    except MemoryBudgetError as error:
        if memory_gb:
            raise MemoryBudgetError(f"{error}. The budget is memory (GB) in this node; 0 takes what is free") from error
        raise


class _ChoosesModel:
    """What the nodes with a list of models have in common."""

    @staticmethod
    def choice() -> tuple[list[str], dict]:
        """The input `model_name`."""
        labels = list(available())
        return labels, {"tooltip": MODEL_TOOLTIP, **({"default": labels[0]} if labels else {})}

    @classmethod
    def VALIDATE_INPUTS(cls, model_name: str | None = None) -> bool | str:
        """Refuse a model that is not there before anything runs; the name is None where another node is going to give it."""
        try:
            if model_name is not None:
                find_in_list(model_name, available())
        except FileNotFoundError as error:
            return f"{error}. Put a TransformerSR file into models/upscale_models and press R, or choose another model in the node."
        return True

    @classmethod
    def IS_CHANGED(cls, model_name: str | None = None, **others) -> str:
        """Another value when the file has been replaced."""
        return "" if model_name is None else stamp(find_in_list(model_name, available()))


# --- texts ---------------------------------------------------------------------------------------

MODEL_TOOLTIP = (
    "The network that enlarges. x4-tiny and its like come with the node; TransformerSR files in models/upscale_models and "
    "models/transformersr are listed after them. Press R in the browser after adding one."
)
IMAGE_TOOLTIP = "The pictures to enlarge: one, a batch, or all the frames of a video. Transparency is kept."
SIZE_BY_TOOLTIP = (
    "What decides the size of the result. model scale: the model's own, x4 for an x4 model, and the sharpest. factor, width and height, "
    "longest side: the numbers below; the network enlarges until that size is reached, and what is too much is resized smoothly."
)
FACTOR_TOOLTIP = "How many times longer each side becomes. Counts where size by is factor."
WIDTH_TOOLTIP = "Width of the result in pixels; 0 keeps the proportions. Counts where size by is width and height."
HEIGHT_TOOLTIP = "Height of the result in pixels; 0 keeps the proportions. Counts where size by is width and height."
LONGEST_TOOLTIP = "The longer side of the result in pixels; the other keeps the proportions. Counts where size by is longest side."
PRECISION_TOOLTIP = (
    "Number format of the network. auto: fp16 on cards that are fast in it, else fp32. A picture that half precision cannot do is done "
    "again in fp32 by itself."
)
MEMORY_TOOLTIP = (
    "The most memory in GB that the network may work in; 0 takes what is free. Less is slower and gives the same picture: there are no "
    "tiles and no seams."
)


# --- nodes ---------------------------------------------------------------------------------------


class TransformerSRUpscale(_ChoosesModel):
    """The node people use: image in, larger image out."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        side = {"default": 0, "min": 0, "max": 65536, "step": 1}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": IMAGE_TOOLTIP}),
                "model_name": cls.choice(),
            },
            "optional": {
                "size_by": ([MODEL_SCALE, FACTOR, EXACT, LONGEST], {"default": MODEL_SCALE, "tooltip": SIZE_BY_TOOLTIP}),
                "factor": ("FLOAT", {"default": 2.0, "min": 0.1, "max": 16.0, "step": 0.05, "round": 0.001, "tooltip": FACTOR_TOOLTIP}),
                "width": ("INT", {**side, "tooltip": WIDTH_TOOLTIP}),
                "height": ("INT", {**side, "tooltip": HEIGHT_TOOLTIP}),
                "longest_side": ("INT", {**side, "default": 2048, "min": 1, "tooltip": LONGEST_TOOLTIP}),
                "precision": (["auto", *DTYPES], {"default": "auto", "advanced": True, "tooltip": PRECISION_TOOLTIP}),
                "memory_gb": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 1024.0, "step": 0.25, "advanced": True, "tooltip": MEMORY_TOOLTIP},
                ),
            },
        }

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The enlarged pictures, with as many channels as came in.",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"
    DESCRIPTION = (
        "Enlarges anime pictures, drawings and video frames: clean lines, flat colours, any size. The whole picture is worked on as "
        "one, whatever the memory, so there are no tiles and no seams."
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
        "video upscale",
    ]

    def __init__(self):
        self._key: tuple | None = None
        self._patcher: ModelPatcher | None = None

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
    ) -> tuple[Tensor]:
        """`[b, h, w, c]` in [0, 1] to the same, larger, where the host keeps pictures between nodes."""
        if not isinstance(image, Tensor) or image.ndim != 4:
            raise ValueError(f"image is {_kind(image)}; expected pictures [count, height, width, channels]")
        if not 0 <= memory_gb < float("inf"):
            raise ValueError(f"memory_gb is {memory_gb}; expected 0 or more")
        upscaler = self._upscaler(model_name, precision, memory_gb)
        count, old_height, old_width, channels = image.shape
        asked = _size(size_by, (old_height, old_width), factor, (height, width), longest_side)
        new_height, new_width = target_size(old_height, old_width, upscaler.scale, **asked)
        large = _new_images(count, new_height, new_width, channels)
        with naming_the_input(memory_gb), on_device(self._patcher, upscaler.comfortable_memory(count, old_height, old_width, **asked)):
            upscaler.enlarge_batch(image.movedim(-1, 1), **asked, on_progress=_Progress(), out=large.movedim(-1, 1))
        return (large,)

    def _upscaler(self, model_name: str, precision: str, memory_gb: float) -> Upscaler:
        """The network of the last run, if it is still the one asked for."""
        path = safetensors_of(model_name)
        dtype = _dtype(precision, model_management.get_torch_device())
        key = (path, stamp(path), dtype)
        if self._patcher is None or self._key != key:
            self._patcher = None  # not two of them in memory
            self._patcher, self._key = managed(load_model(path).to(dtype)), key
        return Upscaler(self._patcher.model, int(memory_gb * 2**30) or None)


class TransformerSRModelLoader(_ChoosesModel):
    """For the nodes of others: core's upscaling by model, Ultimate SD Upscale, and everything else that takes an UPSCALE_MODEL."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model_name": cls.choice()}}

    RETURN_TYPES = ("UPSCALE_MODEL",)
    RETURN_NAMES = ("upscale_model",)
    OUTPUT_TOOLTIPS = ("For Upscale Image (using Model), Ultimate SD Upscale and other nodes that take an upscale model.",)
    FUNCTION = "load"
    CATEGORY = "loaders"
    DESCRIPTION = (
        "Loads a TransformerSR model for the nodes of others, which run it in tiles of their own. Upscale (TransformerSR) needs no "
        "loader and is the one that gives the exact picture."
    )
    SEARCH_ALIASES = ["upscale model", "load upscaler", "transformersr", "anime upscaler", "Ultimate SD Upscale model"]

    def load(self, model_name: str) -> tuple:
        """What core's loader gives: spandrel's description of the network, and in new versions of ComfyUI a patcher on it."""
        from .upscale.spandrel_arch import describe, register

        register()
        model = describe(read_checkpoint(safetensors_of(model_name)))
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


def _kind(image: object) -> str:
    return f"of shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"


def _size(size_by: str, old: tuple[int, int], factor: float, new: tuple[int, int], longest: int) -> dict:
    """The size asked for, in the words of `Upscaler`; nothing where the model decides. Sizes are (height, width)."""
    if size_by == FACTOR:
        return {"factor": factor}
    if size_by == EXACT and any(new):
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
    """Room for the result where the host keeps pictures between nodes. Raises MemoryBudgetError where there is none."""
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


NODE_CLASS_MAPPINGS = {"TransformerSRUpscale": TransformerSRUpscale, "TransformerSRModelLoader": TransformerSRModelLoader}
NODE_DISPLAY_NAME_MAPPINGS = {
    "TransformerSRUpscale": "Upscale (TransformerSR)",
    "TransformerSRModelLoader": "Load TransformerSR Model",
}
