"""Kill `upscale FOLDER`, `convert` and `train` at random moments, and look at what they leave.

    PYTHONPATH=tests python tests/long/kill_at_random.py --kills 240

A trial starts a command with a small network, kills it (SIGKILL) at a random moment, reads every file it left, and gives the command
again with `--resume` until it is through; every third trial kills that one too. Half of the moments are spread over the duration of an
undisturbed run and a tenth more; the others lie within 10 ms of the opening or renaming of a file that is being written. Half a file
under a final name, a file that is left over and not hidden, a command that does not resume, and a result that differs in a bit from
the undisturbed run's end everything with an error.

A process that has imported all there is forks those that are killed, which makes a trial short. Not for Windows, which has no fork.
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
import torch._dynamo  # building a network under the meta device imports it, for seconds
from PIL import Image

from transformersr.arch import VARIANTS, checkpoint
from transformersr.training import train as training
from transformersr.training.results import report
from transformersr.upscale import batch
from transformersr.upscale.cli import main

from plain_v1 import newer_keys, random_state
from random_models import V2, random_model
from synthetic_images import synthetic_image

LEFT = ".transformersr-*.part"
PHASES = ("before", "during", "after")
phase = mmap.mmap(-1, 1)
"""Where a forked process is in its work, as an index of `PHASES`; shared with this one."""

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
    """Make what it needs in a folder."""
    arguments: Callable[[Path, Path, bool], list[str | Path]]
    """From that folder, the one for its results, and whether it is to resume."""
    growing: tuple[str, ...] = ()
    """Files that are written again and again; all others are what they will be from the first."""


@dataclass(frozen=True)
class Moment:
    """When to kill: seconds after the start, or after the opening or renaming of a file aside with this number."""

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
        lambda made, out, again: ["upscale", made / "in", "-o", out, "-m", made / "model.safetensors", *["--resume"][:again]],
    ),
    "convert": Attack(
        prepare_convert, lambda made, out, again: ["convert", made / "transformerSR_b4_d256_w4_h16.pt", out / "new.safetensors"]
    ),
    "train": Attack(
        prepare_train,
        lambda made, out, again: (
            ["train", "--resume", out]
            if again and (out / "run.json").exists()
            else ["train", made / "in", "--out", out, "--recipe", made / "recipe.toml"]
        ),
        ("last.safetensors", "best.safetensors", "state.pt", "run.json", "validation.jsonl", "train.jsonl"),
    ),
}

# --- looking -------------------------------------------------------------------------------------


def look(folder: Path) -> dict[str, str]:
    """What is in each file under a final name, read whole; raises for one that is not whole. Times, which differ, are left out."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.match(LEFT) and path.name != "train.log"]
    return {path.relative_to(folder).as_posix(): read(path) for path in paths}


def read(path: Path) -> str:
    if path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".safetensors":
        return digest_of(checkpoint.read_tensors(path))  # safetensors writes its metadata in any order
    elif path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        state["progress"]["seconds"] = 0
        return digest_of(state)
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
        return str([{**record, "seconds": 0} for record in report.read_records(path)])
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>"), path
        return "whole"
    return digest(path.read_bytes())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(state: Any) -> str:
    """Of dictionaries with tensors in them, every bit of these."""
    return digest(json.dumps(state, default=lambda tensor: digest(tensor.contiguous().numpy().tobytes()), sort_keys=True).encode())


# --- killing -------------------------------------------------------------------------------------


def watch(module: Any, name: str) -> None:
    """Have a function say when it begins and when it has ended."""
    function = getattr(module, name)

    def watched(*args: Any, **options: Any) -> Any:
        phase[0] = 1
        result = function(*args, **options)
        phase[0] = 2
        return result

    setattr(module, name, watched)


def run(arguments: list[str | Path], log: Path, moment: Moment | None = None) -> Outcome:
    """Run a command in a process of its own, to its end or to the moment."""
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
        os.kill(pid, signal.SIGKILL)  # one that has ended does not mind
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    return Outcome(PHASES[phase[0]], status, seconds, events)


