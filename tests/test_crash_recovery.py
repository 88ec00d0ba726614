"""Killed processes, full disks, lost permissions, concurrent writers: no file is half-written and no work is lost."""

from __future__ import annotations

import dataclasses
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

import pytest
import torch

from transformersr import Upscaler
from transformersr.training.config import from_values
from transformersr.training.results import monitor as monitoring
from transformersr.training.results.run_files import read_records
from transformersr.training.results.validate import Validation
from transformersr.training.run_state import RunState
from transformersr.training.train import train
from transformersr.upscale import atomic
from transformersr.upscale.atomic import write_aside
from transformersr.upscale.batch import Job, run_jobs
from transformersr.upscale.checkpoint import convert_file, load_model, read_checkpoint, save_model
from transformersr.upscale.image_io import FORMATS, read_image, write_image
from transformersr.upscale.models import as_safetensors

from plain_v1 import random_state
from random_models import V2, random_model
from short_runs import X2_SETTINGS, at_step, read_state
from synthetic_images import synthetic_image

PART_FILES = ".transformersr-*.part"

forks = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and Linux resource limits")


@pytest.fixture
def jobs(tmp_path):
    """Jobs for two small images; the output folder exists."""
    (tmp_path / "out").mkdir()
    for index in range(2):
        synthetic_image(index, 8).save(tmp_path / f"{index}.png")
    return [Job(tmp_path / f"{index}.png", tmp_path / "out" / f"{index}.png") for index in range(2)]


def read_files(folder):
    """Name and content of all files below a folder that are not hidden."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


# --- kills ---------------------------------------------------------------------------------------


def fork(function, before=lambda: None):
    """Run a function in a forked process and return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            before()
            function()
            code = 0
        finally:
            os._exit(code)
    return pid


def wait_for(pid):
    """Wait for a process and return its exit code, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(event):
    """Kill this process at the opening or renaming of a temporary file that has this number."""
    counter = itertools.count()

    def hook(name, args):
        if name in ("open", "os.rename") and str(args[0]).endswith(".part") and next(counter) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@forks
def test_upscaling_killed_at_any_write_resumes_to_the_same_bytes(jobs, tmp_path):
    upscaler, out = Upscaler(random_model(V2)), tmp_path / "out"
    run_jobs(jobs, upscaler)
    expected = read_files(out)
    for event in itertools.count():
        shutil.rmtree(out)
        out.mkdir()
        code = wait_for(fork(lambda: run_jobs(jobs, upscaler), before=lambda event=event: kill_at(event)))
        assert read_files(out).items() <= expected.items()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert len(list(out.glob(PART_FILES))) == len(list(out.glob(".*"))) <= 1
        run_jobs(jobs, upscaler, resume=True)
        assert read_files(out) == expected
    assert event >= 2 * 4  # created, written, synced, renamed


@forks
def test_training_killed_while_saving_resumes_to_the_same_weights(folder, tmp_path, tiny_network):
    config = from_values({**X2_SETTINGS, "steps": 2})
    train(config, folder, tmp_path / "straight")
    for event in (9, 22):
        run = tmp_path / str(event)
        assert wait_for(fork(lambda run=run: train(config, folder, run), before=lambda event=event: kill_at(event))) == -signal.SIGKILL
        for path in run.glob("*.safetensors"):
            load_model(path)
        train(config, folder, run, resume=True)
        for name in ("best.safetensors", "last.safetensors"):
            expected, result = (read_checkpoint(run_folder / name) for run_folder in (tmp_path / "straight", run))
            assert expected.metadata == result.metadata
            assert all(torch.equal(expected.weights[key], result.weights[key]) for key in expected.weights)


@forks
def test_leftover_part_files_are_hidden_and_later_removed(tmp_path):
    target = tmp_path / "precious.txt"
    target.write_text("old")

    def die():
        with write_aside(target) as aside:
            aside.write_text("ne")
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(fork(die)) == -signal.SIGKILL
    (leftover,) = tmp_path.glob(".*")
    for age, kept in ((0, True), (7200, False)):
        atomic._remove_abandoned.cache_clear()  # cleanup runs once per process
        os.utime(leftover, (leftover.stat().st_atime, leftover.stat().st_mtime - age))
        with write_aside(target) as aside:
            assert target.read_text() in ("old", "new")
            aside.write_text("new")
        assert leftover.exists() == kept
    assert target.read_text() == "new"


@forks
def test_concurrent_conversions_leave_one_complete_file(tmp_path):
    source, target = tmp_path / "transformerSR_b2_d64_w4_h4.pt", tmp_path / "transformerSR_b2_d64_w4_h4.safetensors"
    torch.save(random_state(2, 64, 4), source)
    convert_file(source, tmp_path / "alone.safetensors")
    expected = read_checkpoint(tmp_path / "alone.safetensors").weights
    reading, writing = os.pipe()
    for convert in [lambda: convert_file(source, target), lambda: as_safetensors(source)] * 3:
        target.unlink(missing_ok=True)
        both = [fork(convert, before=lambda: os.read(reading, 1)) for _ in range(2)]
        os.write(writing, b"go")
        assert [wait_for(pid) for pid in both] == [0, 0]
        found = read_checkpoint(target).weights
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert not list(tmp_path.glob(PART_FILES))


# --- disks and permissions -----------------------------------------------------------------------


@contextmanager
def limit_file_size(size):
    """Limit the size of files: a write beyond it fails halfway, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def writers(folder, path):
    """Yield every kind of file that we write: a path and a function that writes it."""
    image, model = read_image(folder / "0.png"), random_model(V2)
    run = RunState.start(from_values({**X2_SETTINGS, "seed": 1}), torch.device("cpu"))
    for suffix in FORMATS:
        yield path.with_suffix(f".{suffix}"), lambda path: write_image(image, path)
    yield path.with_suffix(".safetensors"), lambda path: save_model(model, path)
    yield path.with_suffix(".pt"), run.save
    yield path.with_suffix(".json"), lambda path: monitoring.write_json(path, {"values": list(range(1000))})


