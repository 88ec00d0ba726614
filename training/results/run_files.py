"""Read the files of a run: its settings, metrics and strips, as far as they exist and are intact."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .verdict import Baseline, find_baseline, is_number

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run; every part may be empty."""

    folder: Path
    settings: Record = field(default_factory=dict)
    about: Record = field(default_factory=dict)
    """`run.json`: images, device, versions, bicubic's metrics, warnings."""
    validations: list[Record] = field(default_factory=list)
    log: list[Record] = field(default_factory=list)
    strips: dict[int, Path] = field(default_factory=dict)

    @property
    def bicubic(self) -> dict[str, float]:
        """Metrics of bicubic upscaling, as far as known."""
        return {name: value for name, value in as_object(self.about.get("bicubic")).items() if is_number(value)}

    @property
    def baseline(self) -> Baseline:
        """The baseline of the run: the weights it started from, or bicubic."""
        start = self.validations[0] if self.validations and self.validations[0]["step"] == 0 else {}
        return find_baseline(str(self.settings.get("init", "none")), start, self.bicubic)

    @property
    def best(self) -> Record | None:
        """The validation with the highest PSNR-Y; for an adversarial run the newest one, as in `best.safetensors`."""
        records = [record for record in self.validations if is_number(record.get("psnr_y"))]
        if self.settings.get("gan_weight"):
            return records[-1] if records else None
        return max(records, key=lambda record: record["psnr_y"], default=None)

    @property
    def best_is_initial(self) -> bool:
        """Whether the best weights are the ones the run started from."""
        return self.best is not None and self.best["step"] == 0 and self.baseline.name != "bicubic"

    @property
    def last(self) -> Record:
        """The latest record of the log or the validations."""
        return max([{}, *self.log[-1:], *self.validations[-1:]], key=lambda record: record.get("step", -1))


def read_run(folder: str | Path) -> Run:
    """Read the files of a run without damaged and missing parts. Raises ValueError if the folder has none of them."""
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected the folder of a run")
    about, settings = (read_object(folder / name) for name in ("run.json", "config.json"))
    strips = {int(path.stem): path for path in sorted((folder / "strips").glob("*.png")) if re.fullmatch("[0-9]+", path.stem)}
    run = Run(folder, settings, about, read_records(folder / "validation.jsonl"), read_records(folder / "train.jsonl"), strips)
    if not (run.settings or run.about or run.validations or run.log or run.strips):
        raise ValueError(f"{folder}: not the folder of a run; expected config.json or validation.jsonl in it")
    return run


def read_records(path: Path) -> list[Record]:
    """Read a JSON lines file as records by step. Broken lines are skipped, and steps that a resumed run repeated count once."""
    records: list[Record] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        record = _parse_json(line)
        if isinstance(record, dict) and is_number(record.get("step")):
            while records and records[-1]["step"] >= record["step"]:
                records.pop()
            records.append(record)
    return records


def read_object(path: Path) -> Record:
    """Read a JSON object from a file; empty if it is missing or damaged."""
    try:
        return as_object(_parse_json(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return {}


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def as_object(value: Any) -> Record:
    """Return a JSON value that should be an object; empty if it is anything else."""
    return value if isinstance(value, dict) else {}