def work(arguments: list[str | Path], log: Path, events: int) -> None:
    """The child: run the command and end."""

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
    """Wait for a moment, or for the end of the process that writes to the pipe; return how many events were seen."""
    events = 0
    end = time.monotonic() + moment.seconds if moment and moment.event is None else None
    while select.select([reading], [], [], None if end is None else max(0.0, end - time.monotonic()))[0]:
        if not os.read(reading, 1):
            return events
        if moment and events == moment.event:
            end = time.monotonic() + moment.seconds
        events += 1
    return events


def trial(attack: Attack, made: Path, out: Path, reference: dict[str, str], moments: list[Moment]) -> list[tuple[str, int]]:
    """Kill a command at each moment in turn, complete it, and compare. Returns the phase of each kill, and how many files aside it left."""
    out.mkdir()
    log, found = out.with_suffix(".log"), []
    for again, moment in enumerate(moments):
        if found and not attack.growing and look(out) == reference:  # convert refuses to write over a file that is there
            break
        before = set(out.rglob(LEFT))
        outcome = run(attack.arguments(made, out, again > 0), log, moment)
        assert outcome.status in (0, signal.SIGKILL), (outcome, moment, log.read_text())
        for name, content in look(out).items():
            assert name in reference, f"{name} is left over and not hidden"
            assert name in attack.growing or content == reference[name], f"{name} differs"
        left = set(out.rglob(LEFT)) - before
        for path in left:
            os.utime(path, (0, 0))  # as old as it has to be for the next run to remove it
        found.append(("after" if outcome.status == 0 else outcome.phase, len(left)))
    if attack.growing or look(out) != reference:
        outcome = run(attack.arguments(made, out, True), log)
        assert outcome.status == 0, log.read_text()
        assert not list(out.rglob(LEFT)), "what the killed process left is still there"
    assert look(out) == reference, [name for name, content in look(out).items() if content != reference.get(name)]
    shutil.rmtree(out)
    log.unlink(missing_ok=True)
    return found


def attack_at_random(name: str, kills: int, scratch: Path, rng: random.Random) -> None:
    """Kill one command this many times, and print what came of it."""
    attack, made, out = ATTACKS[name], scratch / name, scratch / f"{name}-out"
    made.mkdir()
    attack.prepare(made)
    begun = time.monotonic()
    (out / "undisturbed").mkdir(parents=True)
    whole = run(attack.arguments(made, out / "undisturbed", False), out / "undisturbed.log")
    assert whole.status == 0, (out / "undisturbed.log").read_text()
    reference = look(out / "undisturbed")

    def moment(index: int) -> Moment:
        if index % 2:
            return Moment(rng.uniform(0, 0.01), rng.randrange(whole.events))
        return Moment(rng.uniform(0, 1.1 * whole.seconds))

    phases: Counter[str] = Counter()
    left = done = 0
    while done < kills:
        moments = [moment(done)] + [moment(done + 1)] * (done % 3 == 2)
        found = trial(attack, made, out / str(done), reference, moments)
        phases.update(when for when, _ in found)
        left += sum(files for _, files in found)
        done += len(found)
    print(
        f"{name}: {done} kills; before the work {phases['before']}, during {phases['during']}, after {phases['after']}; "
        f"files aside left {left}, all hidden and removed by the next run; half files 0; all resumed to the same {len(reference)} files; "
        f"undisturbed {whole.seconds:.2f} s, all {time.monotonic() - begun:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=240, help="for each command")
    parser.add_argument("--commands", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    VARIANTS["tiny"] = dataclasses.replace(V2, blocks="RWC")  # what counts here is how often it is killed
    for function in ((batch, "run_jobs"), (checkpoint, "convert_file"), (training, "train")):
        watch(*function)
    with tempfile.TemporaryDirectory() as folder:
        for command in asked.commands:
            attack_at_random(command, asked.kills, Path(folder), random.Random(asked.seed))
