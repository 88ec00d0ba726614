"""Kills, full disks, full memory, lost rights, cancelling, company, wherever they can come: nothing half written, nothing lost."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from transformersr import Upscaler
from transformersr.arch import VARIANTS, atomic, load_model, save_model
from transformersr.arch.atomic import write_aside
from transformersr.arch.checkpoint import convert_file, read_checkpoint
from transformersr.arch.streaming import stream
from transformersr.training import losses, steps
from transformersr.training import train as training
from transformersr.training.config import from_values
from transformersr.training.results import monitor as monitoring
from transformersr.training.results.report import read_records
from transformersr.training.results.validate import Validation
from transformersr.training.run_state import Progress, RunState
from transformersr.training.train import train
from transformersr.upscale import engine
from transformersr.upscale.batch import Job, run_jobs
from transformersr.upscale.engine import MemoryBudgetError, upscale
from transformersr.upscale.image_io import FORMATS, ImageData, read_image, write_image
from transformersr.upscale.memory import room_in_container
from transformersr.upscale.metadata import Carried
from transformersr.upscale.models import as_safetensors

from plain_v1 import random_state
from random_models import V2, random_model
from synthetic_images import synthetic_image

SETTINGS = {"size": "tiny", "scale": 2, "init": "none", "learning_rate": 5e-4, "patch": 8, "batch": 2, "steps": 4, "save_every": 1}
SETTINGS |= {"log_every": 1, "warmup_steps": 2, "validation_crop": 32, "trackers": [], "workers": 0}
LEFT = ".transformersr-*.part"

forks = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and /proc and resource limits as Linux has them")


@pytest.fixture
def small(monkeypatch):
    """Runs of training have a network that takes no time."""
    monkeypatch.setitem(VARIANTS, "tiny", dataclasses.replace(V2, blocks="RWC"))


@pytest.fixture
def jobs(tmp_path):
    """Two small images to upscale, into a folder that is there."""
    (tmp_path / "out").mkdir()
    for index in range(2):
        synthetic_image(index, 8).save(tmp_path / f"{index}.png")
    return [Job(tmp_path / f"{index}.png", tmp_path / "out" / f"{index}.png") for index in range(2)]


def contents(folder):
    """Bytes of all files below a folder that are not hidden."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def state(run):
    return torch.load(run / "state.pt", weights_only=True)


# --- kills ---------------------------------------------------------------------------------------


def start(work, before=lambda: None):
    """Have some work done in a process of its own."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            before()
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid):
    """How a process ended: 0, 1 for an error, or less than 0 for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(event):
    """Have this process killed when it opens or renames a file aside for this time."""
    numbers = itertools.count()

    def hook(name, args):
        if name in ("open", "os.rename") and str(args[0]).endswith(".part") and next(numbers) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@forks
def test_upscaling_killed_at_every_file_resumes_to_the_same_bytes(jobs, tmp_path):
    upscaler, out = Upscaler(random_model(V2)), tmp_path / "out"
    run_jobs(jobs, upscaler)
    whole = contents(out)
    for event in itertools.count():
        shutil.rmtree(out)
        out.mkdir()
        code = ended(start(lambda: run_jobs(jobs, upscaler), before=lambda event=event: kill_at(event)))
        assert contents(out).items() <= whole.items()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert len(list(out.glob(LEFT))) == len(list(out.glob(".*"))) <= 1
        run_jobs(jobs, upscaler, resume=True)
        assert contents(out) == whole
    assert event >= 2 * 4  # made, written, brought to disk, renamed


@forks
def test_training_killed_while_it_saves_resumes_to_the_same_weights(folder, tmp_path, small):
    config = from_values({**SETTINGS, "steps": 2})
    train(config, folder, tmp_path / "straight")
    for event in (9, 22):
        run = tmp_path / str(event)
        assert ended(start(lambda run=run: train(config, folder, run), before=lambda event=event: kill_at(event))) == -signal.SIGKILL
        for path in run.glob("*.safetensors"):
            load_model(path)
        train(config, folder, run, resume=True)
        for name in ("best.safetensors", "last.safetensors"):
            one, other = (read_checkpoint(place / name) for place in (tmp_path / "straight", run))
            assert one.metadata == other.metadata
            assert all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)


@forks
def test_what_a_killed_process_left_is_hidden_and_removed_an_hour_later(tmp_path):
    target = tmp_path / "precious.txt"
    target.write_text("old")

    def die():
        with write_aside(target) as aside:
            aside.write_text("ne")
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(start(die)) == -signal.SIGKILL
    (left,) = tmp_path.glob(".*")
    for age, kept in ((0, True), (7200, False)):
        atomic._remove_abandoned.cache_clear()  # done once in a process
        os.utime(left, (left.stat().st_atime, left.stat().st_mtime - age))
        with write_aside(target) as aside:
            assert target.read_text() in ("old", "new")
            aside.write_text("new")
        assert left.exists() == kept
    assert target.read_text() == "new"


