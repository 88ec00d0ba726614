"""Read tensors from PyTorch's pickled files without ever creating an object that a file names.

`torch.load(weights_only=True)` has the same goal, but hosts come with PyTorch 2.1 and later: a tar file got past it before 2.6
(CVE-2025-32434), a wrong size or a value set in the wrong place before 2.10 (CVE-2026-24747), and with 2.13 a file of 500 bytes can
still take unlimited memory and time, by building a set from the rows of a tensor that repeats one number. Here, the standard library's
interpreter runs with only the instructions that build plain values, and a tensor is a record of where its numbers are until everything
has been read. Memory therefore stays within a small multiple of the file's size.

There are two formats. Since 1.6, `torch.save` writes a zip file with `data.pkl` and a record per storage; before that, it wrote five
pickles followed by the storages. (Source for both: `torch/serialization.py` of PyTorch 2.13.)
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PICKLE_BYTES = 2**22
"""Maximum number of bytes interpreted. Our largest network needs 3 MiB, and each byte can take a hundred in memory."""
MOST_DIMENSIONS, MOST_ARGUMENTS = 8, 16
"""Maximum number of dimensions of a tensor, and of arguments of a function."""
MOST_LEVELS = 16
"""Maximum nesting of mappings and lists. The state of a training run has five levels."""
MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of the older format."""


class RefusedError(ValueError):
    """A pickle contains something other than tensors and plain values; the message names it."""


class DamagedError(ValueError):
    """A file differs from those that PyTorch writes; the message says how."""


class ArchiveError(ValueError):
    """A zip file contains something other than weights; the message names it."""


