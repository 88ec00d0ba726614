"""TransformerSR in the WebUI: each model becomes an upscaler, listed wherever the host lists upscalers.

Works with AUTOMATIC1111, Forge, Forge Neo, reForge and SD.Next. Their modules offer different functions; those that some of them lack are
looked up when needed, with a fallback.

The host runs this file by itself, at startup and at each "Reload UI", so everything here must be repeatable. The upscaling itself is in
`upscale/`; this file adapts the host's images, settings, progress and interruptions to it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gradio as gr
import numpy as np
import torch
import tqdm
from modules import devices, errors, script_callbacks, scripts, scripts_postprocessing, shared
from modules.paths import data_path
from modules.upscaler import Upscaler, UpscalerData
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def load_package() -> str:
    """Load the extension's folder as a package and return its name. It is reloaded each time, so that "Reload UI" applies an update.

    The name is `transformersr`, unless another package of that name is loaded. `sys.path` is not used, because some hosts put every
    extension's folder on it and others none, and it is not changed.
    """
    name = "transformersr"
    if name in sys.modules and Path(getattr(sys.modules[name], "__file__", None) or "/").resolve().parent != ROOT:
        name = "transformersr_webui"
    for loaded in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[loaded]
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return name


PACKAGE = load_package()
checkpoint = importlib.import_module(f"{PACKAGE}.upscale.checkpoint")
engine = importlib.import_module(f"{PACKAGE}.upscale.engine")
models = importlib.import_module(f"{PACKAGE}.upscale.models")
planning = importlib.import_module(f"{PACKAGE}.upscale.planning")
upscaling = importlib.import_module(f"{PACKAGE}.upscale.upscaler")
with suppress(ImportError, RuntimeError):  # spandrel of early 2024 is too old, and no version loads with a mismatched torchvision
    importlib.import_module(f"{PACKAGE}.upscale.spandrel_arch").register()


# --- the upscaler --------------------------------------------------------------------------------


class Stopped(Exception):
    """The user has interrupted or skipped the current job."""


class UpscalerTransformerSR(Upscaler):
    """All our models. The host creates one object of this class whenever it loads its upscalers.

    An image that cannot be upscaled is returned unchanged and the reason is shown, so that an error does not cost the rest of a batch.
    """

    reasons: tuple[str, ...] = ()
    """Why images were returned unchanged, until reported to the host (see `FailuresInExtras`, `FailuresInGeneration`)."""
    cached_failure = False
    """Whether the host may have cached an unchanged image, which it would show again on a second try."""

    def __init__(self, dirname: str | None = None):
        self.name = "TransformerSR"
        self.user_path = dirname
        super().__init__(create_dirs=True)
        files = models.list_models(folder for folder in (self.model_path, dirname) if folder)
        self.scalers = [
            UpscalerData(f"{self.name} {label}", str(path), self, models.scale_of(path) or UpscalerData.scale)
            for label, path in files.items()
        ]
        self._key: tuple | None = None
        self._upscaler: upscaling.Upscaler | None = None

    def upscale(self, img: Image.Image, scale: float, selected_model: str | None = None) -> Image.Image:
        """Upscale each side by `scale`, rounded down to the size that the host announces. The host's own method cuts to multiples of 8."""
        width, height = (max(1, int(side * scale + 1e-6)) for side in img.size)  # 683 * (1000 / 683) is 999.99...
        if scale < 1:
            return img.resize((width, height), Image.Resampling.LANCZOS)
        return self._upscale(img, selected_model, size=(height, width))

    def do_upscale(self, img: Image.Image, selected_model: str | None = None) -> Image.Image:
        """Upscale by the model's own scale. Only called by other extensions."""
        return self._upscale(img, selected_model)

    def load_model(self, path: str) -> upscaling.Upscaler:
        """Load the model of a file with the precision and crispness from the settings. Cached until a file or a setting changes."""
        file = upscaling.find_model(path)
        no_half = any(getattr(shared.cmd_opts, option, False) for option in ("no_half", "force_fp32"))  # the latter is Forge Neo's
        precision = "fp32" if no_half else getattr(shared.opts, "transformersr_precision", "auto")
        dtype = upscaling.find_dtype(precision, device())
        crisp = upscaling.crisp_version(file)
        crispness = getattr(shared.opts, "transformersr_crispness", 0) if crisp else 0  # one setting for all models
        key = (file, models.stamp(file), models.stamp(crisp) if crispness else "", crispness, dtype)
        if key != self._key:
            self._key = self._upscaler = None  # free the old model first
            # a crisp version is found by its name in the same folder, and a converted copy may be in another one
            weights = file if crispness else models.as_safetensors(file, cache=Path(data_path, "cache", "transformersr"))
            self._upscaler, self._key = upscaling.Upscaler(upscaling.load_blend(weights, crispness).to(dtype)), key
        memory_gib = getattr(shared.opts, "transformersr_memory", 0)
        self._upscaler.memory = int(memory_gib * 2**30) or None
        self._upscaler.ensemble = bool(getattr(shared.opts, "transformersr_ensemble", False))
        return self._upscaler

    def _upscale(self, img: Image.Image, selected_model: str | None, **target) -> Image.Image:
        entry = next((entry for entry in self.scalers if selected_model in (entry.data_path, entry.name)), None)  # SD.Next passes the name
        label, path = (entry.name, entry.data_path) if entry else (self.name, selected_model)
        try:
            with self._on_device(path) as upscaler, show_progress(label) as on_progress, devices.without_autocast():
                return to_image(upscaler(to_pixels(img), on_progress=on_progress, **target), img)
        except Stopped:
            reason = "interrupted"
        except Exception as error:
            reason = strip_folders(str(error), path)
            report_error(f"{label} did not upscale the image", reason, error)
        UpscalerTransformerSR.reasons += (f"{label} did not upscale: {reason}",)
        UpscalerTransformerSR.cached_failure = True
        return img

    @contextmanager
    def _on_device(self, selected_model: str | None) -> Iterator[upscaling.Upscaler]:
        """Move a model to the host's device only while it runs, because the host does not keep track of this memory."""
        upscaler = self.load_model(selected_model)
        if device().type != "cpu":
            free_host_memory()
        try:
            upscaler.model.to(device())
            yield upscaler
        finally:
            upscaler.model.to("cpu")
            devices.torch_gc()


