"""Running out of memory: the same result with less, or one clear message."""

from __future__ import annotations

import itertools

import pytest
import torch

from transformersr import Upscaler
from transformersr.arch.streaming import stream
from transformersr.training import losses
from transformersr.training.config import from_values
from transformersr.training.results import monitor as monitoring
from transformersr.training.results.validate import Validation
from transformersr.training.train import train
from transformersr.upscale import engine
from transformersr.upscale.checkpoint import read_checkpoint
from transformersr.upscale.engine import MemoryBudgetError, upscale
from transformersr.upscale.memory import room_in_container

from random_models import V2, random_model
from short_runs import X2_SETTINGS, read_state


def raise_at(monkeypatch, number, error):
    """Have a network raise an error once, at the row callback with this number."""
    numbers = itertools.count()

    def stream_and_fail(model, image, band_rows, *, on_rows, **options):
        def rows(count):
            if next(numbers) == number:
                raise error
            on_rows(count)

        return stream(model, image, band_rows, on_rows=rows, **options)

    monkeypatch.setattr(engine, "stream", stream_and_fail)


FULL = [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("could not create a primitive"), MemoryError()]


def test_out_of_memory_at_any_band_gives_the_same_image(monkeypatch):
    monkeypatch.setattr("transformersr.upscale.planning.CPU_BAND_BYTES", 8 * 8 * 16 * 16 * 4)
    model, image, calls = random_model(V2), torch.rand(1, 3, 24, 16), []
    expected = upscale(model, image, on_progress=lambda *call: calls.append(call))
    for number in range(len(calls)):
        raise_at(monkeypatch, number, FULL[number % 3])
        assert (upscale(model, image) - expected).abs().max() <= 1e-5
    assert len(calls) > 5


def test_result_larger_than_memory_is_rejected_in_one_sentence():
    huge = torch.zeros(1, 3, 8, 8).expand(10**13, 3, 8, 8)
    with pytest.raises(MemoryBudgetError, match=r"10000000000000 results of 16x16.*fewer at a time"):
        Upscaler(random_model(V2))(huge)


def test_failed_log_line_or_checkpoint_does_not_end_the_run(folder, tmp_path, monkeypatch, caplog, tiny_network):
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
    train(from_values({**X2_SETTINGS, "steps": 3}), folder, tmp_path / "run")
    assert "metrics of step 1 are not written (the disk is full" in caplog.text
    assert "step 2 is not saved (CUDA out of memory" in caplog.text
    assert read_state(tmp_path / "run")["progress"]["step"] == 3


def test_out_of_memory_in_any_micro_batch_repeats_the_step(folder, tmp_path, monkeypatch, tiny_network):
    config = from_values({**X2_SETTINGS, "steps": 2, "save_every": 0, "batch": 4, "micro_batch": 2})
    expected = read_checkpoint(train(config, folder, tmp_path / "one")).weights
    measure = losses.pixel_loss
    for number, error in enumerate(FULL):
        numbers = itertools.count()

        def full(*args, number=number, error=error, numbers=numbers, **options):
            if next(numbers) == number:
                raise error
            return measure(*args, **options)

        monkeypatch.setattr(losses, "pixel_loss", full)
        found = read_checkpoint(train(config, folder, tmp_path / str(number))).weights
        assert read_state(tmp_path / str(number))["progress"]["micro_batch"] == 1
        assert all(torch.allclose(found[name].float(), expected[name].float(), atol=2e-4) for name in expected)


def write_cgroup(root, path, version, limit, used, droppable):
    """Write the files of a control group as Linux shows them."""
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
def test_container_memory_limit_is_read_from_cgroups(tmp_path, membership, version):
    assert room_in_container(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership + "\n")
    assert room_in_container(tmp_path) is None
    unlimited = "max" if version == 2 else 2**63 - 4096
    write_cgroup(tmp_path, "", version, 2**30, 700, 200)
    assert room_in_container(tmp_path) == 2**30 - 500
    write_cgroup(tmp_path, "a", version, 1000, 400, 100)
    write_cgroup(tmp_path, "a/b", version, unlimited, 5, 5)
    assert room_in_container(tmp_path) == (700 if "a/b" in membership else 2**30 - 500)
