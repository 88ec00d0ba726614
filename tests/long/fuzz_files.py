"""Feed damaged files to every reader and report failures, memory and time. Run by hand:

    python tests/long/fuzz_files.py                               every reader, 20,000 randomly changed files each
    python tests/long/fuzz_files.py image --cases 200000 --seed 7
    python tests/long/fuzz_files.py checkpoint --engine atheris   guided by code coverage (needs `pip install atheris`)

A finding is any outcome other than success or one sentence that names the file, or a file that takes more than `SLOW` CPU seconds. The file
is saved in the folder `--keep` under its number, and the exit code is 1. Peak memory is that of the process and includes PyTorch's 220 MiB.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).resolve().parent
SLOW = 5.0


# --- readers -------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> None:
    """Load weights, and list them as for a host."""
    from transformersr.upscale import models
    from transformersr.upscale.checkpoint import CheckpointError, load_model

    models._look_into.cache_clear()
    models.is_transformersr(path)
    models._is_copy(path)
    try:
        load_model(path)
    except CheckpointError as error:
        check_sentence(error, path)


def read_image(path: Path) -> None:
    """Read an image, and write it with its metadata to one of the formats."""
    from transformersr.upscale import image_io
    from transformersr.upscale.image_safety import ImageError

    try:
        image = image_io.read_image(path)
    except ImageError as error:
        return check_sentence(error, path)
    if image.color.size < 3 * 256 * 256:
        suffix = ("png", "jpg", "webp", "tif", "bmp")[path.stat().st_size % 5]
        image_io.write_image(image, path.with_name(f"written.{suffix}"))
    return None


def read_video(path: Path) -> None:
    """Upscale a video with a small network into an MKV file."""
    from transformersr.upscale import video

    try:
        video.upscale_video(path, path.with_name("written.mkv"), small_upscaler())
    except ValueError as error:
        check_sentence(error, path)


@functools.cache
def small_upscaler():
    """Return an upscaler with a tiny network."""
    from transformersr.upscale.upscaler import Upscaler

    sys.path.insert(0, str(HERE.parent))
    from random_models import V2, random_model

    return Upscaler(random_model(dataclasses.replace(V2, blocks="RWC")))


def read_recipe(path: Path) -> None:
    """Read a recipe or the settings of a run."""
    from transformersr.training.config import load_recipe

    try:
        load_recipe(path)
    except ValueError as error:
        check_sentence(error, path)


def check_sentence(error: Exception, path: Path) -> None:
    """Raise AssertionError unless a message is one sentence that names the file."""
    text = str(error)
    if "\n" in text or len(text) > 2500 or path.name not in text:
        raise AssertionError(f"not one sentence that names the file: {text[:300]!r}") from error


# --- seed files ----------------------------------------------------------------------------------


def checkpoints() -> dict[str, bytes]:
    """Return checkpoints in both original layouts and ours, in every file format."""
    import torch
    from safetensors.torch import save

    sys.path.insert(0, str(HERE.parent))
    from plain_v1 import newer_keys, random_state
    from random_models import V2, random_model

    author, ours = random_state(pairs=1, dim=8, scale=2), random_model(V2)
    config = ours.config.to_json()
    contents = {
        "older": author,
        "newer": {"params": newer_keys(author)},
        "ours": ours.state_dict(),
        "module": dict(ours.named_parameters()),
    }
    found = {"ours.safetensors": save(ours.state_dict(), {"config": config}), "bare.safetensors": save(author)}
    for name, content in contents.items():
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            found[f"{name}-{zipped}.pth"] = file.getvalue()
    return found


def images() -> dict[str, bytes]:
    """Return a small image in every format and mode that Pillow writes, with and without metadata."""
    import numpy as np
    from PIL import Image, PngImagePlugin

    Image.init()
    found = {}
    rng = np.random.default_rng(0)
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "1girl, \u732b", zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x tiff:Orientation='6'/>", zip=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0\0a"
    exif.get_ifd(0x8825)[1] = "N"
    options = {"PNG": {"pnginfo": text}, "TIFF": {"compression": "tiff_lzw"}}
    for format in sorted(set(Image.SAVE) & set(Image.OPEN)):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr"):
            image = Image.fromarray(rng.integers(0, 255, (24, 20, 4), np.uint8)).convert("RGB")
            image = image.convert("L").convert(mode) if mode in ("I;16", "F", "I", "LA") else convert(image, mode)
            for extra in ({"exif": exif, "xmp": b"<x/>", "dpi": (72, 72), "icc_profile": profile()}, {}):
                file = io.BytesIO()
                try:
                    image.save(file, format=format, **options.get(format, {}), **extra)
                except Exception:  # the format does not support the mode; Pillow raises various errors
                    continue
                if len(file.getvalue()) < 2**16:  # icon formats contain many sizes
                    found[f"{mode}-{format}-{len(extra)}.{format.lower()}"] = file.getvalue()
    frames = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(3)]
    for format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
        file = io.BytesIO()
        frames[0].save(file, format=format, save_all=True, append_images=frames[1:])
        found[f"animated.{format.lower()}"] = file.getvalue()
    return found


def videos() -> dict[str, bytes]:
    """Return a video of four small frames in every container, some with a tone."""
    import av
    import numpy as np

    found, rng = {}, np.random.default_rng(0)
    kinds = {
        "mp4": "libx264",
        "mkv": "libx264",
        "avi": "mpeg4",
        "ts": "libx264",
        "flv": "flv",
        "webm": "libvpx",
        "wmv": "wmv2",
        "mpg": "mpeg1video",
    }
    containers = {"mkv": "matroska", "ts": "mpegts", "wmv": "asf", "mpg": "mpeg"}
    for suffix, codec in kinds.items():
        file = io.BytesIO()
        with av.open(file, "w", format=containers.get(suffix, suffix)) as out:
            stream = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
            tone = out.add_stream("aac", rate=16000, layout="mono") if suffix in ("mp4", "mkv", "ts") else None
            out.metadata["title"] = "Tiny"
            for index in range(4):
                frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (16, 32, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
            if tone:
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                sound.sample_rate, sound.pts = 16000, 0
                out.mux([*tone.encode(sound), *tone.encode(None)])
        found[f"video.{suffix}"] = file.getvalue()
    return found


def convert(image, mode: str):
    """Convert an image to another mode; for LAB Pillow needs a profile."""
    from PIL import ImageCms

    if mode != "LAB":
        return image.convert(mode)
    return ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")


def profile() -> bytes:
    """Return an sRGB profile."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def recipes() -> dict[str, bytes]:
    """Return the package's recipes and the settings of a run."""
    import json

    from transformersr.training.config import RECIPES, TrainConfig

    found = {path.name: path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))}
    return found | {"config.json": json.dumps(dataclasses.asdict(TrainConfig())).encode()}


