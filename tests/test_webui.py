"""The WebUI adapter: by itself, and inside a real Forge (or reForge, or AUTOMATIC1111) where there is one.

    TRANSFORMERSR_FORGE=/path/to/stable-diffusion-webui-forge TRANSFORMERSR_FORGE_PYTHON=/path/to/its/python pytest tests/test_webui.py

The host runs in processes of its own, on the CPU, with a folder of data of its own; nothing is written into its installation.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transformersr import Upscaler
from transformersr.arch import save_model

from random_models import V2, random_model

ROOT = Path(__file__).resolve().parent.parent
FORGE = os.environ.get("TRANSFORMERSR_FORGE")
PYTHON = os.environ.get("TRANSFORMERSR_FORGE_PYTHON", sys.executable)
CPU = ("--always-cpu",) if Path(FORGE or "", "modules_forge").is_dir() else ("--use-cpu", "all", "--no-half")
ARGUMENTS = ("--skip-prepare-environment", *CPU, "--skip-torch-cuda-test", "--no-download-sd-model", "--data-dir")
NAME, MINE = "TransformerSR x4-tiny", "TransformerSR mine.safetensors"

needs_forge = pytest.mark.skipif(FORGE is None, reason="TRANSFORMERSR_FORGE does not name the folder of a Forge")


def noise_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise, the same each time."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)).convert(mode)


# --- without a host ------------------------------------------------------------------------------


def test_preload_adds_the_models_path_option(tmp_path):
    parser = argparse.ArgumentParser()
    runpy.run_path(str(ROOT / "preload.py"))["preload"](parser)
    assert parser.parse_args([]).transformersr_models_path is None
    assert parser.parse_args(["--transformersr-models-path", str(tmp_path)]).transformersr_models_path == str(tmp_path)


STAND_IN = """
import contextlib, json, os, runpy, sys, types
from PIL import Image

def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(content)
    return sys.modules[name]

class Upscaler:
    def __init__(self, create_dirs=False):
        self.model_path = os.path.join(sys.argv[2], self.name)

class UpscalerData:
    scale = 4
    def __init__(self, name, path, upscaler=None, scale=4):
        self.name, self.data_path, self.scaler, self.scale = name, path, upscaler, scale

class Option:
    def __init__(self, default, *args, **kwargs): self.default = default
    def info(self, text): return self

import torch
host = sys.argv[4]
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
parts = {
    "devices": devices,
    "errors": errors,
    "script_callbacks": {"on_ui_settings": callbacks.append, "on_before_ui": callbacks.append},
    "scripts": {"Script": object, "AlwaysVisible": "always", "scripts_postproc": types.SimpleNamespace(image_changed=lambda: None)},
    "scripts_postprocessing": {"ScriptPostprocessing": object},
    "shared": {"state": state, "opts": opts, "cmd_opts": options, "OptionInfo": Option, "sd_upscalers": []},
    "paths": {"data_path": sys.argv[2]},
    "upscaler": {**lanczos, "Upscaler": Upscaler, "UpscalerData": UpscalerData},
}
module("modules", **{name: module(f"modules.{name}", **content) for name, content in parts.items()})
module("gradio", Slider=None, Radio=None, Warning=warnings.append)
module("transformersr", __file__=os.path.join(sys.argv[2], "another", "__init__.py"))

script = runpy.run_path(sys.argv[1])
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

found = {"well": information()}

def upscaled(entry, **settings):
    vars(opts).update({f"transformersr_{key}": value for key, value in settings.items()})
    return upscaler.upscale(noise, 2, entry.name if host == "SD.Next" else entry.data_path).tobytes().hex()

noise = Image.effect_noise((16, 12), 90).convert("RGB")
crisp = next(entry for entry in upscaler.scalers if "mine-crisp" in entry.name)
found["settings"] = [opts.transformersr_crispness, opts.transformersr_ensemble]
found["looks"] = {
    "unset": upscaled(mine), "crisp": upscaled(mine, crispness=1), "crisp again": upscaled(crisp),
    "ensemble": upscaled(mine, crispness=0, ensemble=True),
}
for key in ("crispness", "ensemble"):
    delattr(opts, f"transformersr_{key}")  # a host that has not asked for our settings yet