@forks
def test_two_converters_at_once_leave_one_whole_file(tmp_path):
    source, target = tmp_path / "transformerSR_b2_d64_w4_h4.pt", tmp_path / "transformerSR_b2_d64_w4_h4.safetensors"
    torch.save(random_state(2, 64, 4), source)
    convert_file(source, tmp_path / "alone.safetensors")
    expected = read_checkpoint(tmp_path / "alone.safetensors").weights
    reading, writing = os.pipe()
    for convert in [lambda: convert_file(source, target), lambda: as_safetensors(source)] * 3:
        target.unlink(missing_ok=True)
        both = [start(convert, before=lambda: os.read(reading, 1)) for _ in range(2)]
        os.write(writing, b"go")
        assert [ended(pid) for pid in both] == [0, 0]
        found = read_checkpoint(target).weights
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert not list(tmp_path.glob(LEFT))


# --- disks and rights ----------------------------------------------------------------------------


@contextmanager
def largest_file(size):
    """No file may become larger: what is beyond it fails as on a full disk, in the middle of a write."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def writers(folder, path):
    """Everything of ours that writes files, as functions of a path."""
    image, model = read_image(folder / "0.png"), random_model(V2)
    run = RunState.start(from_values({**SETTINGS, "seed": 1}), torch.device("cpu"))
    for suffix in FORMATS:
        yield path.with_suffix(f".{suffix}"), lambda path: write_image(image, path)
    yield path.with_suffix(".safetensors"), lambda path: save_model(model, path)
    yield path.with_suffix(".pt"), run.save
    yield path.with_suffix(".json"), lambda path: monitoring.write_json(path, {"values": list(range(1000))})


@forks
def test_a_write_that_fails_anywhere_is_an_oserror_and_leaves_the_old_file(folder, tmp_path, small):
    for path, write in writers(folder, tmp_path / "file"):
        write(path)
        size = path.stat().st_size
        path.write_text("old")
        for limit in (0, 1, size // 3, size - 1):
            with largest_file(limit), pytest.raises(OSError):
                write(path)
            assert contents(tmp_path) == {path.name: b"old"}, path
            assert not list(tmp_path.glob(".*"))
        path.unlink()


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MiB."""
    (tmp_path / "disk").mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path / "disk"], capture_output=True, check=False)
    if not done or done.returncode:
        pytest.skip("no right to mount a disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def at_step(monkeypatch, **acts):
    """Do something when a run reaches a step (`step_3=...`)."""
    rate = training.learning_rate

    def acting(config, now, done):
        acts.get(f"step_{now}", lambda: None)()
        return rate(config, now, done)

    monkeypatch.setattr(training, "learning_rate", acting)


def test_training_on_a_full_disk_goes_on_and_saves_when_there_is_room(folder, disk, monkeypatch, caplog, small):
    def fill():
        with suppress(OSError), open(disk / "full", "wb", buffering=0) as file:
            while file.write(bytes(100)):
                pass

    at_step(monkeypatch, step_1=fill, step_3=(disk / "full").unlink)
    train(from_values({**SETTINGS, "trackers": ["tensorboard"]}), folder, disk / "run")
    assert "step 2 is not saved (the disk is full; free some space)" in caplog.text
    assert state(disk / "run")["progress"]["step"] == 4
    records = [json.loads(line) for line in (disk / "run" / "train.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 4
    assert not list(disk.rglob(LEFT))


def test_best_weights_that_could_not_be_saved_do_not_keep_later_ones_out(folder, tmp_path, monkeypatch, small):
    save, names = monitoring.save_model, []

    def full(model, path, **options):
        names.append(path.name)
        if path.name == "best.safetensors" and len(names) > 2 and names.count("best.safetensors") == 2:
            raise OSError(28, "No space left on device")
        return save(model, path, **options)

    scores = iter((20.0, 30.0, 25.0, 24.0, 23.0))
    measure = Validation.measure

    def scored(*args):
        measured = measure(*args)
        return dataclasses.replace(measured, mean=dataclasses.replace(measured.mean, psnr_y=next(scores)))

    monkeypatch.setattr(Validation, "measure", scored)
    monkeypatch.setattr(monitoring, "save_model", full)
    best = train(from_values(SETTINGS), folder, tmp_path / "run")
    assert json.loads(read_checkpoint(best).metadata["training"])["scores"]["psnr_y"] == 25.0
    assert state(tmp_path / "run")["progress"]["best_psnr"] == 25.0


def test_a_torn_line_is_taken_back(tmp_path):
    path = tmp_path / "train.jsonl"
    monitoring._append(path, {"step": 1})
    with largest_file(path.stat().st_size + 4), pytest.raises(OSError):
        monitoring._append(path, {"step": 2})
    monitoring._append(path, {"step": 3})
    assert [record["step"] for record in read_records(path)] == [1, 3]


@forks
def test_a_folder_that_may_not_be_written_to_any_more_costs_the_images_that_follow_and_no_other():
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    (place / "in").mkdir()
    (place / "out").mkdir()
    jobs = [Job(place / "in" / f"{index}.png", place / "out" / f"{index}.png") for index in range(3)]
    for job in jobs:
        synthetic_image(0, 16).save(job.source)
    upscaler = Upscaler(random_model(V2))

    def take_the_right(index, share):
        if index == 1:
            (place / "out").chmod(0o500)

    def without_rights():
        os.chown(place / "out", 65534, -1)
        os.setuid(65534)  # nobody: root may write everywhere

    def work():
        (first, second) = run_jobs(jobs, upscaler, on_progress=take_the_right)
        assert [first.source, second.source] == [job.source for job in jobs[1:]]
        assert first.reason == f"[Errno 13] Permission denied: '{jobs[1].target}'"

    assert ended(start(work, before=without_rights if os.geteuid() == 0 else lambda: None)) == 0
    (place / "out").chmod(0o700)
    assert list(contents(place / "out")) == ["0.png"]
    assert not list(place.rglob(".*"))
    shutil.rmtree(place)


# --- memory --------------------------------------------------------------------------------------


def raising_at(monkeypatch, number, error):
    """Have a network raise an error when it hands rows on for this time, once."""
    numbers = itertools.count()

    def failing(model, image, band_rows, *, on_rows, **options):
        def rows(count):
            if next(numbers) == number:
                raise error
            on_rows(count)

        return stream(model, image, band_rows, on_rows=rows, **options)

    monkeypatch.setattr(engine, "stream", failing)


FULL = [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("could not create a primitive"), MemoryError()]


def test_running_out_of_memory_at_any_band_gives_the_same_image(monkeypatch):
    monkeypatch.setattr("transformersr.upscale.planning.CPU_BAND_BYTES", 8 * 8 * 16 * 16 * 4)
    model, image, calls = random_model(V2), torch.rand(1, 3, 24, 16), []
    expected = upscale(model, image, on_progress=lambda *call: calls.append(call))
    for number in range(len(calls)):
        raising_at(monkeypatch, number, FULL[number % 3])
        assert (upscale(model, image) - expected).abs().max() <= 1e-5
    assert len(calls) > 5


def test_a_result_that_no_memory_holds_is_refused_in_one_sentence():
    huge = torch.zeros(1, 3, 8, 8).expand(10**13, 3, 8, 8)
    with pytest.raises(MemoryBudgetError, match=r"10000000000000 results of 16x16.*fewer at a time"):
        Upscaler(random_model(V2))(huge)


def test_what_there_is_no_room_for_costs_a_checkpoint_or_a_line_and_not_the_run(folder, tmp_path, monkeypatch, caplog, small):
    measure, append, numbers = Validation.measure, monitoring._append, itertools.count()

    def full(*args):
        if next(numbers) == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return measure(*args)

    def full_disk(path, values):
        if path.name == "train.jsonl" and values["step"] == 1:
            raise OSError(28, "No space left on device")
        append(path, values)

    monkeypatch.setattr(Validation, "measure", full)
    monkeypatch.setattr(monitoring, "_append", full_disk)
    train(from_values({**SETTINGS, "steps": 3}), folder, tmp_path / "run")
    assert "metrics of step 1 are not written (the disk is full" in caplog.text
    assert "step 2 is not saved (CUDA out of memory" in caplog.text
    assert state(tmp_path / "run")["progress"]["step"] == 3


def test_training_out_of_memory_at_any_part_of_a_step_does_it_again(folder, tmp_path, monkeypatch, small):
    config = from_values({**SETTINGS, "steps": 2, "save_every": 0, "batch": 4, "micro_batch": 2})
    expected = read_checkpoint(train(config, folder, tmp_path / "one")).weights
    measure = losses.edge_weighted_l1
    for number, error in enumerate(FULL):
        numbers = itertools.count()

        def full(*args, number=number, error=error, numbers=numbers, **options):
            if next(numbers) == number:
                raise error
            return measure(*args, **options)

        monkeypatch.setattr(losses, "edge_weighted_l1", full)
        found = read_checkpoint(train(config, folder, tmp_path / str(number))).weights
        assert state(tmp_path / str(number))["progress"]["micro_batch"] == 1
        assert all(torch.allclose(found[name].float(), expected[name].float(), atol=2e-4) for name in expected)


def group(root, path, version, limit, used, droppable):
    """A control group in a tree as Linux shows it."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    folder = root / ("sys/fs/cgroup/memory" if version == 1 else "sys/fs/cgroup") / path
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, use_name, droppable_name = names[version]
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / use_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 9\n{droppable_name} {droppable}\n")


@pytest.mark.parametrize(
    ("membership", "version"),
    [("0::/a/b", 2), ("3:cpu:/\n5:memory:/a/b\n0::/", 1), ("0::/only/outside", 2), ("7:cpuset,memory:/only/outside", 1)],
)
def test_the_limit_of_a_container_is_known(tmp_path, membership, version):
    assert room_in_container(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership + "\n")
    assert room_in_container(tmp_path) is None
    unlimited = "max" if version == 2 else 2**63 - 4096
    group(tmp_path, "", version, 2**30, 700, 200)
    assert room_in_container(tmp_path) == 2**30 - 500
    group(tmp_path, "a", version, 1000, 400, 100)
    group(tmp_path, "a/b", version, unlimited, 5, 5)
    assert room_in_container(tmp_path) == (700 if "a/b" in membership else 2**30 - 500)


# --- gradients, cancelling -----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this PyTorch has a scaler for CUDA alone")
def test_a_bad_gradient_of_the_discriminator_stops_the_step_of_both_networks_in_fp16():
    net_g, net_d = nn.Linear(1, 1), nn.Linear(1, 1)
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(net_g.parameters(), lr=1.0)
    run = SimpleNamespace(net_d=net_d, optimizer_d=torch.optim.SGD(net_d.parameters(), lr=1.0), scaler=scaler, progress=Progress())
    nets = SimpleNamespace(optimizer=SimpleNamespace(step=lambda: (scaler.step(optimizer), scaler.update()), zero_grad=optimizer.zero_grad))
    for bad, taken in ((1.0, True), (float("nan"), False), (1.0, True)):
        before = net_g.weight.item(), net_d.weight.item()
        scaler.scale(net_g(torch.ones(1))).sum().backward()
        (net_d(torch.ones(1)) * bad).sum().backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(net_g.parameters(), 1.0)
        assert steps.optimizer_step(run, nets, norm) == taken
        assert (net_g.weight.item() != before[0], net_d.weight.item() != before[1]) == (taken, taken)


class Cancelled(Exception):
    pass


def cancelling_at(number):
    """A progress callback that cancels when it is called for this time."""
    numbers = itertools.count()

    def progress(*call):
        if next(numbers) == number:
            raise Cancelled

    return progress


def live_tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_cancelling_at_any_call_leaves_nothing_behind(folder, tmp_path):
    upscaler, calls = Upscaler(random_model(V2)), []
    job = Job(tmp_path / "in.png", tmp_path / "out.png")
    synthetic_image(0, 12).convert("RGBA").resize((9, 14)).save(job.source)
    options = {"factor": 3}  # the network runs twice, and what it gives is resized
    run_jobs([job], upscaler, **options, on_progress=lambda *call: calls.append(call))
    whole, before = job.target.read_bytes(), live_tensors()
    job.target.unlink()
    for number in range(len(calls)):
        with pytest.raises(Cancelled):
            run_jobs([job], upscaler, **options, on_progress=cancelling_at(number))
        assert {path.name for path in tmp_path.iterdir()} == {"in.png", "out.png"} if number == len(calls) - 1 else {"in.png"}
        job.target.unlink(missing_ok=True)
    assert live_tensors() == before
    run_jobs([job], upscaler, **options)
    assert job.target.read_bytes() == whole
    assert len(calls) > 5


def test_cancelling_at_any_call_leaves_the_precision_as_it_was(caplog):
    model, calls = random_model(V2), []
    with torch.no_grad():
        model.conv_first.weight.mul_(1e5)  # half precision overflows, and the image is done again in float32
        model.upsample.weight.mul_(1e-3)
    image = torch.rand(1, 3, 16, 16)
    expected = upscale(model.half(), image, on_progress=lambda *call: calls.append(call))
    for number in range(len(calls)):
        with pytest.raises(Cancelled):
            upscale(model, image, on_progress=cancelling_at(number))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert torch.equal(upscale(model, image), expected)


# --- a mixed folder, as tests/long/load.py has it at length -----------------------------------------


@pytest.mark.parametrize("transparent", [False, True])
def test_sixteen_bits_of_colour_go_through_upscaling(tmp_path, transparent):
    color = np.random.default_rng(0).random((9, 7, 3), np.float32)
    write_image(ImageData(color, color[..., 0] if transparent else None, Carried(bits=16)), tmp_path / "in.png")
    assert run_jobs([Job(tmp_path / "in.png", tmp_path / "out.png")], Upscaler(random_model(V2))) == []
    large = read_image(tmp_path / "out.png")
    assert (large.color.shape, large.carried.bits, large.alpha is not None) == ((18, 14, 3), 16, transparent)
