"""Run the WebUI script with stand-ins for a host's modules and print the results as JSON.

webui_standin.py SCRIPT FOLDER PACKAGE HOST
"""

import contextlib
import json
import os
import runpy
import sys
import types

import torch
from PIL import Image


def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(content)
    return sys.modules[name]


class Upscaler:
    def __init__(self, create_dirs=False):
        self.model_path = os.path.join(folder, self.name)


class UpscalerData:
    scale = 4

    def __init__(self, name, path, upscaler=None, scale=4):
        self.name, self.data_path, self.scaler, self.scale = name, path, upscaler, scale


class Option:
    def __init__(self, default, *args, **kwargs):
        self.default = default

    def info(self, text):
        return self


script_path, folder, package, host = sys.argv[1:]
reports, warnings, callbacks, texts = [], [], [], []


class State:
    interrupted = skipped = False
    shown = "before"
    textinfo = property(lambda self: self.shown, lambda self, text: (texts.append(text), setattr(self, "shown", text))[0])


state = State()
opts = types.SimpleNamespace(add_option=lambda key, info: setattr(opts, key, info.default))
options = types.SimpleNamespace(no_half=True) if host != "Forge Neo" else types.SimpleNamespace(force_fp32=True)
devices = {"torch_gc": lambda: None, "without_autocast": contextlib.nullcontext}
if host == "SD.Next":
    errors = {"display": lambda error, task: reports.append(task), "log": types.SimpleNamespace(error=reports.append)}
    devices["device"] = torch.device("cpu")
    lanczos = {}
else:
    errors = {"report": lambda message, exc_info: reports.append(message)}
    devices["get_device_for"] = lambda task: torch.device("cpu")
    lanczos = {"LANCZOS": Image.Resampling.LANCZOS}
    opts.enable_upscale_progressbar = False
modules = {
    "devices": devices,
    "errors": errors,
    "script_callbacks": {"on_ui_settings": callbacks.append, "on_before_ui": callbacks.append},
    "scripts": {"Script": object, "AlwaysVisible": "always", "scripts_postproc": types.SimpleNamespace(image_changed=lambda: None)},
    "scripts_postprocessing": {"ScriptPostprocessing": object},
    "shared": {"state": state, "opts": opts, "cmd_opts": options, "OptionInfo": Option, "sd_upscalers": []},
    "paths": {"data_path": folder},
    "upscaler": {**lanczos, "Upscaler": Upscaler, "UpscalerData": UpscalerData},
}
module("modules", **{name: module(f"modules.{name}", **content) for name, content in modules.items()})
module("gradio", Slider=None, Radio=None, Warning=warnings.append)
module("transformersr", __file__=os.path.join(folder, "another", "__init__.py"))

script = runpy.run_path(script_path)
for callback in callbacks * 2:
    callback()
upscaler = script["UpscalerTransformerSR"](None)
image = Image.new("RGB", (23, 17), (10, 200, 30))
mine = next(entry for entry in upscaler.scalers if entry.name.endswith("mine.safetensors"))
chosen = mine.name if host == "SD.Next" else mine.data_path
sizes = [upscaler.upscale(image, scale, chosen).size for scale in (1, 2.5, 3, 0.5)]
extras, generation = script["FailuresInExtras"](), script["FailuresInGeneration"]()


def information():
    pp = types.SimpleNamespace(info={"Postprocess upscaler": mine.name})
    extras.process(pp)
    return pp.info


found = {"success": information()}


def upscaled(entry, **settings):
    vars(opts).update({f"transformersr_{key}": value for key, value in settings.items()})
    return upscaler.upscale(noise, 2, entry.name if host == "SD.Next" else entry.data_path).tobytes().hex()


noise = Image.effect_noise((16, 12), 90).convert("RGB")
crisp = next(entry for entry in upscaler.scalers if "mine-crisp" in entry.name)
found["settings"] = [opts.transformersr_crispness, opts.transformersr_ensemble]
found["outputs"] = {
    "unset": upscaled(mine),
    "crisp": upscaled(mine, crispness=1),
    "crisp version": upscaled(crisp),
    "ensemble": upscaled(mine, crispness=0, ensemble=True),
}
for key in ("crispness", "ensemble"):
    delattr(opts, f"transformersr_{key}")  # as before the host has registered our settings
found["outputs"]["no settings"] = upscaled(mine)
noise.save(os.path.join(folder, "noise.png"))
broken = os.path.join(folder, "a folder", "broken.safetensors")
missing = upscaler.upscale(image, 2, broken)
found["failed"] = information()
state.interrupted = True
stopped = upscaler.upscale(image, 2, chosen)
p = types.SimpleNamespace(extra_generation_params={})
generation.postprocess_image(p, None)
found["generated"] = p.extra_generation_params
extras.process_firstpass(None)
found["after"] = information()
json.dump(
    {
        "names": [entry.name for entry in upscaler.scalers],
        "listed": len(sys.modules["modules.shared"].sd_upscalers),
        "sizes": sizes,
        "unchanged": [missing == image, stopped == image],
        "reports": reports,
        "warnings": warnings,
        "package": script["PACKAGE"],
        "text": state.textinfo,
        "texts": texts,
        "path": package in sys.path,
        **found,
    },
    sys.stdout,
)