found["looks"]["no settings"] = upscaled(mine)
noise.save(os.path.join(sys.argv[2], "noise.png"))
broken = os.path.join(sys.argv[2], "a folder", "broken.safetensors")
missing = upscaler.upscale(image, 2, broken)
found["failed"] = information()
state.interrupted = True
stopped = upscaler.upscale(image, 2, chosen)
p = types.SimpleNamespace(extra_generation_params={})
generation.postprocess_image(p, None)
found["generated"] = p.extra_generation_params
extras.process_firstpass(None)
found["again"] = information()
json.dump({
    "names": [entry.name for entry in upscaler.scalers], "listed": len(sys.modules["modules.shared"].sd_upscalers), "sizes": sizes,
    "unchanged": [missing == image, stopped == image], "reports": reports, "warnings": warnings, "package": script["PACKAGE"],
    "text": state.textinfo, "texts": texts, "path": sys.argv[3] in sys.path, **found,
}, sys.stdout)
"""


@pytest.fixture(scope="module", params=["Forge", "Forge Neo", "SD.Next"])
def alone(request, tmp_path_factory) -> dict:
    """What the script did alone in a stand-in for a host, which has the modules that this host has."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "TransformerSR").mkdir()
    save_model(random_model(V2), folder / "TransformerSR" / "mine.safetensors")
    save_model(random_model(V2, seed=1), folder / "TransformerSR" / "mine-crisp.safetensors")
    arguments = [sys.executable, "-c", STAND_IN, str(ROOT / "scripts" / "transformersr_upscaler.py"), str(folder), str(ROOT), request.param]
    done = subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout) | {"folder": folder}


def test_script_lists_every_model_once(alone):
    assert alone["names"][0] == NAME
    assert alone["listed"] == len(alone["names"])  # callbacks have run twice
    assert alone["package"] == "transformersr_webui"
    assert not alone["path"]


def test_every_host_gets_the_requested_sizes(alone):
    assert alone["sizes"] == [[23, 17], [57, 42], [69, 51], [11, 8]]


def test_crispness_and_ensemble_are_off_by_default_and_without_settings(alone):
    assert alone["settings"] == [0, False]
    assert alone["looks"]["unset"] == alone["looks"]["no settings"]


def test_crispness_applies_only_to_models_with_a_crisp_sibling(alone):
    """The sibling itself, chosen while crispness is 1, has none: it gives its own image."""
    assert alone["looks"]["crisp"] == alone["looks"]["crisp again"] != alone["looks"]["unset"]


def test_ensemble_matches_the_python_api(alone):
    api = Upscaler.from_pretrained(alone["folder"] / "TransformerSR" / "mine.safetensors", "cpu", "fp32", ensemble=True)
    assert alone["looks"]["ensemble"] == api(Image.open(alone["folder"] / "noise.png")).tobytes().hex()
    assert alone["looks"]["ensemble"] != alone["looks"]["unset"]


def test_failure_returns_the_image_with_one_report(alone):
    assert alone["unchanged"] == [True, True]
    (report,), (warning,) = alone["reports"], alone["warnings"]
    assert "a folder" in report
    assert "did not upscale the image: broken.safetensors" in warning


def test_failure_is_noted_in_the_image_info_without_the_path(alone):
    assert alone["well"] == {"Postprocess upscaler": MINE}
    (reason,) = alone["failed"].values()
    assert [*alone["failed"]] == ["Not upscaled"]
    assert "did not upscale: broken.safetensors" in reason
    assert "folder" not in reason


def test_interruption_is_noted_in_the_image_info_once(alone):
    assert alone["generated"] == {"Not upscaled": f"{MINE} did not upscale: interrupted"}
    assert alone["again"] == alone["well"]


def test_progress_text_is_shown_and_then_restored(alone):
    assert f"{MINE}: 0% of this image" in alone["texts"]
    assert alone["text"] == "before"


# --- inside the host -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of data for the host: this extension under another name, models of the user's, and damaged ones."""
    data = tmp_path_factory.mktemp("webui data")
    (data / "extensions").mkdir()
    (data / "extensions" / "Transformer-SR main").symlink_to(ROOT, target_is_directory=True)
    own = data / "models" / "TransformerSR"
    (own / "mine").mkdir(parents=True)
    save_model(random_model(V2), own / "mine" / "x2.safetensors")
    torch.save({"params": random_model(V2).state_dict()}, own / "mine" / "pickled.pth")
    (data / "elsewhere").mkdir()
    save_model(random_model(V2), data / "elsewhere" / "far.safetensors")
    (own / "transformersr broken.safetensors").write_bytes((ROOT / "weights" / "x4-tiny.safetensors").read_bytes()[:400_000])
    (own / "transformersr broken.pth").write_bytes(b"PK\x03\x04 and no more")
    return data


