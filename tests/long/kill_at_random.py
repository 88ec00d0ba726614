"""Kill `upscale FOLDER`, `convert` and `train` at random moments and check the files they leave.

    PYTHONPATH=tests python tests/long/kill_at_random.py --kills 240

A trial starts a command with a small network, kills it (SIGKILL) at a random moment, reads every file it left, and runs the command
again with `--resume` until it finishes; every third trial kills the resumed command as well. Half of the moments are spread over 1.1 times
the duration of an undisturbed run. The others are within 10 ms of the opening or renaming of a temporary file. A partial file under a final
name, a visible leftover file, a command that does not resume, or a result that differs by a bit from the undisturbed run is an error.

The killed processes are forked from one that has imported everything, which makes a trial short. Not for Windows, which has no fork.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import mmap
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # building a network on the meta device imports it, which takes seconds
from PIL import Image

from transformersr.arch import VARIANTS
from transformersr.training import train as training
from transformersr.training.results.run_files import read_records
from transformersr.upscale import batch, checkpoint
from transformersr.upscale.cli import main

from plain_v1 import newer_keys, random_state
from random_models import V2, random_model
from synthetic_images import synthetic_image

PART_FILES = ".transformersr-*.part"
PHASES = ("before", "during", "after")
phase = mmap.mmap(-1, 1)
"""Progress of the forked process as an index of `PHASES`, in shared memory."""

RECIPE = """
size = "tiny"
scale = 2
init = "none"
patch = 8
batch = 1
steps = 2
save_every = 1
log_every = 1
warmup_steps = 2
validation_crop = 32
memory_gb = 0
trackers = []
workers = 0
"""


@dataclass(frozen=True)
class Attack:
    """A command to be killed."""

    prepare: Callable[[Path], None]
    """Create its inputs in a folder."""
    arguments: Callable[[Path, Path, bool], list[str | Path]]
    """Takes the folder of inputs, the folder for results, and whether to resume."""
    growing: tuple[str, ...] = ()
    """Files that are rewritten during the work; all others have their final content from the start."""


@dataclass(frozen=True)
class Moment:
    """When to kill: seconds after the start, or after the opening or renaming of a temporary file with this number."""

    seconds: float
    event: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    phase: str
    status: int
    seconds: float
    events: int


# --- the commands --------------------------------------------------------------------------------


def prepare_upscale(folder: Path) -> None:
    (folder / "in" / "deep").mkdir(parents=True)
    for index in range(6):
        synthetic_image(index, 24 + 8 * index).save(folder / "in" / ("deep" if index % 2 else ".") / f"{index}.png")
    checkpoint.save_model(random_model(V2), folder / "model.safetensors")


def prepare_convert(folder: Path) -> None:
    torch.save({"params": newer_keys(random_state(4, 256, 4))}, folder / "transformerSR_b4_d256_w4_h16.pt")


def prepare_train(folder: Path) -> None:
    (folder / "in").mkdir()
    for index in range(6):
        synthetic_image(index).save(folder / "in" / f"{index}.png")
    (folder / "recipe.toml").write_text(RECIPE)


ATTACKS = {
    "upscale": Attack(
        prepare_upscale,
        lambda inputs, out, resume: ["upscale", inputs / "in", "-o", out, "-m", inputs / "model.safetensors", *["--resume"][:resume]],
    ),
    "convert": Attack(
        prepare_convert, lambda inputs, out, resume: ["convert", inputs / "transformerSR_b4_d256_w4_h16.pt", out / "new.safetensors"]
    ),
    "train": Attack(
        prepare_train,
        lambda inputs, out, resume: (
            ["train", "--resume", out]
            if resume and (out / "run.json").exists()
            else ["train", inputs / "in", "--out", out, "--recipe", inputs / "recipe.toml"]
        ),
        ("last.safetensors", "best.safetensors", "state.pt", "run.json", "validation.jsonl", "train.jsonl"),
    ),
}

# --- reading the files ---------------------------------------------------------------------------


def read_files(folder: Path) -> dict[str, str]:
    """Return the content of each file under a final name, without times, which differ. Raise an error for an incomplete file."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.match(PART_FILES) and path.name != "train.log"]
    return {path.relative_to(folder).as_posix(): read(path) for path in paths}


def read(path: Path) -> str:
    if path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".safetensors":
        return digest_of(checkpoint.read_tensors(path))  # the order of safetensors metadata varies
    elif path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        state["progress"]["seconds"] = 0
        return digest_of(state)
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
        return str([{**record, "seconds": 0} for record in read_records(path)])
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>"), path
        return "complete"
    return digest(path.read_bytes())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(state: Any) -> str:
    """Hash nested dictionaries including the bits of their tensors."""
    return digest(json.dumps(state, default=lambda tensor: digest(tensor.contiguous().numpy().tobytes()), sort_keys=True).encode())


# --- killing -------------------------------------------------------------------------------------


