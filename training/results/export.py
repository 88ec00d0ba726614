"""A run's weights as one file for others: `.safetensors`, in a host's folder, or ONNX."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...arch import CheckpointError, TransformerSR, load_model
from ...arch.atomic import write_aside
from ...arch.checkpoint import convert_file, read_checkpoint, read_tensors
from ...upscale.models import SUFFIXES
from ...upscale.upscaler import DTYPES, find_model
from ..config import without_paths
from .advice import resume, train_longer
from .verdict import weights_name

MOST_ERROR = 1 / 64
"""The largest change of the result by rounding the weights that is not a fault; fp16 makes about a hundredth of it."""
MODEL_FOLDERS = ("upscale_models", "transformersr")
"""Names of folders of models, wherever they are; a host may be told to look there."""
HOST_FOLDERS = ("ComfyUI", "webui", "ComfyUI_windows_portable/ComfyUI")
"""Where a host is in what is unpacked or chosen as its place."""

# --- what is exported ----------------------------------------------------------------------------


def find_weights(run: str | Path, last: bool = False) -> Path:
    """The best or last weights of a run's folder; a file, or a model that comes with the package, is itself.

    Raises OSError, and ValueError for the best weights of a run that are still those that it began with.
    """
    path = Path(run)
    if not path.is_dir():
        if last:
            raise ValueError(f"{run}: --last takes the last weights of a run's folder, and this is none")
        return find_model(run)
    found = path / ("last.safetensors" if last else "best.safetensors")
    if not found.is_file():
        raise FileNotFoundError(f"{found}: no such file; expected the folder of a run that has saved weights, or a file of weights")
    record = training_record(found)
    if not last and record.get("step") == 0:
        raise ValueError(_still_the_start(path, record.get("settings")))
    return found.resolve()


def _still_the_start(run: Path, settings: Any) -> str:
    settings = settings if isinstance(settings, dict) else {}
    init = str(settings.get("init", "none"))
    name = "the random weights that it began with" if init == "none" else f"{weights_name(init)}, which it began with"
    longer = train_longer(run, settings) or resume(run)
    return (
        f"{run}: no weights of this run are better on your images than {name}; train longer ({longer}), or take the last ones with --last"
    )


def model_name(source: Path) -> str:
    """A name without ending for weights, from their file or their run's folder, that says the scale: `x4-anime`."""
    stem = source.resolve().parent.name if source.stem in ("best", "last") else source.stem
    stem = re.sub(r"[^\w.+-]+", "-", stem).strip("-.") or "transformersr"
    scale = f"x{read_checkpoint(source).config.scale}"
    return stem if re.search(rf"(?<![a-z0-9]){scale}(?![0-9])", stem.lower()) else f"{scale}-{stem}"


# --- safetensors ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """A file that was written, loaded again and found good."""

    path: Path
    error: float
    """Largest difference between its result and the original's on a small random image, both in [0, 1]."""


def export_weights(source: Path, target: Path, dtype: str = "fp16") -> Exported:
    """Write weights, with all that is known of them, to a new `.safetensors`.

    Raises FileExistsError where the target exists, ValueError where the weights do not fit the number format.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: expected a name ending in .safetensors")
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name")
    original, largest = load_model(source), torch.finfo(DTYPES[dtype]).max
    if any(parameter.abs().max() > largest for parameter in original.parameters()):
        raise ValueError(f"{source}: a weight is larger than {largest:g}, where {dtype} ends; export it with --dtype fp32")
    with write_aside(target) as aside:
        convert_file(source, aside, DTYPES[dtype], metadata=record_of(source))
        error = largest_difference(original, load_model(aside))
        if not error <= MOST_ERROR:
            raise ValueError(f"{source}: in {dtype} its result differs by {error:.2g}; export it with --dtype fp32")
    return Exported(target, error)


def training_record(weights: Path) -> dict[str, Any]:
    """How weights came to be, as their file has it; empty where it does not say."""
    try:
        record = json.loads(read_checkpoint(weights).metadata.get("training", ""))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def record_of(source: Path) -> dict[str, str]:
    """How weights came to be, as metadata of a file for others: as in the file, or from the run beside it, with paths cut to names."""
    record, settings_file = training_record(source), source.with_name("config.json")
    if not record and source.stem in ("best", "last") and settings_file.is_file():
        record = {"settings": json.loads(settings_file.read_text(encoding="utf-8"))}
    if not record:
        return {}
    record = without_paths(record)
    if isinstance(record.get("settings"), dict):
        record["settings"] = without_paths(record["settings"])
    return {"training": json.dumps(record)}


@torch.inference_mode()
def largest_difference(one: TransformerSR, other: TransformerSR) -> float:
    """How far the results of two networks lie apart on the same small random image."""
    image = torch.rand(1, one.config.channels, 33, 25, generator=torch.Generator().manual_seed(0))
    return float((one(image) - other(image)).abs().max())


# --- hosts ---------------------------------------------------------------------------------------


def install_weights(source: Path, folder: Path, name: str, dtype: str = "fp16") -> Exported:
    """Write weights into a folder under a name, numbered where that is another file's; a file that holds just them already is left."""
    with TemporaryDirectory() as scratch:
        exported = export_weights(source, Path(scratch, f"{name}.safetensors"), dtype)
        names = (name, *(f"{name}-{number}" for number in range(2, 10_000)))
        places = (folder / f"{one}.safetensors" for one in names)
        target = next(place for place in places if not place.exists() or same_content(place, exported.path))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with write_aside(target) as aside:
                shutil.copyfile(exported.path, aside)
    return Exported(target, exported.error)


def same_content(one: Path, other: Path) -> bool:
    """Whether two files of weights hold the same tensors and metadata, in whatever order."""
    try:
        (tensors, metadata), (others, their_metadata) = read_tensors(one), read_tensors(other)
    except (CheckpointError, OSError):
        return False
    same_names = tensors.keys() == others.keys() and metadata == their_metadata
    return same_names and all(tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def model_folder(folder: Path) -> Path:
    """The folder of models of the host that a folder belongs to: the host's own, one around it, or one inside it.

    Raises ValueError where neither ComfyUI nor a WebUI is recognised.
    """
    folder = folder.resolve()
    for root in (folder, *(folder / name for name in HOST_FOLDERS), *folder.parents[:3]):
        inside = folder == root or folder in root.parents or root / "models" in (folder, *folder.parents)
        if inside and (home := models_of_host(root)):
            return folder if home in (folder, *folder.parents) else home
    if folder.is_dir() and (folder.name.lower() in MODEL_FOLDERS or any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())):
        return folder
    raise ValueError(
        f"{folder}: expected the folder of ComfyUI (with models and custom_nodes in it), of a WebUI (with webui.py and modules), "
        "or one of models"
    )


def models_of_host(root: Path) -> Path | None:
    """Where a host looks for our models, by what its folder holds."""
    models = root / "models"
    if (root / "webui.py").is_file() and (root / "modules").is_dir():
        return models / "TransformerSR"
    code_or_nodes = (root / "comfy").is_dir() or (root / "custom_nodes").is_dir()  # the Desktop app keeps its code elsewhere
    if models.is_dir() and (code_or_nodes or (models / "upscale_models").is_dir()):
        return models / "upscale_models"
    return None
