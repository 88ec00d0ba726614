"""Read and write files of weights: ours, and both generations of the original author's.

`arch.state_dict` recognises the network that the tensors belong to.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..arch import TransformerSR, TransformerSRConfig
from ..arch.state_dict import Checkpoint, StateDict, recognise, shown
from .atomic import write_aside
from .files import is_special
from .pickled import ArchiveError, DamagedError, RefusedError, StoredTensor, read_pickled
from .torch_context import plain_torch
from .unwrap import find_network, largest_group

OTHER_CONTENT = {
    rb"\s*$": "the file is empty; download or copy it again",
    rb"version https://git-lfs": "this is a Git LFS pointer, which stands for the file; get that with `git lfs pull`, or download it again",
    rb"7z\xbc\xaf|Rar!|\x1f\x8b|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd": "this is a packed archive; unpack it, and give the file of weights in it",
    rb".{257}ustar": "this is a packed archive (tar); unpack it, and give the file of weights in it",
    rb"\s*\{": "this is a JSON file, not weights; give the .safetensors or .pth file that it belongs to",
    rb"GGUF": "this is a GGUF file of another kind of network; expected a .safetensors, .pt, .pth or .ckpt file of weights",
    rb"\s*<": "this is a web page, not weights; download the file itself (on its page, the link named download or raw)",
    rb"\x08[\x01-\x0f]\x12": "this is probably an ONNX file, which is not read here; give the file that it was made from",
    rb"[^\x00-\x08\x0e-\x1f]+$": "this is a text file, not weights; download the file itself",
}
"""Patterns of the first bytes of files that are mistaken for weights, with a message for each."""


def find_other_content(head: bytes) -> str | None:
    """Describe a file that is not weights, by its first 512 bytes. Returns None for weights and for unknown files."""
    if head[8:9] == b"{":  # safetensors, whose header may be of any length
        return None
    return next((reason for start, reason in OTHER_CONTENT.items() if re.match(start, head, re.DOTALL)), None)


class CheckpointError(ValueError):
    """A file without a network that we can load. The message names the file and says what is in it."""


@plain_torch(inference=False)
def load_model(path: str | Path, *, window_size: int | None = None, num_heads: int | None = None) -> TransformerSR:
    """Load a network from a file, in float32 and eval mode.

    Args:
        path: `.safetensors`, or a pickled `.pt`, `.pth`, `.ckpt` (read weights-only: no code in it is ever run).
        window_size, num_heads: for a renamed file of the original author; by default they are taken from its name, or are 4 and 16.

    Raises:
        CheckpointError: if the file does not contain a network that we can load; the message is one sentence.
        OSError: if the file cannot be read.
    """
    checkpoint = read_checkpoint(path, window_size=window_size, num_heads=num_heads)
    model = TransformerSR(checkpoint.config)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def read_checkpoint(path: str | Path, *, window_size: int | None = None, num_heads: int | None = None) -> Checkpoint:
    """Read a file, recognise its network and check every tensor. Arguments and errors as for `load_model`."""
    path = Path(path)
    state, metadata = read_tensors(path)
    try:
        return recognise(state, metadata, path.name, window_size=window_size, num_heads=num_heads)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def save_model(model: TransformerSR, path: str | Path, dtype: torch.dtype | None = None, metadata: dict[str, str] | None = None) -> None:
    """Write a network as `.safetensors`, atomically.

    Floating-point tensors are stored as `dtype` (None: unchanged). `metadata` is stored along with the configuration.
    """
    _save(model.state_dict(), model.config, path, dtype, metadata or {})


def _save(weights: StateDict, config: TransformerSRConfig, path: str | Path, dtype: torch.dtype | None, metadata: dict[str, str]) -> None:
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous() for name, tensor in weights.items()
    }
    content = save(tensors, {"format": "pt", **metadata, "config": config.to_json()})  # `save_file` would raise its own kinds of errors
    with write_aside(path) as aside:
        aside.write_bytes(content)


def convert_file(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    *,
    window_size: int | None = None,
    num_heads: int | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Convert a file that `load_model` reads to our `.safetensors`, in `dtype` (None: unchanged). The source is not changed.

    `metadata` is added to that of the source.
    """
    checkpoint = read_checkpoint(source, window_size=window_size, num_heads=num_heads)
    _save(checkpoint.weights, checkpoint.config, target, dtype, checkpoint.metadata | (metadata or {}))


# --- reading -------------------------------------------------------------------------------------


def read_tensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Return the tensors of the network in a file, without wrappers and prefixes, and the metadata. Raises CheckpointError, OSError."""
    if is_special(path):
        raise CheckpointError(f"{path}: this is a pipe or a device; expected a file")
    with open(path, "rb") as file:
        head = file.read(512)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if reason := find_other_content(head):
        raise CheckpointError(f"{path}: {reason}")
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _read_pickle(path), {}
    raise CheckpointError(
        f"{path}: neither safetensors nor a PyTorch checkpoint; expected a .safetensors, .pt, .pth or .ckpt file of weights"
    )


def _read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = {name: name for name in file.keys()}  # noqa: SIM118  the file is not a mapping
            chosen = find_network(names, str) or names
            return {name: file.get_tensor(stored) for name, stored in chosen.items()}, file.metadata() or {}
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the safetensors file is damaged or cut short ({error}); download or copy it again") from error


def _read_pickle(path: Path) -> StateDict:
    try:
        return read_pickled(path, lambda content: _unwrap(path, content))
    except RefusedError as error:
        raise CheckpointError(
            f"{path}: it contains Python objects or code in addition to tensors ({error}), so it was not opened; get a .safetensors file"
        ) from error
    except ArchiveError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except DamagedError as error:
        raise CheckpointError(f"{path}: the file is cut short or damaged ({error}); download or copy it again") from error


def _unwrap(path: Path, content: object) -> dict[str, StoredTensor]:
    network = find_network(content, StoredTensor)
    if network is None:
        network = largest_group(content, StoredTensor)
    if not network:
        kind = type(content).__name__
        raise CheckpointError(f"{path}: expected a state dict of named tensors and found a {kind} without any; get the weights alone")
    return network


def describe(path: str | Path) -> dict[str, str]:
    """Describe a file of weights as names and values. Raises the errors of `load_model`."""
    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    tensors = [tensor for name, tensor in checkpoint.weights.items() if name != "architecture"]
    values = {
        "file": f"{path} ({Path(path).stat().st_size / 2**20:.1f} MiB)",
        "keys": checkpoint.source,
        "parameters": f"{sum(tensor.numel() for tensor in tensors):,}",
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
    }
    values |= {name: str(value) for name, value in dataclasses.asdict(config).items()}
    for name, text in checkpoint.metadata.items():
        if name not in ("format", "config"):
            values |= {shown(key): shown(value, 10_000) for key, value in _split_object(name, text).items()}
    return values


def _split_object(name: str, text: str) -> dict[str, str]:
    """Split metadata that is a JSON object, such as the facts about a training run, into one value per key, and per object in a list.

    Other text is left as it is.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {name: text}
    if not isinstance(values, dict):
        return {name: text}

    def plain(value: object) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    result: dict[str, str] = {}
    for key, value in values.items():
        if value and isinstance(value, list) and all(isinstance(item, dict) for item in value):
            result |= {f"{name} {key} {number}": plain(item) for number, item in enumerate(value, 1)}
        else:
            result[f"{name} {key}"] = plain(value)
    return result
