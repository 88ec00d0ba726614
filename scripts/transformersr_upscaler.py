"""TransformerSR in the WebUI: every model an upscaler that the host lists wherever it lists upscalers.

For AUTOMATIC1111, Forge, Forge Neo, reForge and SD.Next. They differ in what their modules offer; what one of them lacks is looked up when
it is used, with a fallback.

The host executes this file alone, at its start and at each "Reload UI"; all that happens here may happen again. The upscaling itself
is in `upscale/`; this file turns the host's images, settings, progress and interruptions into what is expected there.
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
    """Load the extension's folder as a package, anew each time so that an update takes effect with "Reload UI"; return its name.

    The name is `transformersr`, unless something of that name from elsewhere is loaded. `sys.path` is neither used, because in some
    hosts it holds every extension's folder and in others none, nor changed.
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
arch = importlib.import_module(f"{PACKAGE}.arch")
engine = importlib.import_module(f"{PACKAGE}.upscale.engine")
models = importlib.import_module(f"{PACKAGE}.upscale.models")
planning = importlib.import_module(f"{PACKAGE}.upscale.planning")
upscaling = importlib.import_module(f"{PACKAGE}.upscale.upscaler")
with suppress(ImportError, RuntimeError):  # a spandrel of early 2024 is too old, and none loads beside a wrong torchvision
    importlib.import_module(f"{PACKAGE}.upscale.spandrel_arch").register()


# --- the upscaler --------------------------------------------------------------------------------


class Stopped(Exception):
    """The user has interrupted or skipped what is being made."""


class UpscalerTransformerSR(Upscaler):
    """All our models; the host makes one object of this class whenever it loads its upscalers.

    An image that cannot be upscaled comes back as it is, and the reason is shown: an error must not cost the user the rest of a batch.
    """

    reasons: tuple[str, ...] = ()
    """Why images came back as they were since the host was last told (see `FailuresInExtras`, `FailuresInGeneration`)."""
    kept = False
    """Whether the host may have kept such an image, and would show it again on a second try."""

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
        """Upscale each side by `scale` and drop the fraction, as the host announces it; its own method cuts to multiples of 8."""
        width, height = (max(1, int(side * scale + 1e-6)) for side in img.size)  # 683 * (1000 / 683) is 999.99...
        if scale < 1:
            return img.resize((width, height), Image.Resampling.LANCZOS)
        return self._upscale(img, selected_model, size=(height, width))

    def do_upscale(self, img: Image.Image, selected_model: str | None = None) -> Image.Image:
        """Upscale by the model's own scale. The host does not call this, other extensions do."""
        return self._upscale(img, selected_model)

    def load_model(self, path: str) -> upscaling.Upscaler:
        """The model of a file, in the precision and crispness set, kept until a file or one of these changes."""
        file = upscaling.find_model(path)
        whole = any(getattr(shared.cmd_opts, option, False) for option in ("no_half", "force_fp32"))  # the latter is Forge Neo's
        precision = "fp32" if whole else getattr(shared.opts, "transformersr_precision", "auto")
        dtype = upscaling.find_dtype(precision, device())
        sibling = upscaling.crisp_sibling(file)
        crispness = getattr(shared.opts, "transformersr_crispness", 0) if sibling else 0  # one setting, for the models that have it
        key = (file, models.stamp(file), models.stamp(sibling) if crispness else "", crispness, dtype)
        if key != self._key:
            self._key = self._upscaler = None  # the old one is gone before the new one comes
            # the siblings lie side by side under their own names, which a converted copy may not
            weights = file if crispness else models.as_safetensors(file, cache=Path(data_path, "cache", "transformersr"))
            self._upscaler, self._key = upscaling.Upscaler(upscaling.load_blend(weights, crispness).to(dtype)), key
        gibibytes = getattr(shared.opts, "transformersr_memory", 0)
        self._upscaler.memory = int(gibibytes * 2**30) or None
        self._upscaler.ensemble = bool(getattr(shared.opts, "transformersr_ensemble", False))
        return self._upscaler

    def _upscale(self, img: Image.Image, selected_model: str | None, **target) -> Image.Image:
        entry = next((entry for entry in self.scalers if selected_model in (entry.data_path, entry.name)), None)  # SD.Next gives the name
        label, path = (entry.name, entry.data_path) if entry else (self.name, selected_model)
        try:
            with self._on_device(path) as upscaler, progress_shown(label) as on_progress, devices.without_autocast():
                return to_image(upscaler(to_pixels(img), on_progress=on_progress, **target), img)
        except Stopped:
            reason = "interrupted"
        except Exception as error:
            reason = without_folders(str(error), path)
            tell(f"{label} did not upscale the image", reason, error)
        UpscalerTransformerSR.reasons += (f"{label} did not upscale: {reason}",)
        UpscalerTransformerSR.kept = True
        return img

    @contextmanager
    def _on_device(self, selected_model: str | None) -> Iterator[upscaling.Upscaler]:
        """A model on the host's device, for as long as it works and not a moment longer: the host does not know of this memory."""
        upscaler = self.load_model(selected_model)
        if device().type != "cpu":
            free_hosts_memory()
        try:
            upscaler.model.to(device())
            yield upscaler
        finally:
            upscaler.model.to("cpu")
            devices.torch_gc()


