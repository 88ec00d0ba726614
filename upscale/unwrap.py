"""Find the weights of a network in a checkpoint. Every trainer wraps them in mappings and key prefixes of its own.

There is no list of wrappers. Any group of tensors with the layers of one of our networks is a candidate, and averaged weights are
preferred. This covers BasicSR's `params_ema`, timm's `state_dict_ema`, Lightning's `net_g.`,
`AveragedModel`, DistributedDataParallel's `module.`, `torch.compile`'s `_orig_mod.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

FIRST_LAYERS = ("conv_first.weight", "in_conv.weight", "layers.1.0.window_attention.project_q.weight")
"""One tensor name of each key layout: ours, and both of the original author's."""
DEEPEST = 5
"""Maximum depth of nested mappings that are searched."""
MOST_GROUPS = 1000
"""Maximum number of mappings that are searched."""
AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|average|averaged|shadow)(?![a-z])", re.IGNORECASE)
"""Matches names of groups with averaged weights."""
OTHERS = re.compile(r"(?<![a-z])(optimizers?|optim|online)(?![a-z])", re.IGNORECASE)
"""Matches names of groups that are used only if there is no other."""


def find_network(content: object, kind: type[T]) -> dict[str, T] | None:
    """Return the tensors (of type `kind`) of the network in a checkpoint by name, without prefixes, averaged weights if there are any.

    Returns None if no group of tensors has the names of our networks.
    """
    found = [candidate for path, group in _groups(content, kind) for candidate in _split(path, group)]
    if not found:
        return None
    best = min(range(len(found)), key=lambda place: (_rank(found[place][0]), place))
    chosen = found[best][1]
    for _, other in found:
        if chosen.keys() < other.keys():  # only parameters are averaged; take the buffers from the rest
            return {**other, **chosen}
    return chosen


def largest_group(content: object, kind: type[T]) -> dict[str, T] | None:
    """Return the mapping with the most tensors, for error messages."""
    groups = [{str(name): value for name, value in group.items()} for _, group in _groups(content, kind)]
    return max(groups, key=len, default=None)


def _rank(path: str) -> int:
    return 2 if OTHERS.search(path) else 0 if AVERAGE.search(path) else 1


def _groups(content: object, kind: type[T], path: str = "") -> Iterator[tuple[str, Mapping[Any, T]]]:
    """Yield the mappings in a checkpoint that contain tensors, each with its path."""
    waiting: list[tuple[str, object, int]] = [(path, content, 0)]
    for _ in range(MOST_GROUPS):
        if not waiting:
            return
        path, content, depth = waiting.pop(0)
        if not isinstance(content, dict):
            continue
        tensors = {name: value for name, value in content.items() if isinstance(value, kind)}
        if tensors:
            yield path, tensors
        if depth < DEEPEST:
            waiting += [(f"{path}/{name}", value, depth + 1) for name, value in content.items() if isinstance(value, dict)]


def _split(path: str, group: Mapping[Any, T]) -> Iterator[tuple[str, dict[str, T]]]:
    """Yield the networks in one mapping: for each prefix of a first layer, all tensors with that prefix, which is removed."""
    names = {str(name): value for name, value in group.items()}
    prefixes = dict.fromkeys(name.removesuffix(layer) for name in names for layer in FIRST_LAYERS if _ends(name, layer))
    for prefix in prefixes:
        yield f"{path}/{prefix}", {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
    yield from _without_dots(path, names, prefixes)


def _ends(name: str, layer: str) -> bool:
    return name == layer or name.endswith("." + layer)


def _without_dots(path: str, names: dict[str, T], prefixes: dict[str, None]) -> Iterator[tuple[str, dict[str, T]]]:
    """Yield averages that are stored as buffers, with names without dots: `model_ema.conv_firstweight` for `model.conv_first.weight`."""
    for prefix in prefixes:
        whole = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        for start in {name.rpartition(".")[0] + "." for name in names if AVERAGE.search(name.rpartition(".")[0])}:
            average = {name: names[start + name.replace(".", "")] for name in whole if start + name.replace(".", "") in names}
            if "conv_first.weight" in average:
                yield f"{path}/{start}", average