def watch(module: Any, name: str) -> None:
    """Make a function set `phase` when it begins and when it has ended."""
    function = getattr(module, name)

    def watched(*args: Any, **options: Any) -> Any:
        phase[0] = 1
        result = function(*args, **options)
        phase[0] = 2
        return result

    setattr(module, name, watched)


def run(arguments: list[str | Path], log: Path, moment: Moment | None = None) -> Outcome:
    """Run a command in a forked process until its end or until the moment."""
    reading, writing = os.pipe()
    phase[0], begun = 0, time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        work(arguments, log, writing)
    os.close(writing)
    events = wait(reading, moment)
    seconds = time.monotonic() - begun
    if moment:
        os.kill(pid, signal.SIGKILL)  # no effect if it has ended
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    return Outcome(PHASES[phase[0]], status, seconds, events)


def work(arguments: list[str | Path], log: Path, events: int) -> None:
    """Run the command in the child process and exit."""

    def hook(event: str, args: tuple) -> None:
        if event in ("open", "os.rename") and str(args[0]).endswith(".part"):
            os.write(events, b".")

    code = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.addaudithook(hook)
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(reading: int, moment: Moment | None) -> int:
    """Wait for a moment or for the end of the process that writes to the pipe, and return the number of events."""
    events = 0
    end = time.monotonic() + moment.seconds if moment and moment.event is None else None
    while select.select([reading], [], [], None if end is None else max(0.0, end - time.monotonic()))[0]:
        if not os.read(reading, 1):
            return events
        if moment and events == moment.event:
            end = time.monotonic() + moment.seconds
        events += 1
    return events


def trial(attack: Attack, inputs: Path, out: Path, reference: dict[str, str], moments: list[Moment]) -> list[tuple[str, int]]:
    """Kill a command at each moment, complete it and compare. Return the phase of each kill and the number of temporary files it left."""
    out.mkdir()
    log, found = out.with_suffix(".log"), []
    for attempt, moment in enumerate(moments):
        if found and not attack.growing and read_files(out) == reference:  # convert does not overwrite
            break
        before = set(out.rglob(PART_FILES))
        outcome = run(attack.arguments(inputs, out, attempt > 0), log, moment)
        assert outcome.status in (0, signal.SIGKILL), (outcome, moment, log.read_text())
        for name, content in read_files(out).items():
            assert name in reference, f"{name} is a visible leftover"
            assert name in attack.growing or content == reference[name], f"{name} differs"
        leftovers = set(out.rglob(PART_FILES)) - before
        for path in leftovers:
            os.utime(path, (0, 0))  # old enough for the next run to remove it
        found.append(("after" if outcome.status == 0 else outcome.phase, len(leftovers)))
    if attack.growing or read_files(out) != reference:
        outcome = run(attack.arguments(inputs, out, True), log)
        assert outcome.status == 0, log.read_text()
        assert not list(out.rglob(PART_FILES)), "temporary files of the killed process were not removed"
    assert read_files(out) == reference, [name for name, content in read_files(out).items() if content != reference.get(name)]
    shutil.rmtree(out)
    log.unlink(missing_ok=True)
    return found


def attack_at_random(name: str, kills: int, scratch: Path, rng: random.Random) -> None:
    """Kill one command this many times and print the results."""
    attack, inputs, out = ATTACKS[name], scratch / name, scratch / f"{name}-out"
    inputs.mkdir()
    attack.prepare(inputs)
    begun = time.monotonic()
    (out / "undisturbed").mkdir(parents=True)
    undisturbed = run(attack.arguments(inputs, out / "undisturbed", False), out / "undisturbed.log")
    assert undisturbed.status == 0, (out / "undisturbed.log").read_text()
    reference = read_files(out / "undisturbed")

    def moment(index: int) -> Moment:
        if index % 2:
            return Moment(rng.uniform(0, 0.01), rng.randrange(undisturbed.events))
        return Moment(rng.uniform(0, 1.1 * undisturbed.seconds))

    phases: Counter[str] = Counter()
    leftovers = done = 0
    while done < kills:
        moments = [moment(done)] + [moment(done + 1)] * (done % 3 == 2)
        found = trial(attack, inputs, out / str(done), reference, moments)
        phases.update(when for when, _ in found)
        leftovers += sum(files for _, files in found)
        done += len(found)
    print(
        f"{name}: {done} kills; before the work {phases['before']}, during {phases['during']}, after {phases['after']}; "
        f"temporary files left {leftovers}, all hidden and removed by the next run; partial files 0; all resumed to the same "
        f"{len(reference)} files; undisturbed {undisturbed.seconds:.2f} s, all {time.monotonic() - begun:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=240, help="number of kills for each command")
    parser.add_argument("--commands", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    VARIANTS["tiny"] = dataclasses.replace(V2, blocks="RWC")  # a small network allows more kills
    for function in ((batch, "run_jobs"), (checkpoint, "convert_file"), (training, "train")):
        watch(*function)
    with tempfile.TemporaryDirectory() as folder:
        for command in options.commands:
            attack_at_random(command, options.kills, Path(folder), random.Random(options.seed))
