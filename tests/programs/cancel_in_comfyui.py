"""Cancel an image in its third band within ComfyUI's own model management. Runs in ComfyUI's folder."""

import importlib.util
import os
import sys

sys.path.insert(0, os.getcwd())
pack, sys.argv = sys.argv[1], ["main.py", "--cpu"]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.model_management as management
import comfy.utils
import folder_paths  # noqa: F401  the pack takes its presence for ComfyUI
import torch

spec = importlib.util.spec_from_file_location(pack.replace(".", "_x_"), pack + "/__init__.py")
package = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
assert "spandrel" not in sys.modules, "importing the nodes is slow"
node = package.NODE_CLASS_MAPPINGS["TransformerSRUpscale"]()
model = node._upscaler("x4-tiny", sys.modules[type(node).__module__].Settings()).model
bands = []


def hook(value, total, preview, node_id=None):
    bands.append(value)
    if len(bands) == 3:
        management.interrupt_current_processing(True)


comfy.utils.set_progress_bar_global_hook(hook)
try:
    node.upscale(torch.rand(2, 200, 200, 3), "x4-tiny", memory_gb=0.05)
except management.InterruptProcessingException:
    print("steps after Cancel:", len(bands) - 3)
comfy.utils.set_progress_bar_global_hook(None)
print("managed:", [loaded.model.model is model for loaded in management.current_loaded_models])
management.unload_all_models()
print("left:", len(management.current_loaded_models), node.upscale(torch.rand(1, 8, 8, 1), "x4-tiny")["result"][0].shape)
