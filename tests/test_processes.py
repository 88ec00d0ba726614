"""Several processes share a folder and leave what one would have left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from transformersr.arch import save_model
from transformersr.training.config import from_values
from transformersr.training.train import start_accelerator
from transformersr.upscale.batch import Job, largest_first
from transformersr.upscale.cli import main
from transformersr.upscale.processes import Processes, SharingProcesses, check_cpu_processes, find_processes

from random_models import V2, random_model

needs_cpu_processes = pytest.mark.skipif(
    not hasattr(torch.cpu, "set_device"), reason="accelerate's processes on CPUs need a PyTorch after 2.1"
)
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
"""`accelerate launch`; the option does not ask whether there are GPUs, and without it there would be one process."""
ONE_OF_TWO = Path(__file__).parent / "programs" / "upscale_and_die.py"


@pytest.fixture
def folder(tmp_path):
    """Six images of several sizes, one of them below, and one that is none."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for index in range(6):
        Image.effect_noise((12 + 5 * index, 14), 60).convert("RGB").save(tmp_path / "in" / ("deep" if index == 3 else "") / f"{index}.png")
    (tmp_path / "in" / "broken.png").write_text("hello")
    save_model(random_model(V2), tmp_path / "model.safetensors")
    return tmp_path / "in"


def arguments(folder, out):
    return ["upscale", str(folder), "-o", str(folder.parent / out), "-m", str(folder.parent / "model.safetensors"), "--device", "cpu"]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_cpu_processes
def test_two_processes_leave_the_files_of_one_and_speak_with_one_voice(folder):
    command = [sys.executable, *LAUNCH, "-m", "transformersr", *arguments(folder, "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stdout == "6 of 7 images done\n"
    assert done.stderr.count("broken.png: not an image") == 1
    assert CliRunner().invoke(main, arguments(folder, "one")).stdout == done.stdout
    assert contents(folder.parent / "two") == contents(folder.parent / "one")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@needs_cpu_processes
def test_a_process_that_dies_hangs_nobody_and_the_rest_is_done_by_the_next_run(folder):
    (folder / "broken.png").unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [
        subprocess.Popen(
            [sys.executable, str(ONE_OF_TWO), *arguments(folder, "out")],
            env={**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    errors = [process.communicate(timeout=300)[1] for process in run]
    assert [process.returncode for process in run] == [1, -signal.SIGKILL]
    assert "another process ended" in errors[0]
    assert "Traceback" not in errors[0]
    before = contents(folder.parent / "out")
    assert len(before) == 4  # three of one process and the first of the other, none of them half
    assert CliRunner().invoke(main, [*arguments(folder, "out"), "--resume"]).exit_code == 0
    assert CliRunner().invoke(main, arguments(folder, "one")).exit_code == 0
    assert contents(folder.parent / "out") == contents(folder.parent / "one")


def test_dealing_out_the_largest_first_is_fair(tmp_path):
    for width in (10, 80, 20, 40):
        Image.new("L", (width, 10)).save(tmp_path / f"{width}.png")
    (tmp_path / "none.png").touch()
    jobs = largest_first([Job(path, Path()) for path in sorted(tmp_path.iterdir())])
    assert [job.source.stem for job in jobs] == ["80", "40", "20", "10", "none"]
    shares = [fake(rank, 2).share(jobs) for rank in (0, 1)]
    assert [job.source.stem for job in shares[0]] == ["80", "20", "none"]
    assert sorted(jobs, key=str) == sorted(shares[0] + shares[1], key=str)


def fake(rank, count):
    """One of several processes that has met none of the others."""
    processes = SharingProcesses.__new__(SharingProcesses)
    processes.index, processes.count = rank, count
    processes._state = SimpleNamespace(local_process_index=rank)
    return processes


def test_each_process_has_a_device_of_its_own(monkeypatch):
    assert fake(1, 2).device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [fake(rank, 3).device("auto") for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [fake(1, 2).device(name) for name in ("cuda", "cuda:0", "cpu", "mps")] == ["cuda:1", "cuda:0", "cpu", "mps"]
    assert Processes().device("auto") == "auto"


def test_accelerate_is_asked_only_where_a_launcher_started_several_and_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert find_processes().share([1, 2, 3]) == [1, 2, 3]
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert find_processes().count == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="pip install accelerate"):
        find_processes()


def test_a_pytorch_that_cannot_have_several_processes_on_cpus_is_named_before_accelerate_fails(monkeypatch, tmp_path):
    monkeypatch.delattr(torch.cpu, "set_device", raising=False)  # as in 2.1
    config = from_values({"size": "tiny", "init": "none", "device": "cpu", "trackers": []})
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for start in (find_processes, lambda: start_accelerator(config, tmp_path)):
        with pytest.raises(ValueError, match=r"several CPU processes need a PyTorch newer than 2\.1.*; start one process"):
            start()
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_cpu_processes()