INSIDE = """
import contextlib, json, os, sys
sys.argv = ["webui.py", *sys.argv[1:]]
sys.path.insert(0, os.getcwd())
result = os.environ["RESULT"]
from modules import timer  # from here on as the host's webui.py does it
with contextlib.suppress(ImportError):  # AUTOMATIC1111
    from modules_forge.initialization import initialize_forge
    initialize_forge()
from modules import initialize
initialize.imports()
from modules import errors, images, modelloader, script_callbacks, scripts, shared
from PIL import Image
reports, found = [], {}
errors_report = errors.report
errors.report = lambda message, **options: (reports.append(message), errors_report(message, **options))

def load(start):
    start()
    script_callbacks.before_ui_callback()
    script_callbacks.ui_settings_callback()
    return [entry.name for entry in shared.sd_upscalers if entry.name.startswith("TransformerSR")]

found["names"] = load(initialize.initialize)
found["names_after_reload"] = load(lambda: initialize.initialize_rest(reload_script_modules=True))
found["scales"] = [entry.scale for entry in shared.sd_upscalers if entry.name.startswith("TransformerSR")]
found["clean_ups"] = [one.script_class.name for one in scripts.postprocessing_scripts_data].count("TransformerSR clean-up")
found["settings"] = [key for key in shared.opts.data_labels if key.startswith("transformersr")]
found["package"] = sys.modules["transformersr"].__file__

import spandrel
with_architectures = hasattr(spandrel, "Architecture")  # not those of early 2024
image = Image.open(os.environ["IMAGE"])
tiny = next(entry for entry in shared.sd_upscalers if entry.name == "TransformerSR x4-tiny")
upscale = tiny.scaler.upscale
found["spandrel"] = modelloader.load_spandrel_model(tiny.data_path, device=shared.device).scale if with_architectures else 4
found["hires"] = images.resize_image(0, image, 152, 104, upscaler_name="TransformerSR x4-tiny").size
images.resize_image(0, image, 152, 104, upscaler_name="TransformerSR x4-tiny").save(result + ".png")
found["cropped"] = images.resize_image(1, image, 101, 103, upscaler_name="TransformerSR mine/x2.safetensors").size
mine, pickled = (next(one.data_path for one in shared.sd_upscalers if one.name.endswith(end)) for end in ("x2.safetensors", "pickled.pth"))
found["own"] = tiny.scaler.do_upscale(image, mine).size
found["pickled"] = enlarge(image, 2, pickled).tobytes() == enlarge(image, 2, mine).tobytes(), sorted(os.listdir(os.path.dirname(mine)))
found["odd"] = enlarge(image, 3.1, tiny.data_path).size
enlarge(image, 1, mine)
loaded = tiny.scaler._upscaler
enlarge(image, 1, mine)
found["kept"] = tiny.scaler._upscaler is loaded
os.utime(mine)
enlarge(image, 1, mine)
found["loaded_anew"] = tiny.scaler._upscaler is not loaded

class Interrupting:
    '''Interrupts at the second look at it.'''
    looks = 0
    def __get__(self, state, kind):
        Interrupting.looks += 1
        return Interrupting.looks > 2
before = reports.copy()
kind = type(shared.state)
kind.interrupted, kept = Interrupting(), shared.state.__dict__.pop("interrupted", False)
found["interrupted"] = [enlarge(image, 4, tiny.data_path) is image, Interrupting.looks, reports == before]
kind.interrupted = False

broken = [entry for entry in shared.sd_upscalers if "broken" in entry.name]
found["broken"] = [[one.name, one.scaler.upscale(image, 2, one.data_path) is image, os.path.exists(one.data_path)] for one in broken]
found["reports"] = reports
found["corrupted"] = [name for name in os.listdir(os.path.dirname(broken[0].data_path)) if "corrupted" in name]
json.dump(found, open(result, "w"))
os._exit(0)
"""


@pytest.fixture(scope="module")
def inside(data, tmp_path_factory) -> dict:
    """What the host's own functions did with our upscalers, in one process."""
    folder = tmp_path_factory.mktemp("result")
    noise_image(38, 26).save(folder / "image.png")
    environment = os.environ | {"RESULT": str(folder / "result"), "IMAGE": str(folder / "image.png"), "HF_HUB_OFFLINE": "1"}
    command = [PYTHON, "-c", INSIDE, *ARGUMENTS, str(data), "--transformersr-models-path", str(data / "elsewhere")]
    done = subprocess.run(command, cwd=FORGE, env=environment, capture_output=True, text=True, timeout=600)
    assert (folder / "result").is_file(), done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "result").read_text()) | {"image": str(folder / "result.png"), "source": str(folder / "image.png")}


@needs_forge
def test_models_are_listed_once_before_and_after_a_reload(inside):
    assert inside["names"] == inside["names_after_reload"]
    assert sorted(inside["names"]) == sorted({*inside["names"]})
    expected = {NAME, *(f"TransformerSR {label}" for label in ("mine/x2.safetensors", "mine/pickled.pth", "far.safetensors"))}
    assert expected <= {*inside["names"]}
    assert inside["clean_ups"] == 1
    assert inside["settings"] == [f"transformersr_{key}" for key in ("crispness", "ensemble", "memory", "precision")]
    assert dict(zip(inside["names"], inside["scales"], strict=True))["TransformerSR mine/x2.safetensors"] == 2
    assert Path(inside["package"]).resolve() == ROOT / "__init__.py"