@dataclass(frozen=True)
class Storage:
    """A flat array of numbers, and the key of its record in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickled(path: Path, choose: Callable[[Any], Any] = lambda content: content) -> Any:
    """Read a pickled file and return what `choose` selects from its mappings, lists and plain values; only selected tensors are loaded.

    Raises RefusedError, DamagedError, ArchiveError, OSError, and whatever `choose` raises.
    """
    with _CarefulFile(path) as file:
        try:
            content, places = _open_zip(file) if file.read(2) == b"PK" else _open_older(file)
        except (RefusedError, DamagedError, ArchiveError):
            raise
        except Exception as error:  # broken instructions can make the interpreter fail in any way
            raise DamagedError("its list of tensors cannot be read") from error
        chosen = choose(content)
        tensors = list(_tensors_in(chosen, iter(range(PICKLE_BYTES))))
        declared = sum(math.prod(stored.size) * stored.storage.dtype.itemsize for stored in tensors)
        if declared > path.stat().st_size:
            raise DamagedError(f"its tensors would take {declared:,} bytes, and the file has {path.stat().st_size:,}")
        storages: dict[Storage, Tensor] = {}
        return _with_tensors(chosen, lambda stored: _load(file, stored, places, storages))


def _tensors_in(value: object, room: Iterator[int], level: int = 0) -> Iterator[StoredTensor]:
    """Yield the tensors in a value. `room` limits how many values are visited, because nested references to one list need few bytes."""
    if level > MOST_LEVELS or next(room, None) is None:
        raise DamagedError("its mappings and lists are nested too deeply or refer to each other")
    if isinstance(value, StoredTensor):
        yield value
    inner: Iterable = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for item in inner:
        yield from _tensors_in(item, room, level + 1)


def _with_tensors(value: Any, load: Callable[[StoredTensor], Tensor]) -> Any:
    if isinstance(value, StoredTensor):
        return load(value)
    if isinstance(value, dict):
        return {key: _with_tensors(item, load) for key, item in value.items()}
    return type(value)(_with_tensors(item, load) for item in value) if isinstance(value, (list, tuple)) else value


# --- instructions --------------------------------------------------------------------------------


def _mapping(*_) -> dict:
    return {}


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_) -> StoredTensor:
    numbers = (offset, *size[:MOST_DIMENSIONS], *stride[:MOST_DIMENSIONS])
    if type(storage) is not Storage or not len(size) == len(stride) <= MOST_DIMENSIONS or not all(map(_is_count, numbers)):
        raise DamagedError("a tensor has no storage or an invalid size")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= storage.numel or math.prod(size) > storage.numel):
        raise DamagedError(f"a tensor of size {size} is larger than its storage of {storage.numel} numbers")
    return StoredTensor(storage, offset, size, stride)


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _typed_tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], _grad, _hooks, dtype, *_) -> StoredTensor:
    if type(storage) is not Storage or not isinstance(dtype, torch.dtype):
        raise DamagedError("a tensor has no storage or no type")
    return _tensor(Storage(storage.key, dtype, storage.nbytes // dtype.itemsize), offset, size, stride)


def _parameter(data: object, *_) -> object:
    return data


def _left_out(*_) -> None:
    """Replaces objects that trainers save along with weights and that we do not use: settings, paths, NumPy scalars."""


DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
STORAGES = {
    **{"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16},
    **{"ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "LongStorage": torch.int64},
    **{"IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8},
    **{"BoolStorage": torch.bool, "UntypedStorage": torch.uint8},
}
MAPPINGS = (
    *("collections.OrderedDict", "collections.defaultdict", "pytorch_lightning.utilities.parsing.AttributeDict"),
    *(f"lightning{part}.AttributeDict" for part in (".pytorch.utilities.parsing", "_fabric.utilities.data", ".fabric.utilities.data")),
)
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
LEFT_OUT = (
    *("torch.Size", "torch.device", "collections.Counter", "_codecs.encode", "argparse.Namespace", "types.SimpleNamespace"),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    *(f"numpy{core}.multiarray.{name}" for core in (".core", "._core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"{module}.{name}" for module in ("__builtin__", "builtins") for name in ("set", "bytearray", "complex")),
)
KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    **{f"torch.{name}": dtype for name, dtype in {**DTYPES, **STORAGES}.items()},
    "torch.storage.UntypedStorage": torch.uint8,
    **dict.fromkeys(MAPPINGS, _mapping),
    **dict.fromkeys(LEFT_OUT, _left_out),
}
"""Names that a pickle may refer to, each with our replacement."""

PLAIN = (
    *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4),
    *(pickle.FLOAT, pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINBYTES8, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND),
    *(pickle.APPENDS, pickle.EMPTY_DICT, pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT),
    *(pickle.MEMOIZE, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
)
"""Instructions that run as in the standard library. The class below replaces some of the others and refuses the rest."""
OBJECTS = (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4)
KEYS = (str, int, float, bytes, type(None))
"""Types of keys in a mapping. Comparing others may never end, or overflow the stack."""


class _Unpickler(pickle._Unpickler):
    """The standard library's interpreter in Python. The one in C allocates memory for any number that a file mentions."""

    stack: list
    pop_mark: Callable[[], list]
    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in PLAIN}  # type: ignore[misc]

    def __init__(self, file: io.BytesIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return our replacement for a known name; refuse any other."""
        full = f"{module}.{name}"
        if full not in KNOWN:
            raise RefusedError(f"{full!r:.100}")
        return KNOWN[full]

    def persistent_load(self, pid: Any) -> Storage:
        """Return a storage from its kind, type, key, device and length; in the older format, also from a view, which must be empty."""
        kind, dtype, key, _, numel, *part = pid
        known = isinstance(dtype, torch.dtype) and type(key) is str and _is_count(numel) and part in ([], [None])
        if kind != "storage" or not known or self.storages.setdefault(key, Storage(key, dtype, numel)) != Storage(key, dtype, numel):
            raise DamagedError("the description of a storage is invalid")
        return self.storages[key]

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > MOST_ARGUMENTS:
            raise DamagedError("a function has too many arguments")
        self.stack[-1] = self.stack[-1](*arguments)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _set_items(self) -> None:
        self._put(self.pop_mark())

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._put(items)

    def _put(self, items: list) -> None:
        target, keys = self.stack[-1], items[::2]
        if type(target) is not dict or not all(type(key) in KEYS for key in keys):
            raise DamagedError("an item is set on an object that is not a mapping, or under an unexpected kind of key")
        target.update(zip(keys, items[1::2], strict=True))

    def _forget_state(self) -> None:
        self.stack.pop()

    def _new_object(self) -> None:
        """Create an empty mapping or placeholder for a known class; refuse any other class."""
        self.stack.pop()
        make = self.stack.pop()
        if make not in (_left_out, _mapping):
            raise RefusedError("an object of a class")
        self.stack.append(make())

    def _refuse(self) -> None:
        raise RefusedError("an object of a class")

    dispatch |= {pickle.REDUCE[0]: _reduce, pickle.BUILD[0]: _forget_state, pickle.NEWOBJ[0]: _new_object}  # type: ignore[dict-item]
    dispatch |= {pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, pickle.DICT[0]: _dict}  # type: ignore[dict-item]
    dispatch |= dict.fromkeys((code[0] for code in OBJECTS), _refuse)  # type: ignore[arg-type]


# --- files ---------------------------------------------------------------------------------------


class _CarefulFile(io.FileIO):
    """A file that reads at most `PICKLE_BYTES` at once, whatever size its index claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        size = left if size is None or size < 0 else min(size, left)
        if size > PICKLE_BYTES:
            raise DamagedError("its index is too large")
        return super().read(max(size, 0)) or b""


Places = dict[str, tuple[int, int]]
"""Key of a storage -> its offset and length in the file."""


def _open_zip(file: _CarefulFile) -> tuple[object, Places]:
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        root = next((name.removesuffix("data.pkl") for name in records if re.fullmatch(r"([^/]*/)?data\.pkl", name)), None)
        if root is None:
            inside = next((name for name in records if name.endswith((".safetensors", ".pt", ".pth", ".ckpt", ".bin"))), None)
            if inside is None:
                raise ArchiveError("this is a zip file without weights in it; expected a .safetensors, .pt, .pth or .ckpt file of weights")
            raise ArchiveError(f"this is a zip file with {inside!r:.80} in it; unpack it, and give that file")
        if f"{root}constants.pkl" in records:
            raise ArchiveError("this is a TorchScript program, whose code is not run; get its weights as a state dict")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in records.values()):
            raise DamagedError("its records are compressed or encrypted, unlike those of PyTorch")
        if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
            raise DamagedError("it was written on a big-endian machine")
        content = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        prefix = f"{root}data/"
        stored = {name.removeprefix(prefix): info for name, info in records.items() if name.startswith(prefix)}
        return content, {key: (_start(file, info.header_offset), info.file_size) for key, info in stored.items()}


