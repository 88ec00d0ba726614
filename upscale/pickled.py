"""Tensors out of PyTorch's pickled files without ever making an object that a file names.

`torch.load(weights_only=True)` means to do that too, but hosts have PyTorch from 2.1 on: before 2.6 a tar file got past it
(CVE-2025-32434), before 2.10 a wrong size or a value set in the wrong place (CVE-2026-24747), and in 2.13 a file of 500 bytes still
takes memory and minutes without end, by a set of the rows of a tensor that repeats one number. Here the interpreter of the standard
library runs with only those instructions that build plain values, and a tensor is a record of where its numbers are until all has
been read. So memory stays within a small multiple of the file's size.

The two formats are PyTorch's `torch.save` since 1.6, a zip file with `data.pkl` and a record for each storage, and before that, five
pickles and the storages behind them. (Source for both: `torch/serialization.py` of PyTorch 2.13.)
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
"""The most that is interpreted. The largest network of ours needs 3 MiB, and each byte can make a hundred in memory."""
MOST_SIDES, MOST_ARGUMENTS = 8, 16
"""Of a tensor, and of a function."""
MOST_LEVELS = 16
"""Of mappings and lists in each other. The state of a run has five."""
MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of the older format."""


class RefusedError(ValueError):
    """A pickle asks for something other than tensors and plain values; the message says what."""


class DamagedError(ValueError):
    """A file that is not as PyTorch writes them; the message says where."""


class ArchiveError(ValueError):
    """A zip file of other files; the message says which."""