READERS: dict[str, tuple[Callable[[Path], None], Callable[[], dict[str, bytes]]]] = {
    "checkpoint": (read_checkpoint, checkpoints),
    "video": (read_video, videos),
    "image": (read_image, images),
    "recipe": (read_recipe, recipes),
}


# --- mutation ------------------------------------------------------------------------------------

NUMBERS = [value.to_bytes(size, order) for value in (0, 1, 127, 128, 255) for size in (1, 2, 4) for order in ("little", "big")]
NUMBERS += [value.to_bytes(size, order) for value in (2**15, 2**16 - 1) for size in (2, 4, 8) for order in ("little", "big")]
NUMBERS += [value.to_bytes(size, order) for value in (2**31, 2**32 - 1) for size in (4, 8) for order in ("little", "big")]
TOKENS = [b"nan", b"inf", b"-1", b"1e400", b"null", b"true", b'"', b"{", b"[" * 2000, b"9" * 400, b"\n", b"\xff\xfe", b"..", b"/", b"\0"]


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Apply one to six changes of kinds that often break readers."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        where = rng.randrange(len(result) + 1) if rng.random() < 0.5 else rng.randrange(min(len(result), 256) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 32, 512))
        kind = rng.randrange(8)
        if kind == 0 and result:
            result[where % len(result)] ^= 1 << rng.randrange(8)
        elif kind in (1, 2):
            number = rng.choice(NUMBERS)
            result[where : where + len(number)] = number
        elif kind == 3:
            del result[where : where + length]
        elif kind == 4:
            result[where:where] = result[where : where + length] * rng.choice((1, 2, 50))
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            result[where : where + length] = other[start : start + length]
        elif kind == 6:
            result[where:where] = rng.choice(TOKENS)
        else:
            del result[where if rng.random() < 0.3 else len(result) :]
    return bytes(result)


# --- running -------------------------------------------------------------------------------------


