"""Several processes share a folder and write the same files as one."""

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
from PIL import Image

from transformersr.training.config import from_values
from transformersr.training.train import start_accelerator
from transformersr.upscale.batch import Job, largest_first
from transformersr.upscale.checkpoint import save_model
from transformersr.upscale.processes import Processes, SharingProcesses, check_cpu_processes, find_processes

from command_line import run
from random_models import V2, random_model

needs_cpu_processes = pytest.mark.skipif(not hasattr(torch.cpu, "set_device"), reason="accelerate's CPU processes need PyTorch above 2.1")
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
"""`accelerate launch`; --multi_gpu works without GPUs, and without it only one process is started."""
KILLED_PROCESS = Path(__file__).parent / "programs" / "upscale_and_die.py"


@pytest.fixture
def folder(tmp_path):
    """Six images of several sizes, one in a subfolder, and a file that is not an image."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for index in range(6):
        Image.effect_noise((12 + 5 * index, 14), 60).convert("RGB").save(tmp_path / "in" / ("deep" if index == 3 else "") / f"{index}.png")
    (tmp_path / "in" / "broken.png").write_text("hello")
    save_model(random_model(V2), tmp_path / "model.safetensors")
    return tmp_path / "in"


def arguments(folder, out):
    return ["upscale", str(folder), "-o", str(folder.parent / out), "-m", str(folder.parent / "model.safetensors"), "--device", "cpu"]


def read_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_cpu_processes
def test_two_processes_give_the_same_files_and_output_as_one(folder):
    command = [sys.executable, *LAUNCH, "-m", "transformersr", *arguments(folder, "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stdout == "6 of 7 images done\n"
    assert done.stderr.count("broken.png: not an image") == 1
    assert run(*arguments(folder, "one")).stdout == done.stdout
    assert read_files(folder.parent / "two") == read_files(folder.parent / "one")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@needs_cpu_processes
def test_killed_process_does_not_hang_the_other_and_can_be_resumed(folder):
    (folder / "broken.png").unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(KILLED_PROCESS), *arguments(folder, "out")],
            env={**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL]
    assert "another process ended" in errors[0]
    assert "Traceback" not in errors[0]
    before = read_files(folder.parent / "out")
    assert len(before) == 4  # three from one process and the first of the other, all complete
    assert run(*arguments(folder, "out"), "--resume").exit_code == 0
    assert run(*arguments(folder, "one")).exit_code == 0
    assert read_files(folder.parent / "out") == read_files(folder.parent / "one")


def test_images_are_shared_out_largest_first(tmp_path):
    for width in (10, 80, 20, 40):
        Image.new("L", (width, 10)).save(tmp_path / f"{width}.png")
    (tmp_path / "none.png").touch()
    jobs = largest_first([Job(path, Path()) for path in sorted(tmp_path.iterdir())])
    assert [job.source.stem for job in jobs] == ["80", "40", "20", "10", "none"]
    shares = [make_process(rank, 2).share(jobs) for rank in (0, 1)]
    assert [job.source.stem for job in shares[0]] == ["80", "20", "none"]
    assert sorted(jobs, key=str) == sorted(shares[0] + shares[1], key=str)


def make_process(rank, count):
    """One of several processes, without a connection to the others."""
    processes = SharingProcesses.__new__(SharingProcesses)
    processes.index, processes.count = rank, count
    processes._state = SimpleNamespace(local_process_index=rank)
    return processes


def test_each_process_gets_its_own_device(monkeypatch):
    assert make_process(1, 2).device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [make_process(rank, 3).device("auto") for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [make_process(1, 2).device(name) for name in ("cuda", "cuda:0", "cpu", "mps")] == ["cuda:1", "cuda:0", "cpu", "mps"]
    assert Processes().device("auto") == "auto"


def test_accelerate_is_needed_only_for_several_processes(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert find_processes().share([1, 2, 3]) == [1, 2, 3]
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert find_processes().count == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="pip install accelerate"):
        find_processes()


def test_old_pytorch_with_several_cpu_processes_is_rejected_early(monkeypatch, tmp_path):
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
