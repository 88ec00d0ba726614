"""Export a run's weights: as one `.safetensors` file or into a host's models folder."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...arch import TransformerSR
from ...upscale.atomic import write_aside
from ...upscale.checkpoint import CheckpointError, convert_file, load_model, read_checkpoint, read_tensors
from ...upscale.models import SUFFIXES
from ...upscale.upscaler import DTYPES, find_model
from ..config import without_paths
from .advice import resume_command, train_longer_command
from .verdict import weights_name

MAX_ERROR = 1 / 64
"""Largest acceptable change of the result from rounding the weights; fp16 causes about a hundredth of it."""
MODEL_FOLDER_NAMES = ("upscale_models", "transformersr")
"""Names of model folders outside a host, which may be configured to look there."""
HOST_FOLDERS = ("ComfyUI", "webui", "ComfyUI_windows_portable/ComfyUI")
"""Where a host is inside its unpacked archive or install folder."""

# --- what is exported ----------------------------------------------------------------------------


def find_weights(run: str | Path, last: bool = False) -> Path:
    """Find the best or last weights in a run's folder; the path of a file, or the name of a shipped model, stands for itself.

    Raises OSError, and ValueError if the best weights of a run are still its initial ones.
    """
    path = Path(run)
    if not path.is_dir():
        if last:
            raise ValueError(f"{run}: not a folder; --last expects the folder of a run")
        return find_model(run)
    found = path / ("last.safetensors" if last else "best.safetensors")
    if not found.is_file():
        raise FileNotFoundError(f"{found}: no such file; expected the folder of a run that has saved weights, or a weights file")
    record = training_record(found)
    if not last and record.get("step") == 0:
        raise ValueError(_no_improvement_text(path, record.get("settings")))
    return found.resolve()


def _no_improvement_text(run: Path, settings: Any) -> str:
    settings = settings if isinstance(settings, dict) else {}
    init = str(settings.get("init", "none"))
    name = "the random weights it started from" if init == "none" else f"{weights_name(init)}, which it started from"
    longer = train_longer_command(run, settings) or resume_command(run)
    return f"{run}: this run is not better on your images than {name}; train longer ({longer}), or export the last weights with --last"


def model_name(source: Path) -> str:
    """Name weights after their file or their run's folder, including the scale and without a suffix: `x4-anime`."""
    stem = source.resolve().parent.name if source.stem in ("best", "last") else source.stem
    stem = re.sub(r"[^\w.+-]+", "-", stem).strip("-.") or "transformersr"
    scale = f"x{read_checkpoint(source).config.scale}"
    return stem if re.search(rf"(?<![a-z0-9]){scale}(?![0-9])", stem.lower()) else f"{scale}-{stem}"


# --- safetensors ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """A file that was written and verified by loading it."""

    path: Path
    error: float
    """Largest difference from the original's result on a small random image, both in [0, 1]."""


def export_weights(source: Path, target: Path, dtype: str = "fp16") -> Exported:
    """Write weights and their metadata to a new `.safetensors` file.

    Raises FileExistsError if the target exists, and ValueError if the weights do not fit the number format.
    """
    check_new_file(target)
    original, largest = load_model(source), torch.finfo(DTYPES[dtype]).max
    if any(parameter.abs().max() > largest for parameter in original.parameters()):
        raise ValueError(f"{source}: a weight is larger than {largest:g}, the maximum of {dtype}; export it with --dtype fp32")
    with write_aside(target) as aside:
        convert_file(source, aside, DTYPES[dtype], metadata=training_metadata(source))
        error = max_difference(original, load_model(aside))
        if not error <= MAX_ERROR:
            raise ValueError(f"{source}: its result in {dtype} differs by {error:.2g}; export it with --dtype fp32")
    return Exported(target, error)


def check_new_file(target: Path) -> None:
    """Raise ValueError if a weights file should not have this name, and FileExistsError if there is one."""
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: expected a name ending in .safetensors")
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name")


def training_record(weights: Path) -> dict[str, Any]:
    """Read the training record from a weights file's metadata; empty if there is none."""
    try:
        record = json.loads(read_checkpoint(weights).metadata.get("training", ""))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def record_to_share(source: Path) -> dict[str, Any]:
    """The training record of a file itself or of its run's folder, with paths reduced to names; empty if there is none."""
    record, settings_file = training_record(source), source.with_name("config.json")
    if not record and source.stem in ("best", "last") and settings_file.is_file():
        record = {"settings": json.loads(settings_file.read_text(encoding="utf-8"))}
    record = without_paths(record)
    if isinstance(record.get("settings"), dict):
        record["settings"] = without_paths(record["settings"])
    return record


def training_metadata(source: Path) -> dict[str, str]:
    """The training record as metadata of a file to share."""
    record = record_to_share(source)
    return {"training": json.dumps(record)} if record else {}


@torch.inference_mode()
def max_difference(first: TransformerSR, second: TransformerSR) -> float:
    """Largest difference between the results of two networks on the same small random image."""
    image = torch.rand(1, first.config.channels, 33, 25, generator=torch.Generator().manual_seed(0))
    return float((first(image) - second(image)).abs().max())


# --- hosts ---------------------------------------------------------------------------------------


def install_weights(source: Path, folder: Path, name: str, dtype: str = "fp16") -> Exported:
    """Write weights into a folder under a name, numbered if the name is taken; a file with the same content is kept."""
    with TemporaryDirectory() as scratch:
        exported = export_weights(source, Path(scratch, f"{name}.safetensors"), dtype)
        names = (name, *(f"{name}-{number}" for number in range(2, 10_000)))
        paths = (folder / f"{candidate}.safetensors" for candidate in names)
        target = next(path for path in paths if not path.exists() or same_content(path, exported.path))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with write_aside(target) as aside:
                shutil.copyfile(exported.path, aside)
    return Exported(target, exported.error)


def same_content(first: Path, second: Path) -> bool:
    """Whether two weights files hold the same tensors and metadata, in any order."""
    try:
        (tensors, metadata), (others, other_metadata) = read_tensors(first), read_tensors(second)
    except (CheckpointError, OSError):
        return False
    same_names = tensors.keys() == others.keys() and metadata == other_metadata
    return same_names and all(tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def model_folder(folder: Path) -> Path:
    """Find the models folder of the host that a folder is, contains, or is part of.

    Raises ValueError if neither ComfyUI nor a WebUI is recognised.
    """
    folder = folder.resolve()
    for root in (folder, *(folder / name for name in HOST_FOLDERS), *folder.parents[:3]):
        inside = folder == root or folder in root.parents or root / "models" in (folder, *folder.parents)
        if inside and (home := host_model_folder(root)):
            return folder if home in (folder, *folder.parents) else home
    if folder.is_dir() and (folder.name.lower() in MODEL_FOLDER_NAMES or any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())):
        return folder
    raise ValueError(
        f"{folder}: expected the folder of ComfyUI (with models and custom_nodes in it), of a WebUI (with webui.py and modules), "
        "or a models folder"
    )


def host_model_folder(root: Path) -> Path | None:
    """Where a host looks for our models; None if the folder is not a host."""
    models = root / "models"
    if (root / "webui.py").is_file() and (root / "modules").is_dir():
        return models / "TransformerSR"
    is_comfyui = (root / "comfy").is_dir() or (root / "custom_nodes").is_dir()  # the Desktop app keeps its code elsewhere
    if models.is_dir() and (is_comfyui or (models / "upscale_models").is_dir()):
        return models / "upscale_models"
    return None