def device() -> torch.device:
    """The host's device; one of its options may name another one for upscalers."""
    find = getattr(devices, "get_device_for", None)
    return torch.device(find("transformersr") if find else devices.device)


def without_folders(message: str, path: str | None) -> str:
    """A message for the page, which cuts off long lines, with names of files alone; the console has their whole paths."""
    for folder in {str(Path(place).parent) for place in (path, Path(path or "").resolve()) if place} | {str(upscaling.WEIGHTS)}:
        message = message.replace(f"{folder}{os.sep}", "") if len(folder) > 1 else message
    return message


def to_pixels(img: Image.Image) -> np.ndarray:
    """`(h, w, 3)` or, where anything is transparent, `(h, w, 4)` uint8. Pixels alone: the host has seen to a file's orientation."""
    if "A" in img.getbands() or "transparency" in img.info:
        pixels = np.asarray(img.convert("RGBA"))
        return pixels if pixels[..., 3].min() < 255 else pixels[..., :3]  # Forge's Extras tab makes every image RGBA
    return np.asarray(img.convert("RGB"))


def to_image(pixels: np.ndarray, source: Image.Image) -> Image.Image:
    """Pixels as the host's kind of image, in the source's colours."""
    image = Image.fromarray(pixels)
    image.info = {key: source.info[key] for key in ("icc_profile",) if key in source.info}
    return image


