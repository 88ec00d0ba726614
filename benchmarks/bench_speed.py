"""Compare the speed of the networks with each other and with the speed of the machine.

    python benchmarks/bench_speed.py --threads 1
    python benchmarks/bench_speed.py --device cuda --dtypes fp32 fp16 bf16 --sides 512 1024
    python benchmarks/bench_speed.py --threads 1 --checkout ../transformersr-0.1.0

The floor of a network is the time of its multiply-adds (PyTorch's count for the forward pass) at the rate that its linear layers and
convolutions reach alone, in the same run and precision; a share of 1 means that nothing else takes time. `plain` is a plain implementation
of the original network (tests/plain_v1.py) with the same weights. `span-ch48` runs in ncnn (benchmarks/peers.py). "NAME of CHECKOUT" is
the network of that name in another version of this package. All networks run alternately after a warm-up. Times are medians, on a CPU of
the process's CPU time.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformersr.arch import VARIANTS, TransformerSR
from transformersr.arch.state_dict import recognise
from transformersr.training.results.evaluate import markdown_table
from transformersr.upscale.engine import upscale
from transformersr.upscale.upscaler import DTYPES

from machine import command_line, describe_machine, write_report
from peers import NotInstalled, load_peer

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from plain_v1 import plain_v1, random_state

ORIGINAL = {"pairs": 8, "dim": 256, "scale": 4}
HEADS, WINDOW = 16, 4


@dataclass
class Subject:
    """A forward pass to time."""

    name: str
    run: Callable[[], Tensor]
    net: nn.Module | None = None
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[128], help="sides of the input image")
    parser.add_argument("--sizes", nargs="+", default=["original", "tiny", "base"], choices=list(VARIANTS))
    parser.add_argument("--dtypes", nargs="+", default=["fp32"], choices=list(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkout", type=Path, help="folder of another version of this package to compare with")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    columns = ("side", "dtype", "network", "parameters", "Mpx/s", "time / first", "share of the floor", "GFLOP/s of its layers")
    rows: list[list[str]] = []
    with torch.inference_mode():
        for side in options.sides:
            for dtype in options.dtypes:
                rows += measure(side, dtype, options)
    head = f"# Speed, {time.strftime('%Y-%m-%d')}\n\n    {command_line(sys.argv[1:])}\n\n{describe_machine()}."
    device = f" On {torch.cuda.get_device_name()}." if options.device.startswith("cuda") else ""
    explained = (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip()
    text = "\n\n".join([head + device, explained, markdown_table(columns, rows)]) + "\n"
    write_report(text, f"speed-{torch.device(options.device).type}", options.out)


def measure(side: int, dtype: str, options: argparse.Namespace) -> list[list[str]]:
    """Return the table rows of all networks at one size and precision."""
    device = torch.device(options.device)
    image = torch.rand(1, 3, side, side, device=device, dtype=DTYPES[dtype])
    subjects = [subject for size in options.sizes for subject in make_subjects(size, image, options.checkout)]
    layers = {subject.name: Layers(subject.net, image) for subject in subjects if subject.net is not None}
    alone = [Subject(f"layers of {name}", layer.run) for name, layer in layers.items()]
    if device.type == "cpu" and dtype == "fp32":
        try:
            subjects.append(Subject("span-ch48", partial(load_peer("span-ch48", 4).upscale, image)))
        except NotInstalled as error:
            print(error)
    take_turns([*subjects, *alone], options.repeats, device)
    rates = {name: layer.flops / subject.seconds for (name, layer), subject in zip(layers.items(), alone, strict=True)}
    rows = []
    for subject in subjects:
        cells = [f"{side**2 / subject.seconds / 1e6:.3f}", f"{subject.seconds / subjects[0].seconds:.3f}"]
        if subject.net is not None:
            floor = layers[subject.name].network_flops / rates[subject.name]
            cells += [f"{floor / subject.seconds:.2f}", f"{rates[subject.name] / 1e9:.0f}"]
        parameters = f"{sum(p.numel() for p in subject.net.parameters()):,}" if subject.net is not None else ""
        rows.append([str(side), dtype, subject.name, parameters, *cells, *[""] * (4 - len(cells))])
    return rows


def make_subjects(size: str, image: Tensor, checkout: Path | None) -> list[Subject]:
    """Return a network as the engine runs it, its counterpart in another version, and for the original size the plain implementation."""
    state = random_state(**ORIGINAL) if size == "original" else None
    net = TransformerSR(VARIANTS[size])
    if state is not None:
        net.load_state_dict(recognise(state, {}, window_size=WINDOW, num_heads=HEADS).weights)
    net = net.to(image.device, image.dtype).eval()
    subjects = [Subject(size, partial(upscale, net, image), net)]
    if checkout is not None:
        arch, engine = load_checkout(checkout)
        other = arch.TransformerSR(arch.VARIANTS[size]).to(image.device, image.dtype).eval()
        subjects.append(
            Subject(f"{size} of {checkout.name}", partial(getattr(engine, "upscale", None) or engine.enlarge, other, image), other)
        )
    if state is not None:
        state = {name: value.to(image.device, image.dtype) for name, value in state.items()}
        subjects.append(Subject("plain", partial(plain_v1, state, image, HEADS, WINDOW)))
    return subjects


def load_checkout(folder: Path) -> tuple[ModuleType, ModuleType]:
    """Import `arch` and the engine of another version under a separate name."""
    name = "transformersr_of_checkout"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.arch"), importlib.import_module(f"{name}.upscale.engine")


class Layers:
    """The linear layers and convolutions of a network, run alone on the same number of pixels."""

    def __init__(self, net: nn.Module, image: Tensor):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter misses operations of other kernels
            net(image)
        self.network_flops = counter.get_total_flops()
        modules = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        inputs = {tuple(module.weight.shape): _input_of(module, image) for module in modules}
        self.calls = [(module, inputs[tuple(module.weight.shape)]) for module in modules]
        with FlopCounterMode(display=False) as counter:
            self.run()
        self.flops = counter.get_total_flops()

    def run(self) -> Tensor:
        return [nn.Module.__call__(module, x) if isinstance(module, nn.Linear) else _convolve(module, x) for module, x in self.calls][-1]


def _convolve(module: nn.Conv2d, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, module.weight, module.bias, padding=module.padding, groups=module.groups)


def _input_of(module: nn.Linear | nn.Conv2d, image: Tensor) -> Tensor:
    height, width = image.shape[2:]
    if isinstance(module, nn.Linear):
        return torch.randn(height * width, module.in_features).to(image)
    return torch.randn(1, module.in_channels, height, width).to(image).contiguous(memory_format=torch.channels_last)


def take_turns(subjects: list[Subject], repeats: int, device: torch.device) -> None:
    """Time all subjects alternately and keep the medians."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for turn in range(repeats + 1):
        for subject in subjects:
            start = clock()
            subject.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first turn warms up
                seconds[subject.name].append(clock() - start)
    for subject in subjects:
        subject.seconds = median(seconds[subject.name])


if __name__ == "__main__":
    main()
