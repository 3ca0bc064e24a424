"""A writer of PyTorch's files in both kinds, pickle instruction by instruction.

Good files as PyTorch writes them, and files that it would never write.
"""

import collections
import io
import pickle
import struct
import zipfile
from typing import NamedTuple

import numpy as np

KINDS = ("archive", "stream")
TYPES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global(NamedTuple):
    """A name that is imported."""

    module: str
    name: str


class Call(NamedTuple):
    """A call of one."""

    function: Global
    arguments: tuple


class Storage(NamedTuple):
    """A storage by key; `data` is written to the file."""

    key: str
    data: np.ndarray
    entries: int | None = None  # that it says it has
    type: str | None = None
    view: tuple | None = None


class Raw(NamedTuple):
    """Instructions as they are."""

    code: bytes


def tensor(storage, offset=0, shape=None, strides=None):
    """Return a tensor, by default all of its storage in one row."""
    shape = storage.data.shape if shape is None else shape
    strides = (1,) * len(shape) if strides is None else strides
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(rebuild, (storage, offset, shape, strides, False, hooks))


def parameter(of):
    """Return a parameter made of a tensor."""
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(Global("torch._utils", "_rebuild_parameter"), (of, True, hooks))


def write(path, content, kind="archive", **changes) -> None:
    """Write content: dicts, lists, tuples, numbers, text, arrays and what is above."""
    path.write_bytes((_archive if kind == "archive" else _stream)(content, **changes))


def _archive(content, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    storages, file = {}, io.BytesIO()
    code = program(content, storages)
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("weights/data.pkl", code)
        archive.writestr("weights/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"weights/data/{key}", data.tobytes())
        archive.writestr("weights/version", b"3\n")
    return file.getvalue()


def _stream(content, magic=0x1950A86A20F9469CFC6C, little=True):
    storages = {}
    code = program(content, storages)
    about = {"protocol_version": 1001, "little_endian": little}
    parts = [program(magic), program(1001), program(about), code, program([*storages])]
    for data in storages.values():
        parts += [struct.pack("<q", data.size), data.tobytes()]
    return b"".join(parts)


def program(content, storages=None) -> bytes:
    """Return a pickle; the storages' data go to the dict."""
    storages = {} if storages is None else storages
    return pickle.PROTO + b"\x02" + _code(content, storages) + pickle.STOP


def _text(value):
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _whole(value):
    if 0 <= value < 256:
        return pickle.BININT1 + bytes([value])
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def _code(value, storages) -> bytes:
    inner = lambda parts: b"".join(_code(part, storages) for part in parts)
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Global):
        return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return inner(value) + pickle.REDUCE
    if isinstance(value, Storage):
        storages.setdefault(value.key, value.data)
        kind = value.type or TYPES[value.data.dtype.name]
        entries = value.data.size if value.entries is None else value.entries
        pid = ("storage", Global("torch", kind), value.key, "cpu", entries)
        return _code((*pid, value.view), storages) + pickle.BINPERSID
    if isinstance(value, np.ndarray):
        storage = Storage(str(len(storages)), value)
        strides = tuple(step // value.itemsize for step in value.strides)
        return _code(tensor(storage, 0, value.shape, strides), storages)
    if isinstance(value, collections.OrderedDict):
        made = _code(Call(Global("collections", "OrderedDict"), ()), storages)
        versions = _code({"_metadata": {"": {"version": 1}}}, storages)
        items = pickle.MARK + inner(part for item in value.items() for part in item)
        return made + items + pickle.SETITEMS + versions + pickle.BUILD
    if isinstance(value, dict):
        items = pickle.MARK + inner(part for item in value.items() for part in item)
        return pickle.EMPTY_DICT + items + pickle.SETITEMS
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + inner(value) + pickle.APPENDS
    if isinstance(value, tuple):
        return pickle.MARK + inner(value) + pickle.TUPLE
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    simple = {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}
    if value is None or isinstance(value, bool):
        return simple[value]
    return _whole(value)
