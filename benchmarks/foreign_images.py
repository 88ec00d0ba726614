"""Build the foreign test set from public repositories: freely licensed images by artists who are not in the training data.

    python benchmarks/foreign_images.py OUT --repositories CLONES

`foreign-images.csv` next to this file lists for each image its repository, commit, author and licence, and how it is made: files composed
over a plain colour, cropped, and downscaled with Lanczos. Repositories missing from CLONES are cloned with git. The images are not part
of this project; they are only for measuring.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
from pathlib import Path

from PIL import Image

from transformersr.training.results.strips import save_image

MANIFEST = Path(__file__).with_name("foreign-images.csv")


def read_manifest() -> list[dict[str, str]]:
    with open(MANIFEST, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def clone(clones: Path, source: str) -> Path:
    """Return the clone of "owner/name", cloning it if it is missing."""
    path = clones / source.replace("/", "+")
    if not path.exists():
        command = ["git", "clone", "--no-checkout", "--filter=blob:none", f"https://github.com/{source}", str(path)]
        subprocess.run(command, check=True)
    return path


def make_image(row: dict[str, str], clones: Path) -> Image.Image:
    """Make the image that a row describes."""
    source = clone(clones, row["repository"])
    left, top, width, height = map(int, row["box"].split())
    image = Image.new("RGBA", (width, height), row["background"])
    for file in row["files"].split(" + "):
        data = subprocess.run(["git", "-C", str(source), "show", f"{row['commit']}:{file}"], check=True, capture_output=True).stdout
        with Image.open(io.BytesIO(data)) as layer:
            image.alpha_composite(layer.convert("RGBA").crop((left, top, left + width, top + height)))
    size = int(row["width"]), round(int(row["width"]) * height / width)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def pixels_sha256(image: Image.Image) -> str:
    """Return a checksum of the pixels, which does not depend on file compression."""
    return hashlib.sha256(f"{image.width}x{image.height} ".encode() + image.tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repositories", type=Path, required=True, help="folder of clones; missing repositories are cloned into it")
    options = parser.parse_args()
    for row in read_manifest():
        image = make_image(row, options.repositories)
        save_image(image, options.out / row["file"])
        note = "" if pixels_sha256(image) == row["sha256"] else f"; unexpected pixels, their checksum is {pixels_sha256(image)}"
        print(f"{row['file']}: {image.width}x{image.height}{note}", flush=True)


if __name__ == "__main__":
    main()
