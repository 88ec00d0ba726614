"""Average the weights of several runs that started from the same weights (`transformersr average`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...upscale.checkpoint import load_model, save_model
from .export import check_new_file, find_weights, record_to_share


def parse_share(source: str) -> tuple[Path, float]:
    """Split "FILE=SHARE" into the file that it names and its share, which is 1 without "=SHARE".

    Raises ValueError for a share that is not a number, and what `find_weights` raises.
    """
    name, equals, number = source.rpartition("=")
    if not equals or Path(source).exists():
        return find_weights(source), 1.0
    try:
        share = float(number)
    except ValueError:
        share = math.nan
    if not math.isfinite(share):
        raise ValueError(f"{source}: expected FILE or FILE=SHARE with a number as the share, such as {name}=0.5")
    return find_weights(name), share


def average_weights(sources: Sequence[tuple[Path, float]], target: Path) -> None:
    """Write the weighted mean of networks in float32 (model soups: Wortsman et al. 2022, arXiv:2203.05482).

    A negative share takes away what a fine-tuning added: `new + crisp - old` (task arithmetic: Ilharco et al. 2023, arXiv:2212.04089).
    The file keeps the share and the training record of each network; a mean counts as the networks that it consists of. Raises
    ValueError if the networks differ or the shares do not add up to more than 0, and FileExistsError if the target exists.
    """
    check_new_file(target)
    total = sum(share for _, share in sources)
    if total < 1e-6:
        raise ValueError(f"the shares add up to {total:g}; expected a sum above 0")
    models = [load_model(path) for path, _ in sources]
    for (path, _), model in zip(sources, models, strict=True):
        if model.config != models[0].config:
            raise ValueError(f"{path} is not of the same network as {sources[0][0]}; only weights of one network can be averaged")
    with torch.no_grad():
        for tensors in zip(*(model.parameters() for model in models), strict=True):
            shares = (share / total for _, share in sources)
            tensors[0].copy_(sum(share * tensor for share, tensor in zip(shares, tensors, strict=True)))
    networks = [
        network
        for path, share in sources
        for network in _networks_of(str(Path(path.parent.name, path.name)), share / total, record_to_share(path))
    ]
    save_model(models[0], target, metadata={"training": json.dumps({"average": networks})})


def _networks_of(file: str, share: float, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the record of one network, or of each network in it if it is a mean itself."""
    means = record.get("average")
    if isinstance(means, list) and all(isinstance(mean, dict) and {"file", "share"} <= mean.keys() for mean in means):
        return [network for mean in means for network in _networks_of(mean["file"], share * mean["share"], mean.get("training", {}))]
    return [{"file": file, "share": round(share, 4), "training": record}]
