"""Import every module of the package, then train and upscale.

import_train_upscale.py REPOSITORY IMAGES EMPTY_FOLDER
"""

import importlib
import sys
from pathlib import Path

root, images, home = map(Path, sys.argv[1:])
for path in sorted(path for folder in ("arch", "upscale", "training") for path in (root / folder).rglob("*.py")):
    name = ".".join(("transformersr", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
    if path.name not in ("__main__.py", "spandrel_arch.py"):
        importlib.import_module(name)
assert not list(home.iterdir()), "importing wrote something"

from transformersr.upscale.cli import main

train = ["train", images, "--out", home / "run", "--recipe", "debug", "--steps", 4]
for command in (train, ["upscale", images / "0.png", "--device", "cpu", "-o", home]):
    main([str(word) for word in command], standalone_mode=False)
