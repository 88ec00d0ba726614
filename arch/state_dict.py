"""Recognise state dicts: ours, and both generations of the original author's.

Ours contain the configuration as integers in the tensor `architecture`, and our files also as JSON under the metadata key `config`. The
author's contain only weights; window size and number of heads are in the file names (`transformerSR_b8_d256_w4_h16.pt`: pairs, dim,
window, heads).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import TransformerSR, TransformerSRConfig

StateDict = dict[str, Tensor]

SIGNATURES = (
    ("architecture", "conv_first.weight", "upsample.weight"),
    ("in_conv.weight", "out_conv.0.weight", "blocks.0.0.window_attention.qkv.weight"),
    ("layers.0.weight", "layers.1.0.window_attention.project_q.weight"),
)
"""Tensor names that identify our state dicts, and the author's older and newer ones."""
ORIGINAL_WINDOW, ORIGINAL_HEADS = 4, 16
CONFIG_NUMBERS = 300
"""Maximum length of the tensor `architecture`, which has eight numbers and one per block."""
BLOCK_TENSORS = 4
"""Minimum number of tensors in a block."""
INDEX_NUMBERS = 2**27
"""Maximum size of all window position tables together; they are not in the file, and grow with the fourth power of the window size."""


@dataclass
class Checkpoint:
    """Recognised weights: configuration, weights under our keys, and metadata."""

    config: TransformerSRConfig
    weights: StateDict
    source: str
    """"ours", "original, older keys" or "original, newer keys"."""
    metadata: dict[str, str]


def recognise(
    state: StateDict, metadata: dict[str, str], name: str = "", *, window_size: int | None = None, num_heads: int | None = None
) -> Checkpoint:
    """Recognise a state dict and check every tensor against the configuration. Raises ValueError.

    `name` is the file name, which contains window size and heads of the author's files.
    """
    if "architecture" in state:
        checkpoint = Checkpoint(_own_config(state, metadata), state, "ours", metadata)
        if window_size not in (None, checkpoint.config.window_size) or num_heads not in (None, checkpoint.config.num_heads):
            raise ValueError("window size and heads are stored in this file and cannot be overridden; leave both options out")
    else:
        checkpoint = _read_original(name, state, metadata, window_size, num_heads)
    _check_tensors(checkpoint)
    return checkpoint


def _own_config(state: StateDict, metadata: dict[str, str]) -> TransformerSRConfig:
    numbers = state["architecture"].flatten()
    if len(numbers) > CONFIG_NUMBERS or numbers.is_complex() or not numbers.double().isfinite().all():
        raise ValueError("its configuration is not a list of numbers; the file is malformed")
    config = TransformerSRConfig.from_integers([int(number) for number in numbers.tolist()])
    state["architecture"] = torch.tensor(config.as_integers(), dtype=torch.int32)  # some tools turn it into floats
    if "config" in metadata and _from_json(metadata["config"]) != config:
        raise ValueError("the configuration in its metadata differs from the one in its tensors; the file is malformed")
    return config


def _from_json(text: str) -> TransformerSRConfig | None:
    try:
        return TransformerSRConfig.from_json(text)
    except (ValueError, RecursionError):
        return None


def _read_original(name: str, state: StateDict, metadata: dict[str, str], window_size: int | None, num_heads: int | None) -> Checkpoint:
    if "in_conv.weight" in state and "out_conv.0.weight" in state:
        pairs = _count(state, r"blocks\.(\d+)\.")
        head, tail, source = "in_conv.", "out_conv.0.", "original, older keys"
        convert = _from_older
    elif "layers.0.weight" in state and "layers.1.0.window_attention.project_q.weight" in state:
        pairs = _count(state, r"layers\.(\d+)\.") - 2
        head, tail, source = "layers.0.", f"layers.{pairs + 1}.", "original, newer keys"
        convert = _from_newer
    else:
        raise ValueError(_describe_unknown(state))
    named = {key: int(number) for key, number in re.findall(r"_([bdwh])(\d+)(?=_|\.|$)", name)}
    try:
        dim, channels = state[head + "weight"].shape[:2]
        config = TransformerSRConfig(
            design="v1",
            scale=math.isqrt(state[tail + "weight"].shape[0] // channels),
            channels=channels,
            embed_dim=dim,
            num_heads=num_heads or named.get("h", ORIGINAL_HEADS),
            blocks="WC" * pairs,
            window_size=window_size or named.get("w", ORIGINAL_WINDOW),
            mlp_ratio=state["blocks.0.0.mlp.0.weight" if convert is _from_older else "layers.1.0.mlp.0.weight"].shape[0] // dim,
        )
        weights = convert(state, pairs)
    except (KeyError, IndexError) as error:
        raise ValueError(f"it looks like an original TransformerSR ({source}) with tensors missing ({error})") from error
    except (ZeroDivisionError, RuntimeError, TypeError) as error:
        raise ValueError(f"it looks like an original TransformerSR ({source}) whose tensors do not fit together") from error
    weights["architecture"] = torch.tensor(config.as_integers(), dtype=torch.int32)
    return Checkpoint(config, weights, source, metadata)


def _count(state: StateDict, pattern: str) -> int:
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})


BLOCK_KEYS = {
    "norm1.": "norm.",
    "norm2.": "mlp.norm.",
    "mlp.0.": "mlp.fc1.",
    "mlp.2.": "mlp.fc2.",
    "window_attention.qkv.": "attention.qkv.",
    "window_attention.out.": "attention.proj.",
    "window_attention.project_out.": "attention.proj.",
}