@contextmanager
def progress_shown(label: str) -> Iterator[engine.ProgressCallback]:
    """A callback that moves the console's bar and the page's text, and raises Stopped once the user wants an end."""
    before = shared.state.textinfo
    with tqdm.tqdm(total=100, desc=label, unit="%", disable=not getattr(shared.opts, "enable_upscale_progressbar", True)) as bar:

        def show(done: int, total: int) -> None:
            # `stopping_generation` is not asked: it means an end after this image, whole
            if shared.state.interrupted or shared.state.skipped:
                raise Stopped
            bar.update(100 * done // total - bar.n)
            # the host's own bar counts the whole job, and its number stands beside this text
            shared.state.textinfo = f"{label}: {100 * done // total}% of this image"

        try:
            show(0, 1)
            yield show
        finally:
            shared.state.textinfo = before


def tell(message: str, reason: str, error: Exception) -> None:
    """Say on the console, with whole paths, and where the page that asked is known, on the page what went wrong."""
    explained = isinstance(error, (arch.CheckpointError, planning.MemoryBudgetError, OSError))
    if hasattr(errors, "report"):
        errors.report(f"{message}: {error}", exc_info=not explained)
    elif explained:  # SD.Next
        errors.log.error(f"{message}: {error}")
    else:
        errors.display(error, message)
    with suppress(Exception):
        gr.Warning(f"{message}: {reason}")


def free_hosts_memory() -> None:
    """Have Forge or reForge take its models off the device. AUTOMATIC1111 has no such thing."""
    for home in ("modules_forge.utils", "modules_forge.forge_util"):
        with suppress(ImportError, AttributeError):
            importlib.import_module(home).prepare_free_memory()
            return


# --- what the host is told -----------------------------------------------------------------------


def take_reasons() -> str:
    """Why images came back as they were since the last time somebody asked."""
    reasons, UpscalerTransformerSR.reasons = UpscalerTransformerSR.reasons, ()
    return "; ".join(dict.fromkeys(reasons)).replace("\n", " ")


class FailuresInExtras(scripts_postprocessing.ScriptPostprocessing):
    """Without controls: writes into an image's information, on the page and in the API's answer, that it was not upscaled, and why.

    It also lets the Extras tab forget such an image. It keeps every result, and would show it again on a second try.
    """

    name = "TransformerSR clean-up"
    order = 1001  # after the host's upscaling

    def ui(self) -> dict:
        return {}

    def process_firstpass(self, pp, **args) -> None:
        take_reasons()  # of a generation that ended before it could say them
        if UpscalerTransformerSR.kept:
            UpscalerTransformerSR.kept = False
            scripts.scripts_postproc.image_changed()

    def process(self, pp, **args) -> None:
        if reasons := take_reasons():
            for key in ("Postprocess upscaler", "Postprocess upscaler 2"):
                if str(pp.info.get(key, "")).startswith("TransformerSR"):
                    del pp.info[key]
            pp.info["Not upscaled"] = reasons


class FailuresInGeneration(scripts.Script):
    """Without controls: writes the same into the information of a generated image (hires fix, img2img)."""

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
    """Add ours to Settings, Upscaling."""
    section = ("upscaling", "Upscaling")
    memory = shared.OptionInfo(0, "TransformerSR: memory in GiB", gr.Slider, {"minimum": 0, "maximum": 24, "step": 0.25}, section=section)
    precision = shared.OptionInfo("auto", "TransformerSR: precision", gr.Radio, {"choices": ["auto", *upscaling.DTYPES]}, section=section)
    slider = {"minimum": 0, "maximum": 1, "step": 0.05}
    crispness = shared.OptionInfo(0, "TransformerSR: crispness", gr.Slider, slider, section=section)
    ensemble = shared.OptionInfo(False, "TransformerSR: ensemble", section=section)
    crisp = "0 is faithful to the pixels, 1 has the crispest lines, for images straight from a diffusion model; for x4-tiny"
    average = "averages over eight turned and mirrored versions: slightly better, eight times slower (TTA in waifu2x)"
    shared.opts.add_option("transformersr_crispness", crispness.info(crisp))
    shared.opts.add_option("transformersr_ensemble", ensemble.info(average))
    shared.opts.add_option("transformersr_memory", memory.info("at most; 0 takes what is free. Less is slower, the image is the same"))
    shared.opts.add_option("transformersr_precision", precision.info("auto is fp16 on NVIDIA cards that compute in it, else fp32"))


def add_where_missing() -> None:
    """Add our upscalers where the host looked for none: reForge of 2026 and Forge Neo have fixed lists, SD.Next looks too early."""
    if not any(isinstance(entry.scaler, UpscalerTransformerSR) for entry in shared.sd_upscalers):
        shared.sd_upscalers += UpscalerTransformerSR(getattr(shared.cmd_opts, "transformersr_models_path", None)).scalers


script_callbacks.on_ui_settings(add_settings)
script_callbacks.on_before_ui(add_where_missing)
