"""Assemble pickles instruction by instruction, including malicious ones.

`push_...` return the instructions that push one value onto the pickle machine's stack. `ATTACKS` are pickles that would run code.
`FALSE_SIZES` are pickles that request far more memory than their file has bytes.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path


def push_global(full: str) -> bytes:
    """Push the object with a dotted name."""
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def push_text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def push_int(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def push_tuple(*parts: bytes) -> bytes:
    """Push a tuple of the values that the parts push."""
    return b"(" + b"".join(parts) + b"t"


def push_call(function: str, *arguments: bytes) -> bytes:
    return push_global(function) + push_tuple(*arguments) + b"R"


def push_storage(count: int = 1, key: str = "0", kind: str = "torch.FloatStorage") -> bytes:
    return push_tuple(push_text("storage"), push_global(kind), push_text(key), push_text("cpu"), push_int(count)) + b"Q"


def push_tensor(size: tuple[int, ...], stride: tuple[int, ...], of_storage: bytes | None = None, offset: int = 0) -> bytes:
    shape = push_tuple(*map(push_int, size)), push_tuple(*map(push_int, stride))
    return push_call(
        "torch._utils._rebuild_tensor_v2",
        of_storage or push_storage(),
        push_int(offset),
        *shape,
        b"\x89",
        push_call("collections.OrderedDict"),
    )


def write_checkpoint(path: Path, value: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a PyTorch file with one entry, the value that the instructions push."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + push_text("x") + value + b"s.")
        for record, data in {"data/0": b"\0\0\0\0", "version": b"3", **(records or {})}.items():
            archive.writestr(f"a/{record}", data)
    return path


# --- attacks -------------------------------------------------------------------------------------

COMMAND = "touch ran"
PYTHON = "open('ran', 'w')"
ATTACKS = {
    "system": push_call("os.system", push_text(COMMAND)),
    "posix": push_call("posix.system", push_text(COMMAND)),
    "popen": push_call("subprocess.Popen", push_text("touch"), push_text("ran")),
    "eval": push_call("builtins.eval", push_text(PYTHON)),
    "exec": push_call("__builtin__.exec", push_text(PYTHON)),
    "open": push_call("io.open", push_text("ran"), push_text("w")),
    "import": push_call("importlib.import_module", push_text("antigravity")),
    "run": push_call("runpy.run_path", push_text("ran.py")),
    "timeit": push_call("timeit.timeit", push_text(PYTHON)),
    "profile": push_call("cProfile.run", push_text(PYTHON)),
    "pdb": push_call("bdb.Bdb.run", push_text(PYTHON)),
    "numpy": push_call("numpy.testing._private.utils.runstring", push_text(PYTHON), b"}"),
    "nested": push_call("torch.storage._load_from_bytes", b"C\x01."),
    "load": push_call("torch.load", push_text("ran.pt")),
    "hub": push_call("torch.hub.load", push_text("a/b"), push_text("c")),
    "jit": push_call("torch.jit.load", push_text("ran.pt")),
    "package": push_call("torch.package.PackageImporter", push_text("ran.pt")),
    "collective": push_call("torch.distributed.distributed_c10d._object_to_tensor", b"N"),
    "library": push_call("ctypes.CDLL", push_text("ran.so")),
    "marshal": push_call("marshal.loads", b"C\x01N"),
    "function": push_call("types.FunctionType", b"N", b"}"),
    "attribute": push_call("builtins.getattr", push_global("collections.OrderedDict"), push_text("fromkeys")),
    "partial": push_call("functools.partial", push_global("collections.OrderedDict")),
    "remove": push_call("shutil.rmtree", push_text("keep")),
    "unlink": push_call("pathlib.Path.unlink", push_call("pathlib.Path", push_text("keep"))),
    "browser": push_call("webbrowser.open", push_text("http://127.0.0.1:9/")),
    "socket": push_call("socket.create_connection", push_tuple(push_text("127.0.0.1"), push_int(9))),
    "archive": push_call("zipfile.ZipFile", push_text("ran"), push_text("w")),
    "logging": push_call("logging.FileHandler", push_text("ran")),
    "instance": b"(" + push_text(COMMAND) + b"ios\nsystem\n",
    "object": b"(" + push_global("os.system") + push_text(COMMAND) + b"o",
    "new": push_global("subprocess.Popen") + push_tuple(push_text("touch ran")) + b"\x81",
    "new with names": push_global("subprocess.Popen") + push_tuple(push_text("touch")) + b"}\x92",
    "from the stack": push_text("os") + push_text("system") + b"\x93" + push_tuple(push_text(COMMAND)) + b"R",
    "extension": b"\x82\x01" + push_tuple(push_text(COMMAND)) + b"R",
    "state of a class": push_global("torch.nn.Module") + b")\x81}" + push_text("__reduce__") + push_global("os.system") + b"sb",
    "script": push_global("__torch__.Model") + b")\x81",
    "dots": push_call("torch._utils.os.system", push_text(COMMAND)),
    "dunder": push_call("builtins.__import__", push_text("antigravity")),
}

HUGE = 2**40
FALSE_SIZES = {
    "repeated": push_tensor((HUGE,), (0,)),
    "repeated rows": push_tensor((2**20, 2**20), (0, 0)),
    "set of rows": push_call("builtins.set", push_tensor((3_000_000,), (0,))),
    "mapping of rows": push_call("collections.OrderedDict", push_tensor((3_000_000, 2), (0, 0))),
    "bytes of bytes": push_call("builtins.bytearray", push_call("builtins.bytearray", push_int(2**34))),
    "blank tensor": push_call("torch.Tensor", push_int(2**34)),
    "storage": push_tensor((HUGE,), (1,), push_storage(HUGE)),
    "shorter storage": push_tensor((4,), (1,), push_storage(4)),
    "no such storage": push_tensor((1,), (1,), push_storage(1, "7")),
    "negative": push_tensor((1,), (1,), offset=-4),
    "beyond": push_tensor((1,), (1,), offset=9),
    "many sides": push_tensor((1,) * 5000, (1,) * 5000),
    "place in memory": b"Nr\xff\xff\xff\x7f",
    "long text": b"X\xff\xff\xff\x7f",
    "long bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "bytes to be filled": b"\x96" + struct.pack("<Q", 2**35),
    "deep key": b"}" + b")" + b"\x85" * 200_000 + b"Ns",
    "value of a tensor": push_tensor((1,), (1,)) + push_int(0) + push_int(1) + b"s",
    "item of a tensor": push_tensor((1,), (1,)) + b"(" + push_tensor((1,), (1,)) + b"\x90",
    "nothing": b"",
}
