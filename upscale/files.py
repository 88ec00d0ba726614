"""Find input files: every image below a folder exactly once, even through links. Skipped files are counted and named."""

from __future__ import annotations

import functools
import glob
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

NO_PIXELS = ("MPEG", "BUFR", "GRIB", "HDF5", "IPTC")
"""Formats that Pillow recognises but cannot decode."""
FOREIGN = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    ".jxl": "JPEG XL",
    ".jxr": "JPEG XR",
    **dict.fromkeys((".svg", ".svgz"), "an SVG vector drawing"),
    ".pdf": "PDF",
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"), "a camera's raw format"),
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".clip": "a Clip Studio document",
    ".kra": "a Krita document",
    ".xcf": "a GIMP document",
    ".sai": "a SAI document",
    ".sai2": "a SAI document",
}
"""Suffixes of unsupported image formats, and what they are."""

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ts", ".m2ts", ".mpg", ".mpeg"),
    *(".3gp", ".3g2", ".asf", ".divx", ".dv", ".f4v", ".ivf", ".m1v", ".m2v", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb"),
    *(".tp", ".vob"),
)
"""Suffixes of videos."""
COMPANIONS = (".txt", ".json", ".csv", ".toml", ".yaml", ".xml", ".md", ".db", ".ini", ".caption")
"""Suffixes of files that often accompany images: notes, captions, files left by file managers. They are skipped without a message."""


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the image formats that Pillow can read here, including registered plugins."""
    Image.init()
    readable = {suffix for suffix, format in Image.EXTENSION.items() if format in Image.OPEN and format not in NO_PIXELS}
    return frozenset({*readable, ".mpo"} - set(VIDEOS))


def is_image(path: Path) -> bool:
    """Whether a name has the suffix of an image that Pillow reads. The content is only checked when the file is read."""
    return path.suffix.lower() in image_suffixes()


def is_special(path: Path) -> bool:
    """Whether a path is a pipe or a device, which would block a reader, rather than a file or a folder."""
    return path.exists() and not path.is_dir() and not path.is_file()


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height from a file's header, after rotation by EXIF; (0, 0) if it cannot be read."""
    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(path) as image:
        is_rotated = image.getexif().get(0x0112, 1) >= 5
        return (image.height, image.width) if is_rotated else image.size
    return (0, 0)


def foreign_format(path: Path) -> str | None:
    """Name the unsupported image format that a file's suffix stands for. Returns None for any other file."""
    return None if is_image(path) else FOREIGN.get(path.suffix.lower())


def unsupported(format: str) -> str:
    """Return the message for an image in an unsupported format, which `format` names with its article, if it takes one."""
    return f"this is {format}, which is not supported; save it as PNG first"


@dataclass
class FolderContents:
    """The files below a folder. Lists are sorted."""

    images: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    """Images in unsupported formats, broken links and special files, each with the reason."""
    videos: int = 0
    hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Number of files that are not images, by suffix."""
    repeated_links: list[Path] = field(default_factory=list)
    """Links to folders that are also reached another way, or that contain the link itself."""

    def skipped_lines(self) -> list[str]:
        """Describe the skipped files, one line for each kind. Does not include `unreadable`."""
        lines = []
        if self.videos:
            lines.append(f"{_count(self.videos, 'video')} skipped; name a video explicitly to upscale it")
        unknown = Counter({suffix: count for suffix, count in self.others.items() if suffix not in COMPANIONS})
        if unknown:
            kinds = ", ".join(suffix or "no suffix" for suffix, _ in unknown.most_common(5))
            lines.append(f"{_count(unknown.total(), 'file')} skipped without an image suffix ({kinds})")
        if self.hidden:
            lines.append(f"{_count(self.hidden, 'hidden image')} skipped")
        lines += [f"{path} is a link to a folder that is already searched" for path in self.repeated_links]
        return lines


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


def search(folder: str | Path, without: Path | None = None) -> FolderContents:
    """List everything below a folder, following links to folders but entering each folder once. Skips the folder `without`."""
    contents = FolderContents()
    for path in _walk(Path(folder), contents.repeated_links, None if without is None else os.path.realpath(without)):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            contents.hidden += is_image(path)
        elif is_image(path) or suffix in FOREIGN:
            if path.is_symlink() and not path.exists():
                contents.unreadable.append((path, "a link to a file that does not exist"))
            elif not path.is_file():
                contents.unreadable.append((path, "this is a pipe or a device; expected a file"))
            elif is_image(path):
                contents.images.append(path)
            else:
                contents.unreadable.append((path, unsupported(FOREIGN[suffix])))
        elif suffix in VIDEOS:
            contents.videos += 1
        else:
            contents.others[suffix] += 1
    contents.images.sort()
    contents.unreadable.sort()
    return contents


def _walk(root: Path, repeated_links: list[Path], without: str | None) -> Iterator[Path]:
    """Yield the files below a folder. A link is followed only if its folder is outside the root and has not been entered before."""
    top = os.path.realpath(root)
    entered = {top}
    for parent, folders, files in os.walk(root, followlinks=True):
        for name in sorted(folders):
            path = Path(parent, name)
            real = os.path.realpath(path)
            if real == without:
                folders.remove(name)
            elif os.path.islink(path) and (real in entered or _contains(top, real) or _contains(real, top)):
                repeated_links.append(path)
                folders.remove(name)
            elif real in entered:  # below a link, a folder that another link has already led to
                folders.remove(name)
            else:
                entered.add(real)
        folders.sort()
        yield from (Path(parent, name) for name in sorted(files))


def _contains(folder: str, path: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def expand(text: str) -> list[Path]:
    """Return the files and folders that a command's argument means: the path itself if it exists, otherwise the matches of the pattern.

    Raises ValueError if there are none. Brackets in the name of an existing folder are taken literally.
    """
    if not text:  # Path("") is the current folder, and an empty argument is usually an unset variable of a script
        raise ValueError("an input is empty; expected a file, a folder or a pattern (. is the current folder)")
    path = Path(text)
    if os.path.lexists(path):
        return [path]
    home = os.path.expanduser(text)
    for pattern in (_escape_existing_folders(home), home.replace("[", "[[]")):
        if found := sorted(glob.glob(pattern, recursive=True)):
            return [Path(name) for name in found]
    raise ValueError(f"{text}: no such file or folder")


def _escape_existing_folders(text: str) -> str:
    """Escape the longest leading path of a pattern that exists as a folder, so that its special characters are literal."""
    path = Path(text)
    for parent in path.parents:
        if parent.is_dir():
            return os.path.join(glob.escape(str(parent)), path.relative_to(parent))
    return text