@needs_forge
def test_host_loader_opens_our_files(inside):
    assert inside["spandrel"] == 4


@needs_forge
def test_host_gets_the_requested_sizes(inside):
    assert inside["hires"] == [152, 104]
    assert inside["cropped"] == [101, 103]
    assert inside["odd"] == [117, 80]  # 38 * 3.1 and 26 * 3.1, without their fractions
    assert inside["own"] == [76, 52]


@needs_forge
def test_hires_pass_matches_the_python_api(inside):
    expected = Upscaler.from_pretrained(device="cpu")(Image.open(inside["source"]))
    difference = np.abs(np.asarray(expected, int) - np.asarray(Image.open(inside["image"]), int))
    assert difference.max() <= 1  # other versions of PyTorch round otherwise


@needs_forge
def test_pickled_model_is_converted_to_safetensors_next_to_it(inside):
    assert inside["pickled"] == [True, ["pickled.pth", "pickled.safetensors", "x2.safetensors"]]


@needs_forge
def test_model_is_kept_until_its_file_changes(inside):
    assert inside["kept"]
    assert inside["loaded_anew"]


@needs_forge
def test_interruption_stops_within_a_band_without_an_error(inside):
    unchanged, looks, silent = inside["interrupted"]
    assert unchanged
    assert silent
    assert looks == 3


@needs_forge
def test_damaged_weights_return_the_image_with_a_reason(inside):
    assert [*map(tuple, inside["broken"])] == [
        ("TransformerSR transformersr broken.pth", True, True),
        ("TransformerSR transformersr broken.safetensors", True, True),
    ]
    assert inside["corrupted"] == []
    for ending in (".pth", ".safetensors"):
        assert any(f"broken{ending}" in report and "download or copy it again" in report for report in inside["reports"])


# --- the running server --------------------------------------------------------------------------


@contextlib.contextmanager
def served(data: Path, log: Path):
    """The host's address, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "launch.py", *ARGUMENTS, str(data), "--api", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=FORGE, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=output, stderr=output)
    try:
        wait_for(f"http://127.0.0.1:{port}/sdapi/v1/upscalers", server, log)
        yield f"http://127.0.0.1:{port}/sdapi/v1"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 400
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(2)
    raise AssertionError(f"the host did not start:\n{log.read_text()[-3000:]}")


def ask(address: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def extra(address: str, image: Image.Image, **options) -> Image.Image:
    """An image through the Extras tab's API; what the host says of it is in `info`."""
    png = io.BytesIO()
    image.save(png, "PNG")
    body = {"image": base64.b64encode(png.getvalue()).decode(), "upscaler_1": NAME, **options}
    answer = ask(f"{address}/extra-single-image", body)
    result = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    result.info["said"] = answer["html_info"]
    return result


@needs_forge
def test_server_lists_models_and_upscales_to_the_requested_size(data, tmp_path):
    with served(data, tmp_path / "first.log") as address:
        listed = [one["name"] for one in ask(f"{address}/upscalers")]
        assert listed.count(NAME) == 1
        image = noise_image(33, 21)
        assert extra(address, image, resize_mode=0, upscaling_resize=3).size == (99, 63)
        assert extra(address, image, resize_mode=0, upscaling_resize=1.5).size == (49, 31)
        size = {"upscaling_resize_w": 67, "upscaling_resize_h": 71}
        assert extra(address, image, resize_mode=1, upscaling_crop=True, **size).size == (67, 71)
        transparent = extra(address, noise_image(33, 21, "RGBA"), resize_mode=0, upscaling_resize=2)
        hosts = extra(address, noise_image(33, 21, "RGBA"), resize_mode=0, upscaling_resize=2, upscaler_1="Lanczos").mode
        assert (transparent.mode, transparent.size) == (hosts, (66, 42))  # AUTOMATIC1111 takes transparency away beforehand
        broken = "TransformerSR transformersr broken.pth"
        unchanged = extra(address, image, upscaler_1=broken, resize_mode=0, upscaling_resize=2)
        assert unchanged.size == image.size
        assert "Not upscaled" in unchanged.info["said"]
        assert "Postprocess upscaler: TransformerSR" not in unchanged.info["said"]
        assert str(data) not in unchanged.info["said"]
    with served(data, tmp_path / "second.log") as address:
        assert [one["name"] for one in ask(f"{address}/upscalers")] == listed
    assert "Error loading script: transformersr" not in (tmp_path / "second.log").read_text()
