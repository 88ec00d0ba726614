"""A run's weights as one file for others: `.safetensors`, in a host's folder, or ONNX."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ...arch import CheckpointError, TransformerSR, load_model
from ...arch.atomic import write_aside
from ...arch.checkpoint import convert_file, read_checkpoint, read_tensors
from ...upscale.models import SUFFIXES
from ...upscale.upscaler import DTYPES, find_model
from ..config import without_paths

MOST_ERROR = 1 / 64
"""The largest change of the result by rounding the weights that is not a fault; fp16 makes about a hundredth of it."""
MODEL_FOLDERS = ("upscale_models", "transformersr")
"""Names of folders of models, wherever they are; a host may be told to look there."""

# --- what is exported ----------------------------------------------------------------------------


def find_weights(run: str | Path, last: bool = False) -> Path:
    """The best or last weights of a run's folder; a file, or a model that comes with the package, is itself. Raises OSError, ValueError."""
    path = Path(run)
    if not path.is_dir():
        if last:
            raise ValueError(f"{run}: --last takes the last weights of a run's folder, and this is none")
        return find_model(run)
    found = path / ("last.safetensors" if last else "best.safetensors")
    if not found.is_file():
        raise FileNotFoundError(f"{found}: no such file; expected the folder of a run that has saved weights, or a file of weights")
    return found.resolve()


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
    """Largest difference between its result and the original's on a small random picture, both in [0, 1]."""


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


def record_of(source: Path) -> dict[str, str]:
    """How weights came to be, as metadata of a file for others: as in the file, or from the run beside it, with paths cut to names."""
    training = read_checkpoint(source).metadata.get("training")
    settings_file = source.with_name("config.json")
    if training is None and source.stem in ("best", "last") and settings_file.is_file():
        training = json.dumps({"settings": json.loads(settings_file.read_text(encoding="utf-8"))})
    try:
        record = json.loads(training or "")
    except ValueError:
        return {}
    if not isinstance(record, dict):
        return {}
    record = without_paths(record)
    if isinstance(record.get("settings"), dict):
        record["settings"] = without_paths(record["settings"])
    return {"training": json.dumps(record)}


@torch.inference_mode()
def largest_difference(one: TransformerSR, other: TransformerSR) -> float:
    """How far the results of two networks lie apart on the same small random picture."""
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
    """The folder of models of the host that a folder belongs to. Raises ValueError where neither ComfyUI nor a WebUI is recognised."""
    folder = folder.resolve()
    for root in (folder, folder / "ComfyUI", folder / "webui", *folder.parents[:3]):
        inside = folder in (root, root.parent) or root / "models" in (folder, *folder.parents)
        if (home := models_of_host(root)) and inside:
            return folder if home in (folder, *folder.parents) else home
    if folder.is_dir() and (folder.name.lower() in MODEL_FOLDERS or any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())):
        return folder
    raise ValueError(
        f"{folder}: expected the folder of ComfyUI (with comfy and models in it), of a WebUI (with webui.py and modules), or one of models"
    )


def models_of_host(root: Path) -> Path | None:
    """Where a host looks for our models, by what its folder holds."""
    if (root / "comfy").is_dir() and (root / "models").is_dir():
        return root / "models" / "upscale_models"
    if (root / "webui.py").is_file() and (root / "modules").is_dir():
        return root / "models" / "TransformerSR"
    return None
