"""A stand-in for the parts of ComfyUI that `nodes.py` calls, so that the nodes run in any process."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

CPU = torch.device("cpu")


class ModelPatcher:
    """Like ComfyUI's: a model and its devices; sets `model.device`."""

    def __init__(self, model, load_device, offload_device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        model.device = offload_device

    def is_dynamic(self) -> bool:
        return False


class ModelPatcherDynamic(ModelPatcher):
    """Like that of ComfyUI 0.16 and later, which moves the parameters to the device and back by itself."""

    def is_dynamic(self) -> bool:
        return True


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *, loader: type | None = None) -> types.ModuleType:
    """Install the stand-in with its files in `folder` and import the nodes. `loader` is the core's model loader node."""
    devices = dict.fromkeys(("get_torch_device", "unet_offload_device", "intermediate_device"), lambda: CPU)
    nothing: Callable = lambda *args, **options: None
    calls = dict.fromkeys(("load_models_gpu", "throw_exception_if_processing_interrupted"), nothing)
    parts = {
        "comfy.model_management": {**devices, **calls, "should_use_fp16": lambda device: False},
        "comfy.utils": {"ProgressBar": lambda steps: types.SimpleNamespace(update_absolute=nothing)},
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
        "comfy_api.latest": {"InputImpl": types.SimpleNamespace(VideoFromFile=VideoFromFile)},
        "folder_paths": {
            "models_dir": str(folder),
            "add_model_folder_path": nothing,
            "get_folder_paths": lambda kind: [str(folder / "models")],
            "get_user_directory": lambda: str(folder / "user"),
            "get_temp_directory": lambda: str(folder / "temp"),
        },
        "nodes": {"NODE_CLASS_MAPPINGS": {"UpscaleModelLoader": loader} if loader else {}},
    }
    for package in ("comfy", "comfy_api"):
        parts[package] = {}
    for name, contents in parts.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    for name in parts:
        package, _, part = name.partition(".")
        if part:
            setattr(sys.modules[package], part, sys.modules[name])
    sys.modules.pop("transformersr.nodes", None)  # of an earlier test
    return importlib.import_module("transformersr.nodes")


class VideoFromFile:
    """Like ComfyUI's: a video file, from a start time in seconds."""

    def __init__(self, file: str, start: float = 0.0):
        self.file, self.start = file, start

    def get_stream_source(self) -> str:
        return self.file

    def get_active_trim_window(self) -> tuple[float, float]:
        return self.start, 0.0

    def save_to(self, path: str, crf: float | None = None) -> None:
        Path(path).write_bytes(Path(self.file).read_bytes())
