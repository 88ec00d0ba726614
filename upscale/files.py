"""What files there are: images below a folder, each once whatever the links, and everything that is passed over counted and named."""

from __future__ import annotations

import functools
import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

NO_IMAGES = ("MPEG", "BUFR", "GRIB", "HDF5", "IPTC")
"""Formats that Pillow knows by name, and of which it reads no pixels."""
FOREIGN = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    ".jxl": "JPEG XL",
    ".jxr": "JPEG XR",
    **dict.fromkeys((".svg", ".svgz"), "SVG, which has no pixels"),
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
"""Suffixes of images that are not read here, and what they are."""
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ts", ".m2ts", ".mpg", ".mpeg"),
    *(".3gp", ".3g2", ".asf", ".divx", ".dv", ".f4v", ".ivf", ".m1v", ".m2v", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb"),
    *(".tp", ".vob"),
)
"""Suffixes of videos."""
COMPANIONS = (".txt", ".json", ".csv", ".toml", ".yaml", ".xml", ".md", ".db", ".ini", ".caption")
"""Suffixes of files that lie beside images and are none: notes, captions, what file managers leave."""


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the images that Pillow reads here, those of plugins that have been registered with it too."""
    Image.init()
    read = {suffix for suffix, format in Image.EXTENSION.items() if format in Image.OPEN and format not in NO_IMAGES}
    return frozenset({*read, ".mpo"} - set(VIDEOS))


def is_image(path: Path) -> bool:
    """Whether a name is that of an image that Pillow reads. What a file holds is told by its content alone, when it is read."""
    return path.suffix.lower() in image_suffixes()


def foreign_format(path: Path) -> str | None:
    """What an image is that nothing here reads, by its name; None for any other file."""
    return None if is_image(path) else FOREIGN.get(path.suffix.lower())


@dataclass
class FolderContents:
    """The files below a folder. Lists are sorted."""

    images: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    """Images that nothing here reads, and links that lead nowhere, each with the reason."""
    videos: int = 0
    hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by suffix."""
    circles: list[Path] = field(default_factory=list)
    """Links to folders that are entered in another place, or hold the link itself."""

    def passed_over(self) -> list[str]:
        """One line for each kind of file that was passed over; images that nothing reads have lines of their own."""
        lines = []
        if self.videos:
            lines.append(f"{_count(self.videos, 'video')} passed over; name a video itself to upscale it")
        strangers = Counter({suffix: count for suffix, count in self.others.items() if suffix not in COMPANIONS})
        if strangers:
            kinds = ", ".join(suffix or "without suffix" for suffix, _ in strangers.most_common(5))
            lines.append(f"{_count(strangers.total(), 'file')} passed over that by their names are no images ({kinds})")
        if self.hidden:
            lines.append(f"{_count(self.hidden, 'hidden image')} passed over")
        lines += [f"{path} is a link to a folder that is searched in another place" for path in self.circles]
        return lines


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def search(folder: str | Path, without: Path | None = None) -> FolderContents:
    """Everything below a folder, through links to other folders too, each folder once; what is below `without` is left out."""
    contents = FolderContents()
    for path in _walk(Path(folder), contents.circles, None if without is None else os.path.realpath(without)):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            contents.hidden += is_image(path)
        elif is_image(path) or suffix in FOREIGN:
            if path.is_symlink() and not path.exists():
                contents.unreadable.append((path, "a link to a file that is not there"))
            elif not path.is_file():
                contents.unreadable.append((path, "a pipe or a device; expected a file"))
            elif is_image(path):
                contents.images.append(path)
            else:
                contents.unreadable.append((path, f"this is {FOREIGN[suffix]}, which is not read here; save it as PNG first"))
        elif suffix in VIDEOS:
            contents.videos += 1
        else:
            contents.others[suffix] += 1
    contents.images.sort()
    contents.unreadable.sort()
    return contents


def _walk(root: Path, circles: list[Path], without: str | None) -> Iterator[Path]:
    """Files below a folder. A link is followed where its folder is not below the root anyway and has not been entered."""
    top = os.path.realpath(root)
    entered = {top}
    for place, folders, files in os.walk(root, followlinks=True):
        for name in sorted(folders):
            path = Path(place, name)
            real = os.path.realpath(path)
            if real == without:
                folders.remove(name)
            elif os.path.islink(path) and (real in entered or _holds(top, real) or _holds(real, top)):
                circles.append(path)
                folders.remove(name)
            elif real in entered:  # a folder below a link that another link led to before
                folders.remove(name)
            else:
                entered.add(real)
        folders.sort()
        yield from (Path(place, name) for name in sorted(files))


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def expand(text: str) -> list[Path]:
    """The files and folders that an argument of a command means: itself if it exists, else those that match it as a pattern.

    Raises ValueError where there are none. Brackets in the name of a folder that exists are no pattern.
    """
    path = Path(text)
    if os.path.lexists(path):
        return [path]
    home = os.path.expanduser(text)
    for pattern in (_with_folders_as_they_are(home), home.replace("[", "[[]")):
        if found := sorted(glob.glob(pattern, recursive=True)):
            return [Path(name) for name in found]
    raise ValueError(f"{text}: no such file or folder")


def _with_folders_as_they_are(text: str) -> str:
    """A pattern in which the leading folders that exist, whatever letters are in their names, stand for themselves."""
    path = Path(text)
    for parent in path.parents:
        if parent.is_dir():
            return os.path.join(glob.escape(str(parent)), path.relative_to(parent))
    return text
