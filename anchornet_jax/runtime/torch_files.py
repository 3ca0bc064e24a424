"""Files of `torch.save`, read without PyTorch and without running what they hold.

There are two kinds. A zip archive has a pickle, `data.pkl`, and each storage as a file of
its own, not compressed. Before PyTorch 1.6, and in most weights that were published until
then, a stream has five pickles (a magic number, a version, about the machine, the object,
the storages' keys) and then the storages, each after its number of entries.

A pickle is a program. This reader knows the instructions and the names that tensors in
dicts and lists need, and refuses all others; a tensor is checked against its storage
before anything of its size is allocated.

    file = torch_files.read("weights.pth")
    arrays = file.arrays(file.content)  # of a state dict
"""

import collections
import io
import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from anchornet_jax.runtime import files

ZIP = b"PK\x03\x04"  # an archive's first bytes
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the stream
TYPES = {  # of storages, as `torch` and `torch.cuda` name them
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
DAMAGED = (*files.DAMAGED, AttributeError, pickle.UnpicklingError, struct.error)
# Tensors may share a storage. All together they have at most so many entries for each
# byte of the file, or a small file would fill the memory.
SHARED = 4
KEYS = (str, int, float, bool, type(None))  # of dicts; tuples hash without an end


class Tensor(NamedTuple):
    """A tensor as a file describes it, not checked; see `File.arrays`."""

    storage: object
    offset: int  # entries of the storage, as strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Storage(NamedTuple):
    type: str  # a key of `TYPES`, or one that is not known
    key: str
    entries: int
    start: int = 0  # of a view into another storage, in entries
    whole: int | None = None  # entries of that storage

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(TYPES[self.type])


class _Type(NamedTuple):
    name: str


class File(NamedTuple):
    """What a file holds.

    Attributes:
      path: its name, for messages.
      content: dicts, lists, numbers and text, with a `Tensor` for each tensor.
      storages: bytes by key.
      size: of the file, bytes.
    """

    path: str
    content: object
    storages: Mapping[str, bytes | memoryview]
    size: int

    def arrays(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return tensors by name as arrays of their own type, which cannot be written.

        Raises:
          ValueError: for a tensor that does not fit its storage; it names both.
        """
        found, entries = {}, 0
        for name, tensor in tensors.items():
            try:
                found[name] = _array(tensor, self.storages)
            except _Refused as error:
                raise ValueError(f"{self.path}: tensor {name!r} {error}") from None
            except DAMAGED as error:
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(
                    f"{self.path}: tensor {name!r} is damaged ({reason})"
                ) from None
            entries += found[name].size
            if entries > SHARED * self.size:
                raise ValueError(
                    f"{self.path}: tensor {name!r} is one of many that share what they "
                    f"hold; up to it they have {entries} entries, and the file has "
                    f"{self.size} bytes"
                )
        return found


class _Refused(Exception):
    """A file that is refused, or a tensor; with what to say after its name."""


def read(path: str | os.PathLike) -> File:
    """Read a file of `torch.save`, of either kind.

    Raises:
      ValueError: if it is damaged, of something else, or holds what is not known.
      OSError: if it cannot be opened.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        content, storages = (_archive if data[:4] == ZIP else _stream)(data)
    except _Refused as error:
        raise ValueError(f"{path} {error}") from None
    except DAMAGED as error:
        raise ValueError(
            f"{path} is damaged, or not of `torch.save` "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from None
    return File(os.fspath(path), content, storages, len(data))


def _archive(data: bytes):
    """Return the content of a zip archive, and its storages."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > len(data) or any(
        entry.compress_type != zipfile.ZIP_STORED for entry in entries
    ):
        raise _Refused(
            "is a compressed archive, or one whose files overlap; `torch.save` writes "
            "neither"
        )
    names = [entry.filename for entry in entries]
    folders = [
        name.removesuffix("/data.pkl") for name in names if name[-9:] == "/data.pkl"
    ]
    if len(folders) != 1:
        raise _Refused("is an archive of something else: it has no one `data.pkl`")
    (folder,) = folders
    if f"{folder}/byteorder" in names:
        _little_endian(archive.read(f"{folder}/byteorder") == b"little")
    unpickler = _Unpickler(io.BytesIO(archive.read(f"{folder}/data.pkl")))
    return unpickler.load(), _Records(archive, f"{folder}/data/")


class _Records(collections.abc.Mapping):
    """The storages of an archive by key, each read when it is asked for."""

    def __init__(self, archive, prefix):
        self._archive, self._prefix = archive, prefix
        self._read = {}

    def __getitem__(self, key):
        if key not in self._read:
            self._read[key] = self._archive.read(self._prefix + key)
        return self._read[key]

    def __iter__(self):
        starts = (n for n in self._archive.namelist() if n.startswith(self._prefix))
        return (name.removeprefix(self._prefix) for name in starts)

    def __len__(self):
        return sum(1 for _ in self)


def _stream(data: bytes):
    """Return the content of a stream, and its storages."""
    file = io.BytesIO(data)
    magic, version, about = (_Unpickler(file).load() for _ in range(3))
    if (magic, version) != (MAGIC, VERSION) or not isinstance(about, dict):
        raise _Refused("is damaged, or not of `torch.save` (other first words)")
    _little_endian(about.get("little_endian") is True)
    unpickler = _Unpickler(file)
    content = unpickler.load()
    keys = _Unpickler(file).load()
    rest, storages = memoryview(data)[file.tell() :], {}
    for key in keys:
        storage = unpickler.storages[key]
        entries = storage.entries if storage.whole is None else storage.whole
        known = storage.type in TYPES and entries >= 0
        if not known or rest[:8] != struct.pack("<q", entries):
            break  # where the next one begins is not known; what needs it is refused
        size = entries * storage.dtype.itemsize
        storages[key], rest = rest[8 : 8 + size], rest[8 + size :]
    return content, storages


def _little_endian(little: bool) -> None:
    if not little:
        raise _Refused("was written by a big-endian machine; convert it there")


CODES = b"".join(
    (  # the instructions of a pickle that are known
        *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK),
        *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
        *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
        *(pickle.BINFLOAT, pickle.BINSTRING, pickle.SHORT_BINSTRING),
        *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
        *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2),
        *(pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
        *(pickle.EMPTY_DICT, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE),
        *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET),
        *(pickle.LONG_BINGET, pickle.BINPERSID),
    )
)


class _Unpickler(pickle._Unpickler):
    """Knows what tensors need; `storages` are the ones that were named.

    It is the one in Python. The one in C cannot be kept from single instructions, and
    allocates what a damaged file asks for.
    """

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in CODES}  # noqa: RUF012

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages = {}

    def find_class(self, module, name):
        """Return what a name stands for, or refuse it."""
        full = f"{module}.{name}"
        if full in NAMES:
            return NAMES[full]
        if module in ("torch", "torch.cuda") and name.endswith("Storage"):
            return _Type(name)  # if it is not known, the tensor can be named
        raise _Refused(
            f"holds a Python object ({full}) beside tensors, which loading would run as "
            "code; save the `state_dict()` of a module, not the module"
        )

    def persistent_load(self, pid):
        """Return a storage."""
        kind, of, key, _, entries, *view = pid
        if kind != "storage" or not isinstance(of, _Type) or not isinstance(key, str):
            raise pickle.UnpicklingError("unknown persistent object")
        storage = _Storage(of.name, key, entries)
        if view and view[0] is not None:
            _, start, length = view[0]
            storage = _Storage(of.name, key, length, start, entries)
        self.storages.setdefault(key, storage)
        return storage

    def load_setitem(self):
        """Store one value in a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _store(self.stack[-1], (key, value))

    def load_setitems(self):
        """Store values in a dict."""
        items = self.pop_mark()
        _store(self.stack[-1], items)

    def load_build(self):
        """Drop the attributes of a dict, such as the versions of modules."""
        self.stack.pop()
        if not isinstance(self.stack[-1], collections.OrderedDict):
            raise pickle.UnpicklingError("attributes of something else than a dict")

    dispatch |= {
        ord(pickle.SETITEM): load_setitem,
        ord(pickle.SETITEMS): load_setitems,
        ord(pickle.BUILD): load_build,
    }


def _store(target, items):
    if not isinstance(target, dict):
        raise pickle.UnpicklingError("items of something else than a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in KEYS:
            raise _Refused(
                f"holds a dict with a key of type {type(key).__name__}; allowed are text "
                "and numbers"
            )
        target[key] = value


def _ordered(pairs=()):
    made = collections.OrderedDict()
    for pair in pairs:
        key, value = pair
        _store(made, (key, value))
    return made


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if type(shape) is not tuple or type(strides) is not tuple:
        raise pickle.UnpicklingError("a tensor without a shape")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, *_):
    return tensor


def _size(shape):
    if type(shape) is not tuple:
        raise pickle.UnpicklingError("a size that is no tuple")
    return shape


NAMES = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": _size,
}


def _array(tensor: Tensor, storages) -> np.ndarray:
    """Return the array of a tensor, once all about it is known to fit."""
    storage, offset, shape, strides = tensor
    if not isinstance(storage, _Storage):
        raise _Refused("has no storage")
    if storage.type not in TYPES:
        raise _Refused(f"is of a torch.{storage.type}; read are {', '.join(TYPES)}")
    start, entries, whole = storage.start, storage.entries, storage.whole
    whole = start + entries if whole is None else whole
    numbers = (offset, start, entries, whole, *shape, *strides)
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
        raise _Refused(
            f"has shape {shape}, strides {strides} and offset {offset}, which do not fit "
            "together"
        )
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
    size = math.prod(shape)
    if start + entries > whole or (size and (size > entries or last >= entries)):
        raise _Refused(
            f"has shape {shape}, strides {strides} and offset {offset}, which reach "
            f"beyond the {entries} entries of its storage, or take one twice"
        )
    if storage.key not in storages:
        raise _Refused(f"has no storage {storage.key!r} in the file, which is damaged")
    data, dtype = storages[storage.key], storage.dtype
    if len(data) < whole * dtype.itemsize:
        raise _Refused(
            f"has a storage of {whole} entries, of which the file holds "
            f"{len(data) // dtype.itemsize}; it is damaged"
        )
    if not size:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(data, dtype, entries, start * dtype.itemsize)
    steps = [step * dtype.itemsize for step in strides]
    view = np.lib.stride_tricks.as_strided
    return view(flat[offset:], shape, steps, writeable=False)