@dataclass(frozen=True)
class Storage:
    """Numbers in a row, and the name of the place where the file has them."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Its length in the file."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickled(path: Path, choose: Callable[[Any], Any] = lambda content: content) -> Any:
    """Read a pickled file and return what `choose` selects from its mappings, lists and plain values; only selected tensors are loaded.

    Raises RefusedError, DamagedError, what `choose` raises, and OSError.
    """
    with _CarefulFile(path) as file:
        try:
            content, places = _open_zip(file) if file.read(2) == b"PK" else _open_older(file)
        except (RefusedError, DamagedError, ArchiveError):
            raise
        except Exception as error:  # an interpreter of broken instructions can fail in any way there is
            raise DamagedError("its list of tensors cannot be read") from error
        chosen = choose(content)
        tensors = list(_tensors_in(chosen, iter(range(PICKLE_BYTES))))
        declared = sum(math.prod(stored.size) * stored.storage.dtype.itemsize for stored in tensors)
        if declared > path.stat().st_size:
            raise DamagedError(f"its tensors would take {declared:,} bytes, and the file has {path.stat().st_size:,}")
        storages: dict[Storage, Tensor] = {}
        return _with_tensors(chosen, lambda stored: _load(file, stored, places, storages))


def _tensors_in(value: object, room: Iterator[int], level: int = 0) -> Iterator[StoredTensor]:
    """The tensors in a value; `room` has one item for each value that it may hold, for lists of the same list need few bytes."""
    if level > MOST_LEVELS or next(room, None) is None:
        raise DamagedError("its mappings and lists hold themselves, or each other very often")
    if isinstance(value, StoredTensor):
        yield value
    inner: Iterable = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for one in inner:
        yield from _tensors_in(one, room, level + 1)


def _with_tensors(value: Any, load: Callable[[StoredTensor], Tensor]) -> Any:
    if isinstance(value, StoredTensor):
        return load(value)
    if isinstance(value, dict):
        return {key: _with_tensors(one, load) for key, one in value.items()}
    return type(value)(_with_tensors(one, load) for one in value) if isinstance(value, (list, tuple)) else value


# --- instructions --------------------------------------------------------------------------------


def _mapping(*_) -> dict:
    return {}


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_) -> StoredTensor:
    numbers = (offset, *size[:MOST_SIDES], *stride[:MOST_SIDES])
    if type(storage) is not Storage or not len(size) == len(stride) <= MOST_SIDES or not all(map(_is_count, numbers)):
        raise DamagedError("a tensor has no storage or a negative size")
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
    """Stands for objects that trainers save along with weights and that we do not use: settings, paths, NumPy scalars."""


DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
KNOWN: dict[str, Any] = {
    "collections.OrderedDict": _mapping,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    **{f"torch.{name}": dtype for name, dtype in {**DTYPES, **STORAGES}.items()},
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.Size": _left_out,
    "torch.device": _left_out,
    "collections.Counter": _left_out,
    "_codecs.encode": _left_out,
    "argparse.Namespace": _left_out,
    "types.SimpleNamespace": _left_out,
    **{f"pathlib.{name}": _left_out for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
    **{f"pathlib._local.{name}": _left_out for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
    **{f"numpy{core}.multiarray.{name}": _left_out for core in (".core", "._core") for name in ("scalar", "_reconstruct")},
    "numpy.dtype": _left_out,
    "numpy.ndarray": _left_out,
    "collections.defaultdict": _mapping,
    "pytorch_lightning.utilities.parsing.AttributeDict": _mapping,
    "lightning.pytorch.utilities.parsing.AttributeDict": _mapping,
    "lightning_fabric.utilities.data.AttributeDict": _mapping,
    "lightning.fabric.utilities.data.AttributeDict": _mapping,
    "__builtin__.set": _left_out,
    "__builtin__.bytearray": _left_out,
    "__builtin__.complex": _left_out,
    "builtins.set": _left_out,
    "builtins.bytearray": _left_out,
    "builtins.complex": _left_out,
}
"""Names that a pickle may refer to, and our replacement for each."""

PLAIN = (
    *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4),
    *(pickle.FLOAT, pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINBYTES8, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND),
    *(pickle.APPENDS, pickle.EMPTY_DICT, pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT),
    *(pickle.MEMOIZE, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
)
"""Instructions that are taken as they are. Of the others some are ours, below, and the rest are refused."""
OBJECTS = (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4)
KEYS = (str, int, float, bytes, type(None))
"""Kinds of key in a mapping: comparing others may take for ever, or more stack than there is."""


class _Unpickler(pickle._Unpickler):
    """The standard library's interpreter in Python: the one in C makes room for any number that a file mentions."""

    stack: list
    pop_mark: Callable[[], list]
    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in PLAIN}  # type: ignore[misc]

    def __init__(self, file: io.BytesIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return our replacement for a name; refuse all others."""
        full = f"{module}.{name}"
        if full not in KNOWN:
            raise RefusedError(f"{full!r:.100}")
        return KNOWN[full]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage from its description: kind, type, key, device, count, and in the older format an optional view, which must be empty."""
        kind, dtype, key, _, numel, *part = pid
        known = isinstance(dtype, torch.dtype) and type(key) is str and _is_count(numel) and part in ([], [None])
        if kind != "storage" or not known or self.storages.setdefault(key, Storage(key, dtype, numel)) != Storage(key, dtype, numel):
            raise DamagedError("a storage is described wrongly")
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
        """An object without state, of a class that stands for nothing or a mapping; others are refused."""
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
    """A file of which no more than `PICKLE_BYTES` are read at once, whatever it says of its own index."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        size = left if size is None or size < 0 else min(size, left)
        if size > PICKLE_BYTES:
            raise DamagedError("its index is too large")
        return super().read(max(size, 0)) or b""


Places = dict[str, tuple[int, int]]
"""Key of a storage to where it begins in the file, and its length."""


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
            raise ArchiveError("this is a TorchScript program, whose code is not run; get the weights alone, as a state dict")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in records.values()):
            raise DamagedError("its records are compressed or encrypted, which PyTorch's never are")
        if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
            raise DamagedError("it was written by a machine with the other order of bytes")
        content = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        prefix = f"{root}data/"
        stored = {name.removeprefix(prefix): info for name, info in records.items() if name.startswith(prefix)}
        return content, {key: (_start(file, info.header_offset), info.file_size) for key, info in stored.items()}


def _start(file: _CarefulFile, header: int) -> int:
    """Offset of a record's data: after its header, which has two fields of variable length."""
    file.seek(header)
    name_length, extra_length = struct.unpack("<26x2H", file.read(30))
    return header + 30 + name_length + extra_length


def _open_older(file: _CarefulFile) -> tuple[object, Places]:
    file.seek(0)
    head = io.BytesIO(file.read(min(PICKLE_BYTES, os.fstat(file.fileno()).st_size)))
    if _Unpickler(head).load() != MAGIC:
        raise RefusedError("something that PyTorch does not begin with")
    _version, _machine = _Unpickler(head).load(), _Unpickler(head).load()
    unpickler = _Unpickler(head)
    content, keys = unpickler.load(), _Unpickler(head).load()
    places, start = {}, head.tell()
    for key in keys:
        file.seek(start)
        (count,) = struct.unpack("<q", file.read(8))
        if count != unpickler.storages[key].numel:
            raise DamagedError("a storage has another length than described")
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
        raise DamagedError("its storages end before they should")
    data = bytearray(storage.nbytes)
    file.seek(start)
    if file.readinto(data) != len(data):
        raise DamagedError("its storages end before they should")
    return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