def _from_older(state: StateDict, pairs: int) -> StateDict:
    """Rename the keys of the author's first layout to ours."""
    renamed = {"in_conv.": "conv_first.", "out_conv.0.": "upsample."}
    for pair in range(pairs):
        for block in range(2):
            for theirs, ours in BLOCK_KEYS.items():
                renamed[f"blocks.{pair}.{block}.{theirs}"] = f"body.{2 * pair + block}.{ours}"
    return {_rename(name, renamed): tensor for name, tensor in state.items()}


def _from_newer(state: StateDict, pairs: int) -> StateDict:
    """Rename the keys of the author's second layout to ours, and concatenate its three projections."""
    state = dict(state)
    renamed = {"layers.0.": "conv_first.", f"layers.{pairs + 1}.": "upsample."}
    for pair in range(pairs):
        for block in range(2):
            prefix = f"layers.{pair + 1}.{block}."
            for part in ("weight", "bias"):
                parts = [state.pop(f"{prefix}window_attention.project_{one}.{part}") for one in "qkv"]
                state[f"{prefix}window_attention.qkv.{part}"] = torch.cat(parts)
            for theirs, ours in BLOCK_KEYS.items():
                renamed[prefix + theirs] = f"body.{2 * pair + block}.{ours}"
    return {_rename(name, renamed): tensor for name, tensor in state.items()}


def _rename(name: str, renamed: dict[str, str]) -> str:
    stem, dot, leaf = name.rpartition(".")
    return renamed.get(stem + dot, stem + dot) + leaf


OTHER_NETWORKS = {
    "an RRDB network (ESRGAN, Real-ESRGAN)": r"(model\.1\.sub\.0\.RDB1|body\.0\.rdb1|RRDB_trunk)",
    "a SwinIR, HAT or DAT network": r"(layers\.0\.residual_group|layers\.0\.blocks\.0\.(attn|norm1))",
    "a compact Real-ESRGAN (SRVGG) network": r"body\.0\.weight",
    "a Stable Diffusion checkpoint": r"(model\.diffusion_model|first_stage_model|cond_stage_model)",
    "a LoRA": r".*lora_(up|down|A|B)",
    "an image classifier": r"(fc|head|classifier)\.weight$",
}


def _describe_unknown(state: StateDict) -> str:
    if any(re.match(r"blocks\.\d+\.\w*\.?window_attention\.", name) for name in state):
        return "this is the original author's tag classifier (or part of a network), which names images and cannot upscale them"
    for what, pattern in OTHER_NETWORKS.items():
        if any(re.match(pattern, name) for name in state):
            return f"this is {what}, not a TransformerSR; load it with the tool it was made for"
    names = ", ".join(map(shown, list(state)[:3]))
    return f"not a TransformerSR network (its tensors begin with {names}); expected our files or the original author's"


def shown(text: str, most: int = 80) -> str:
    """Make text from a file safe for a message: printable, on one line, and short."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[:most]}..."


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse missing, extra, misshapen and non-finite tensors before allocating a network of the configuration's size."""
    config, weights = checkpoint.config, checkpoint.weights
    blocks, windows = len(config.blocks), config.blocks.count("W")
    if len(weights) < BLOCK_TENSORS * blocks:
        raise ValueError(f"tensors are missing: {len(weights)} are too few for {blocks} blocks")
    if config.design == "v2" and windows * config.window_size**4 > INDEX_NUMBERS:
        raise ValueError(f"{windows} blocks with windows of {config.window_size} would take too much memory; expected 16 or less")
    for name, shape in _deciding_shapes(config).items():
        if name in weights and weights[name].shape[:2] != shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)}; expected it to begin with {shape}")
        if name not in weights:
            raise ValueError(f"tensors are missing, the first is {name}")
    expected = TransformerSR(config).state_dict()  # no larger than the file; the meta device would take two seconds to load
    if missing := [name for name in expected if name not in weights]:
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if extra := [name for name in weights if name not in expected]:
        raise ValueError(f"{len(extra)} tensors are not part of the network in its configuration, the first is {shown(extra[0])}")
    for name, tensor in expected.items():
        found = weights[name]
        if found.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(found.shape)}; expected {tuple(tensor.shape)}")
        if found.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name} is {found.dtype}; expected {'floating-point' if tensor.is_floating_point() else 'whole'} numbers")
        if not found.float().isfinite().all():
            raise ValueError(f"{name} holds values that are not finite (NaN or infinity); the training that wrote it failed")


def _deciding_shapes(config: TransformerSRConfig) -> dict[str, tuple[int, int]]:
    """Return the first two dimensions of those tensors that determine every size in the configuration."""
    dim, tail = config.embed_dim, config.channels * (config.scale * config.unshuffle) ** 2
    shapes = {
        "conv_first.weight": (dim, config.channels * config.unshuffle**2),
        "upsample.weight": (tail, dim),
    }
    for index, letter in enumerate(config.blocks):
        block = f"body.{index}"
        shapes[f"{block}.conv1.weight" if letter == "R" else f"{block}.attention.qkv.weight"] = (dim if letter == "R" else 3 * dim, dim)
        if config.mlp_ratio and letter != "R":
            shapes[f"{block}.mlp.fc1.weight"] = (config.mlp_ratio * dim, dim)
        if config.design == "v2" and letter == "W":
            shapes[f"{block}.attention.position_bias"] = ((2 * config.window_size - 1) ** 2, config.num_heads)
    return shapes
