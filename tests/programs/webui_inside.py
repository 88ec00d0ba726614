"""Start a WebUI's own modules, use our upscalers through them, and write as JSON what they did. Runs in the WebUI's folder."""

import contextlib
import json
import os
import sys

sys.argv = ["webui.py", *sys.argv[1:]]
sys.path.insert(0, os.getcwd())
result = os.environ["RESULT"]
from modules import timer  # noqa: F401  the host's webui.py imports it first

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
found["cleanup_scripts"] = [one.script_class.name for one in scripts.postprocessing_scripts_data].count("TransformerSR clean-up")
found["settings"] = [key for key in shared.opts.data_labels if key.startswith("transformersr")]
found["package"] = sys.modules["transformersr"].__file__

import spandrel

with_architectures = hasattr(spandrel, "Architecture")  # missing in early 2024
image = Image.open(os.environ["IMAGE"])
tiny = next(entry for entry in shared.sd_upscalers if entry.name == "TransformerSR x4-tiny")
upscale = tiny.scaler.upscale
found["spandrel"] = modelloader.load_spandrel_model(tiny.data_path, device=shared.device).scale if with_architectures else 4
found["hires"] = images.resize_image(0, image, 152, 104, upscaler_name="TransformerSR x4-tiny").size
images.resize_image(0, image, 152, 104, upscaler_name="TransformerSR x4-tiny").save(result + ".png")
found["cropped"] = images.resize_image(1, image, 101, 103, upscaler_name="TransformerSR mine/x2.safetensors").size
mine, pickled = (next(one.data_path for one in shared.sd_upscalers if one.name.endswith(end)) for end in ("x2.safetensors", "pickled.pth"))
found["own"] = tiny.scaler.do_upscale(image, mine).size
found["pickled"] = upscale(image, 2, pickled).tobytes() == upscale(image, 2, mine).tobytes(), sorted(os.listdir(os.path.dirname(mine)))
found["odd"] = upscale(image, 3.1, tiny.data_path).size
upscale(image, 1, mine)
loaded = tiny.scaler._upscaler
upscale(image, 1, mine)
found["kept"] = tiny.scaler._upscaler is loaded
os.utime(mine)
upscale(image, 1, mine)
found["reloaded"] = tiny.scaler._upscaler is not loaded


class Interrupting:
    """A flag that is false twice, then true."""

    reads = 0

    def __get__(self, state, kind):
        Interrupting.reads += 1
        return Interrupting.reads > 2


before = reports.copy()
kind = type(shared.state)
kind.interrupted, kept = Interrupting(), shared.state.__dict__.pop("interrupted", False)
found["interrupted"] = [upscale(image, 4, tiny.data_path) is image, Interrupting.reads, reports == before]
kind.interrupted = False

broken = [entry for entry in shared.sd_upscalers if "broken" in entry.name]
found["broken"] = [[one.name, one.scaler.upscale(image, 2, one.data_path) is image, os.path.exists(one.data_path)] for one in broken]
found["reports"] = reports
found["corrupted"] = [name for name in os.listdir(os.path.dirname(broken[0].data_path)) if "corrupted" in name]
with open(result, "w") as file:
    json.dump(found, file)
os._exit(0)