def device() -> torch.device:
    """Return the host's device for upscalers, which its options may set."""
    get_device = getattr(devices, "get_device_for", None)
    return torch.device(get_device("transformersr") if get_device else devices.device)


def strip_folders(message: str, path: str | None) -> str:
    """Reduce paths in a message to file names for the page, which cuts off long lines. The console shows full paths."""
    for folder in {str(Path(file).parent) for file in (path, Path(path or "").resolve()) if file} | {str(upscaling.WEIGHTS)}:
        message = message.replace(f"{folder}{os.sep}", "") if len(folder) > 1 else message
    return message


def to_pixels(img: Image.Image) -> np.ndarray:
    """Convert an image to `(h, w, 3)`, or if any pixel is transparent `(h, w, 4)`, uint8. The host has already applied the orientation."""
    if "A" in img.getbands() or "transparency" in img.info:
        pixels = np.asarray(img.convert("RGBA"))
        return pixels if pixels[..., 3].min() < 255 else pixels[..., :3]  # Forge's Extras tab makes every image RGBA
    return np.asarray(img.convert("RGB"))


def to_image(pixels: np.ndarray, source: Image.Image) -> Image.Image:
    """Convert pixels to a PIL image with the source's colour profile."""
    image = Image.fromarray(pixels)
    image.info = {key: source.info[key] for key in ("icc_profile",) if key in source.info}
    return image


