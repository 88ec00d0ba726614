"""Export a network to ONNX, for programs without PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arch import TransformerSR
from ...upscale.atomic import write_aside

OPSET = 18
INSTALL = 'pip install "transformersr[onnx]"'
MAX_SIDE = 2**15


class WholeImage(nn.Module):
    """The network applied to one image of any size.

    It pads as the network does, but in terms that let torch.export prove that the padded sides are multiples of the window.
    """

    def __init__(self, model: TransformerSR):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """`(1, c, h, w)` in [0, 1] to `(1, c, h * scale, w * scale)`, not clamped."""
        (height, width), config = image.shape[-2:], self.model.config
        bottom, right = ((side + config.multiple - 1) // config.multiple * config.multiple - side for side in (height, width))
        large = self.model(F.pad(image, (0, right, 0, bottom), mode="replicate"))
        return large.narrow(2, 0, height * config.scale).narrow(3, 0, width * config.scale)


def require_onnx(target: Path) -> None:
    """Check that ONNX can be written. Raises ValueError for a wrong suffix or missing packages, and OSError if the file exists."""
    if target.suffix != ".onnx":
        raise ValueError(f"{target}: expected a name ending in .onnx")
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name")
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ValueError(f"ONNX needs {' and '.join(missing)}: {INSTALL}")


def export_onnx(model: TransformerSR, target: Path, metadata: Mapping[str, str]) -> list[str]:
    """Write a network in float32 with dynamic height and width, from `image` to `upscaled`; returns lines on its accuracy.

    The whole image is processed at once, so memory grows with its size. The file is only written if onnxruntime, where installed, agrees
    with PyTorch at three sizes. Raises as `require_onnx`, and ValueError if they do not agree.
    """
    require_onnx(target)
    example = torch.rand(1, model.config.channels, model.config.multiple + 5, 2 * model.config.multiple + 3)
    sides = {2: torch.export.Dim("height", min=1, max=MAX_SIDE), 3: torch.export.Dim("width", min=1, max=MAX_SIDE)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about PyTorch calls inside the exporter
        program = torch.onnx.export(
            WholeImage(model),
            (example,),
            input_names=["image"],
            output_names=["upscaled"],
            dynamic_shapes=(sides,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update({"config": model.config.to_json(), **metadata})
    with write_aside(target) as aside:
        program.save(aside, external_data=False)
        checks = list(_compare(model, aside)) if find_spec("onnxruntime") else [f"not checked, as onnxruntime is not installed: {INSTALL}"]
    return checks


@torch.inference_mode()
def _compare(model: TransformerSR, path: Path) -> Iterator[str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    multiple = model.config.multiple
    for height, width in ((3, multiple), (multiple * 2, multiple * 3), (multiple + 1, multiple * 4 - 1)):
        image = torch.rand(1, model.config.channels, height, width)
        (result,) = session.run(None, {"image": image.numpy()})
        expected = model(image)
        error = float((torch.from_numpy(result) - expected).abs().max()) if result.shape == tuple(expected.shape) else float("inf")
        if not error < 1e-3:
            raise ValueError(f"onnxruntime {onnxruntime.__version__} differs from PyTorch by {error:.2g} on an image of {width}x{height}")
        yield f"{width}x{height}: differs from PyTorch by at most {error:.1e}"