@forks
def test_failed_write_raises_oserror_and_keeps_the_old_file(folder, tmp_path, tiny_network):
    for path, write in writers(folder, tmp_path / "file"):
        write(path)
        size = path.stat().st_size
        path.write_text("old")
        for limit in (0, 1, size // 3, size - 1):
            with limit_file_size(limit), pytest.raises(OSError):
                write(path)
            assert read_files(tmp_path) == {path.name: b"old"}, path
            assert not list(tmp_path.glob(".*"))
        path.unlink()


@pytest.fixture
def disk(tmp_path):
    """A mounted disk of 4 MiB."""
    (tmp_path / "disk").mkdir()
    mount = shutil.which("mount")
    result = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path / "disk"], capture_output=True, check=False)
    if not result or result.returncode:
        pytest.skip("mounting a disk needs root")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_training_survives_a_full_disk_and_saves_when_space_returns(folder, disk, monkeypatch, caplog, tiny_network):
    def fill():
        with suppress(OSError), open(disk / "full", "wb", buffering=0) as file:
            while file.write(bytes(100)):
                pass

    at_step(monkeypatch, {1: fill, 3: (disk / "full").unlink})
    train(from_values({**X2_SETTINGS, "trackers": ["tensorboard"]}), folder, disk / "run")
    assert "step 2 is not saved (the disk is full; free some space)" in caplog.text
    assert read_state(disk / "run")["progress"]["step"] == 4
    records = [json.loads(line) for line in (disk / "run" / "train.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 4
    assert not list(disk.rglob(PART_FILES))


def test_unsaved_best_weights_do_not_block_later_ones(folder, tmp_path, monkeypatch, tiny_network):
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
    best = train(from_values(X2_SETTINGS), folder, tmp_path / "run")
    assert json.loads(read_checkpoint(best).metadata["training"])["scores"]["psnr_y"] == 25.0
    assert read_state(tmp_path / "run")["progress"]["best_psnr"] == 25.0


def test_partial_log_line_is_removed(tmp_path):
    path = tmp_path / "train.jsonl"
    monitoring._append(path, {"step": 1})
    with limit_file_size(path.stat().st_size + 4), pytest.raises(OSError):
        monitoring._append(path, {"step": 2})
    monitoring._append(path, {"step": 3})
    assert [record["step"] for record in read_records(path)] == [1, 3]


@forks
def test_folder_made_read_only_fails_only_the_images_after_it():
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "in").mkdir()
    (root / "out").mkdir()
    jobs = [Job(root / "in" / f"{index}.png", root / "out" / f"{index}.png") for index in range(3)]
    for job in jobs:
        synthetic_image(0, 16).save(job.source)
    upscaler = Upscaler(random_model(V2))

    def make_read_only(index, share):
        if index == 1:
            (root / "out").chmod(0o500)

    def drop_privileges():
        os.chown(root / "out", 65534, -1)
        os.setuid(65534)  # the user nobody; root ignores permissions

    def work():
        (first, second) = run_jobs(jobs, upscaler, on_progress=make_read_only)
        assert [first.source, second.source] == [job.source for job in jobs[1:]]
        assert first.reason == f"[Errno 13] Permission denied: '{jobs[1].target}'"

    assert wait_for(fork(work, before=drop_privileges if os.geteuid() == 0 else lambda: None)) == 0
    (root / "out").chmod(0o700)
    assert list(read_files(root / "out")) == ["0.png"]
    assert not list(root.rglob(".*"))
    shutil.rmtree(root)