class Run:
    """A reader with its results."""

    def __init__(self, reader: str, keep: Path):
        self.reader, self.keep = reader, keep
        self.read = READERS[reader][0]
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.cases, self.findings = 0, Counter[str]()

    def case(self, data: bytes, suffix: str) -> None:
        """Read one file, and save it if it is a finding."""
        path = self.write_case(data, suffix)
        self.cases += 1
        start = time.process_time()
        try:
            self.read(path)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self._record(f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:200]}", data, suffix)
        if time.process_time() - start > SLOW:
            self._record(f"slow: {time.process_time() - start:.0f} s", data, suffix)

    def write_case(self, data: bytes, suffix: str) -> Path:
        """Write a file, in memory if possible, and return its path."""
        path = Path(self.folder.name, f"case{suffix}")
        path.write_bytes(data)
        return path

    def warm_up(self, files: dict[str, bytes]) -> None:
        """Read every unchanged file, untimed, because some imports happen at the first use."""
        for name, data in files.items():
            self.read(self.write_case(data, Path(name).suffix))

    def _record(self, text: str, data: bytes, suffix: str) -> None:
        if not self.findings[text]:
            self.keep.mkdir(parents=True, exist_ok=True)
            saved = self.keep / f"{self.reader}-{self.cases}{suffix}"
            saved.write_bytes(data)
            print(f"{saved}: {text}", flush=True)
        self.findings[text] += 1

    def conclude(self, seconds: float) -> int:
        """Print a summary and return the exit code."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"{self.reader}: {self.cases:,} files, {sum(self.findings.values())} findings, peak memory {peak:.0f} MiB, {seconds:.0f} s",
            flush=True,
        )
        return 1 if self.findings else 0


def run_random(run: Run, cases: int, seed: int) -> None:
    """Read every seed file whole and truncated at every kilobyte and within its first 64 bytes, then random mutations."""
    rng, files = random.Random(seed), READERS[run.reader][1]()
    others = list(files.values())
    run.warm_up(files)
    for name, data in files.items():
        for length in {*range(0, len(data), 1024), *range(min(len(data), 64)), len(data)}:
            run.case(data[:length], Path(name).suffix)
    names = list(files)
    while run.cases < cases:
        name = rng.choice(names)
        run.case(mutate(files[name], others, rng), Path(name).suffix)


def run_guided(run: Run, cases: int, seed: int) -> None:
    """Let libFuzzer mutate the seed files to reach new lines of our modules and of the Python modules they use."""
    import atheris

    ours = ["transformersr.upscale.pickled", "transformersr.upscale.checkpoint", "transformersr.upscale", "transformersr.training.config"]
    with atheris.instrument_imports(include=[*ours, "PIL", "pickle", "zipfile", "tomllib", "json"]):
        import transformersr.training.config
        import transformersr.upscale.image_io
        import transformersr.upscale.models  # noqa: F401
    files = READERS[run.reader][1]()
    run.warm_up(files)
    corpus = Path(run.folder.name, "corpus")
    corpus.mkdir()
    for name, data in files.items():
        (corpus / name).write_bytes(data)
    suffixes = sorted({Path(name).suffix for name in files})
    options = [f"-runs={cases + 1000}", f"-seed={seed + 1}", "-max_len=262144", "-rss_limit_mb=4096", "-timeout=60", "-verbosity=0"]

    start = time.time()

    def one(data: bytes) -> None:
        run.case(data, suffixes[sum(data[:16]) % len(suffixes)])
        if run.cases == cases:  # libFuzzer would exit without our summary
            code = run.conclude(time.time() - start)
            run.folder.cleanup()
            os._exit(code)

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Run the selected readers, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"{', '.join(READERS)}; default: all")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("random", "atheris"), default="random")
    parser.add_argument("--keep", type=Path, default=Path("findings"), help="folder for the files of findings")
    options = parser.parse_args()
    if unknown := set(options.readers) - set(READERS):
        parser.error(f"{', '.join(unknown)}: no such reader")
    if len(options.readers) != 1:
        rest = ["--cases", str(options.cases), "--seed", str(options.seed), "--engine", options.engine, "--keep", str(options.keep)]
        return max(subprocess.run([sys.executable, __file__, name, *rest], check=False).returncode for name in options.readers or READERS)
    run, start = Run(options.readers[0], options.keep), time.time()
    if options.engine == "atheris":
        run_guided(run, options.cases, options.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    import logging

    logging.disable()
    run_random(run, options.cases, options.seed)
    return run.conclude(time.time() - start)


if __name__ == "__main__":
    sys.exit(main())