@contextmanager
def show_progress(label: str) -> Iterator[engine.ProgressCallback]:
    """Yield a callback that updates the console's progress bar and the page's text, and raises Stopped when the user stops the job."""
    old_text = shared.state.textinfo
    with tqdm.tqdm(total=100, desc=label, unit="%", disable=not getattr(shared.opts, "enable_upscale_progressbar", True)) as bar:

        def show(done: int, total: int) -> None:
            # not `stopping_generation`, which means to stop after the current image
            if shared.state.interrupted or shared.state.skipped:
                raise Stopped
            bar.update(100 * done // total - bar.n)
            # "of this image", because next to this text the host shows the progress of the whole job
            shared.state.textinfo = f"{label}: {100 * done // total}% of this image"

        try:
            show(0, 1)
            yield show
        finally:
            shared.state.textinfo = old_text


def report_error(message: str, reason: str, error: Exception) -> None:
    """Report an error on the console, with full paths, and on the page, if the error belongs to a page's request."""
    is_expected = isinstance(error, (checkpoint.CheckpointError, planning.MemoryBudgetError, OSError))
    if hasattr(errors, "report"):
        errors.report(f"{message}: {error}", exc_info=not is_expected)
    elif is_expected:  # SD.Next
        errors.log.error(f"{message}: {error}")
    else:
        errors.display(error, message)
    with suppress(Exception):
        gr.Warning(f"{message}: {reason}")


def free_host_memory() -> None:
    """Make Forge or reForge move its models off the device. AUTOMATIC1111 has no such function."""
    for name in ("modules_forge.utils", "modules_forge.forge_util"):
        with suppress(ImportError, AttributeError):
            importlib.import_module(name).prepare_free_memory()
            return


# --- failures reported in an image's information -------------------------------------------------


def take_reasons() -> str:
    """Return why images were returned unchanged since the last call."""
    reasons, UpscalerTransformerSR.reasons = UpscalerTransformerSR.reasons, ()
    return "; ".join(dict.fromkeys(reasons)).replace("\n", " ")


class FailuresInExtras(scripts_postprocessing.ScriptPostprocessing):
    """Script without controls that notes in an image's information, on the page and in the API, that it was not upscaled and why.

    It also clears the Extras tab's cache of such an image, which would be shown again on a second try.
    """

    name = "TransformerSR clean-up"
    order = 1001  # runs after the host's upscaling

    def ui(self) -> dict:
        return {}

    def process_firstpass(self, pp, **args) -> None:
        take_reasons()  # discard those of a generation that ended before it could report them
        if UpscalerTransformerSR.cached_failure:
            UpscalerTransformerSR.cached_failure = False
            scripts.scripts_postproc.image_changed()

    def process(self, pp, **args) -> None:
        if reasons := take_reasons():
            for key in ("Postprocess upscaler", "Postprocess upscaler 2"):
                if str(pp.info.get(key, "")).startswith("TransformerSR"):
                    del pp.info[key]
            pp.info["Not upscaled"] = reasons


class FailuresInGeneration(scripts.Script):
    """Script without controls that notes the same in the information of a generated image (hires fix, img2img)."""

    def title(self) -> str:
        return "TransformerSR"

    def show(self, is_img2img: bool):
        return scripts.AlwaysVisible

    def postprocess_image(self, p, pp, *args) -> None:
        if reasons := take_reasons():
            p.extra_generation_params["Not upscaled"] = reasons
            if hasattr(p, "comment"):
                p.comment(reasons)


def add_settings() -> None:
    """Add our options to Settings, Upscaling."""
    section = ("upscaling", "Upscaling")
    memory = shared.OptionInfo(0, "TransformerSR: memory in GiB", gr.Slider, {"minimum": 0, "maximum": 24, "step": 0.25}, section=section)
    precision = shared.OptionInfo("auto", "TransformerSR: precision", gr.Radio, {"choices": ["auto", *upscaling.DTYPES]}, section=section)
    slider = {"minimum": 0, "maximum": 1, "step": 0.05}
    crispness = shared.OptionInfo(0, "TransformerSR: crispness", gr.Slider, slider, section=section)
    ensemble = shared.OptionInfo(False, "TransformerSR: ensemble", section=section)
    crispness_info = (
        "0 is faithful to the pixels, 1 gives the crispest lines and invents some detail, for images straight from a diffusion model; "
        "only for models with a crisp version, such as x4-base"
    )
    ensemble_info = "averages the results of eight rotated and mirrored versions: slightly better, eight times slower (TTA in waifu2x)"
    memory_info = "the most that the model may use; 0 uses what is free. Less memory is slower but gives the same image"
    shared.opts.add_option("transformersr_crispness", crispness.info(crispness_info))
    shared.opts.add_option("transformersr_ensemble", ensemble.info(ensemble_info))
    shared.opts.add_option("transformersr_memory", memory.info(memory_info))
    shared.opts.add_option("transformersr_precision", precision.info("auto is fp16 on NVIDIA GPUs that are fast at it, otherwise fp32"))


def add_missing_upscalers() -> None:
    """Add our upscalers if the host did not find them: reForge of 2026 and Forge Neo have fixed lists, and SD.Next searches too early."""
    if not any(isinstance(entry.scaler, UpscalerTransformerSR) for entry in shared.sd_upscalers):
        shared.sd_upscalers += UpscalerTransformerSR(getattr(shared.cmd_opts, "transformersr_models_path", None)).scalers


script_callbacks.on_ui_settings(add_settings)
script_callbacks.on_before_ui(add_missing_upscalers)