def _start(file: _CarefulFile, header: int) -> int:
    """Return the offset of a record's data, after a header with two fields of variable length."""
    file.seek(header)
    name_length, extra_length = struct.unpack("<26x2H", file.read(30))
    return header + 30 + name_length + extra_length


def _open_older(file: _CarefulFile) -> tuple[object, Places]:
    file.seek(0)
    head = io.BytesIO(file.read(min(PICKLE_BYTES, os.fstat(file.fileno()).st_size)))
    if _Unpickler(head).load() != MAGIC:
        raise RefusedError("an unknown first value")
    _version, _machine = _Unpickler(head).load(), _Unpickler(head).load()
    unpickler = _Unpickler(head)
    content, keys = unpickler.load(), _Unpickler(head).load()
    places, start = {}, head.tell()
    for key in keys:
        file.seek(start)
        (count,) = struct.unpack("<q", file.read(8))
        if count != unpickler.storages[key].numel:
            raise DamagedError("a storage differs in length from its description")
        places[key] = (start + 8, unpickler.storages[key].nbytes)
        start += 8 + unpickler.storages[key].nbytes
    return content, places


def _load(file: _CarefulFile, stored: StoredTensor, places: Places, loaded: dict[Storage, Tensor]) -> Tensor:
    storage = stored.storage
    if storage not in loaded:
        loaded[storage] = _numbers(file, storage, *places.get(storage.key, (0, -1)))
    return loaded[storage].as_strided(stored.size, stored.stride, stored.offset)


def _numbers(file: _CarefulFile, storage: Storage, start: int, length: int) -> Tensor:
    if length // storage.dtype.itemsize != storage.numel or start + length > os.fstat(file.fileno()).st_size:
        raise DamagedError("a storage is cut short")
    data = bytearray(storage.nbytes)
    file.seek(start)
    if file.readinto(data) != len(data):
        raise DamagedError("a storage is cut short")
    return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
