"""ComfyUI's models: find them in its folders, load them, and hand them to its memory management."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import comfy.model_patcher
import folder_paths
from comfy import model_management
from torch import nn

from .arch import TransformerSR
from .upscale.models import as_safetensors, find_in_list, list_models, not_weights, stamp
from .upscale.upscaler import crisp_version, find_model, load_blend

logger = logging.getLogger(__name__)

FOLDERS = ("upscale_models", "transformersr")
"""ComfyUI's names of the folders with models."""

folder_paths.add_model_folder_path("transformersr", os.path.join(folder_paths.models_dir, "transformersr"))


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
