"""PyTorch's files without PyTorch: the same numbers, or a refusal; never a program run."""

import collections
import io
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax.runtime import torch_files, torch_import
from tests import torch_writer
from tests.torch_writer import Call, Global, Raw, Storage, tensor

kinds = pytest.mark.parametrize("kind", torch_writer.KINDS)


def arrays(path, content, kind, **changes):
    """Write a state dict and read it."""
    torch_writer.write(path, content, kind, **changes)
    file = torch_files.read(path)
    return file.arrays(file.content)


@pytest.fixture
def path(tmp_path):
    """Return where a file will be."""
    return tmp_path / "a.pth"


@kinds
@pytest.mark.parametrize("name", torch_writer.TYPES)
def test_types(kind, name, path):
    dtype = np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
    wanted = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    found = arrays(path, {"a": wanted, "b": wanted[0, :1].reshape(())}, kind)
    assert found["a"].dtype == dtype and found["b"].shape == ()
    np.testing.assert_array_equal(found["a"], wanted)
    floats = torch_import.read(path)
    np.testing.assert_array_equal(floats["a"], wanted.astype(np.float32))


@kinds
def test_values_and_layouts(kind, path):
    """Steps, offsets, transposed and shared ones, parameters, sizes and empty ones."""
    data = np.random.default_rng(0).normal(size=24).astype(np.float32)
    storage = Storage("7", data)
    content = collections.OrderedDict(
        whole=tensor(storage, shape=(2, 3, 4), strides=(12, 4, 1)),
        turned=tensor(storage, 2, (3, 4), (1, 6)),
        last=torch_writer.parameter(tensor(storage, 23, (1,), (5,))),
        empty=tensor(storage, 24, (0, 3), (3, 1)),
    )
    found = arrays(path, content, kind)
    np.testing.assert_array_equal(found["whole"], data.reshape(2, 3, 4))
    turned = [[data[2 + i + 6 * j] for j in range(4)] for i in range(3)]
    turned[2][3] = data[22]
    np.testing.assert_array_equal(found["turned"], turned)
    np.testing.assert_array_equal(found["last"], data[23:])
    assert found["empty"].shape == (0, 3)


def test_view_of_a_storage_in_a_stream(path):
    """PyTorch before 0.4 wrote storages that are parts of others."""
    data = np.arange(10, dtype=np.float32)
    part = Storage("1", data, view=("2", 4, 3))
    content = {"part": tensor(part, 1, (2,)), "all": tensor(Storage("1", data))}
    found = arrays(path, content, "stream")
    assert found["part"].tolist() == [5, 6] and found["all"].tolist() == [*range(10)]


@kinds
def test_what_stands_beside(kind, path):
    beside = {
        "epoch": 3,
        "big": 2**40,
        "acc": 71.5,
        "args": ["a", None, True, (1, 2)],
        "optimizer": {"state": {0: {"momentum_buffer": np.zeros(2, np.float32)}}},
        "size": Call(Global("torch", "Size"), ((3, 4),)),
    }
    state = {"module.fc.bias": np.ones(3, np.float32)}
    torch_writer.write(path, beside | {"state_dict": state}, kind)
    content = torch_files.read(path).content
    assert content["size"] == (3, 4) and content["args"] == ["a", None, True, (1, 2)]
    assert (content["epoch"], content["big"], content["acc"]) == (3, 2**40, 71.5)
    found = torch_import.read(path)
    assert {name: x.tolist() for name, x in found.items()} == {"fc.bias": [1, 1, 1]}


class Command:
    """What runs a command when a common reader opens it."""

    def __init__(self, target):
        self._target = target

    def __reduce__(self):
        return os.system, (f"touch {self._target}",)


@kinds
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_programs_are_not_run(kind, protocol, path, tmp_path):
    target = tmp_path / "ran"
    code = pickle.dumps(Command(target), protocol)
    start = 2 if protocol > 1 else 0  # after PROTO and its number
    torch_writer.write(path, {"a": Raw(code[start:-1])}, kind)
    with pytest.raises(ValueError, match=r"a\.pth (holds .*system|is damaged)"):
        torch_import.read(path)
    assert not target.exists()


@kinds
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("os", "system"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("numpy.core.multiarray", "scalar"),
        ("__torch__", "Net"),
        ("collections", "defaultdict"),
    ],
)
def test_other_names_are_refused(kind, module, name, path):
    torch_writer.write(path, {"a": Call(Global(module, name), ("1",))}, kind)
    with pytest.raises(ValueError, match=rf"a\.pth holds .*\({module}\.{name}\) bes"):
        torch_files.read(path)


@kinds
@pytest.mark.parametrize(
    "code",
    [
        b"(S'true'\nios\nsystem\n",  # INST
        b"(cos\nsystem\nX\x04\x00\x00\x00trueo",  # OBJ
        b"ccollections\nOrderedDict\n)\x81",  # NEWOBJ
        b"\x82\x01",  # EXT1
        b"\x8f(K\x01\x90",  # EMPTY_SET, ADDITEMS
        b"P1\n",  # PERSID
        b"ctorch\nFloatStorage\n}X\x04\x00\x00\x00nameK\x01sb",  # BUILD of a type
        b"ctorch._utils\n_rebuild_tensor_v2\n}b",  # BUILD of a function
        b"]}X\x01\x00\x00\x00aK\x01sb",  # BUILD of a list
    ],
)
def test_other_instructions_are_refused(kind, code, path):
    torch_writer.write(path, {"a": Raw(code)}, kind)
    with pytest.raises(ValueError, match=r"a\.pth (holds|is damaged)"):
        torch_files.read(path)


def test_large_numbers_in_a_pickle_take_no_memory(path):
    """The common reader makes room for as many objects as LONG_BINPUT says."""
    for code in (b"Nr\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 7 + b"\x0f"):
        torch_writer.write(path, {"a": Raw(code)})
        try:
            torch_files.read(path)
        except ValueError as error:
            assert "a.pth" in str(error)


DATA = np.arange(6, dtype=np.float32)


@kinds
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tensor(Storage("0", DATA, entries=60)), "storage"),
        (tensor(Storage("0", DATA), 1), "reach beyond the 6 entries"),
        (tensor(Storage("0", DATA), 2**70), "reach beyond"),
        (tensor(Storage("0", DATA), -1, (2,)), "do not fit"),
        (tensor(Storage("0", DATA), 0, (2, 3), (4, 1)), "reach beyond"),
        (tensor(Storage("0", DATA), 0, (2, 2), (-1, 1)), "do not fit"),
        (tensor(Storage("0", DATA), 0, (-2, -2), (1, 1)), "do not fit"),
        (tensor(Storage("0", DATA), 0, (2, 2), (1,)), "do not fit"),
        (tensor(Storage("0", DATA), 0, (2.0,), (1,)), "do not fit|damaged"),
        (tensor(Storage("0", DATA), 0, ("a",), (1,)), "do not fit|damaged"),
        (tensor(Storage("0", DATA), 0, (2**40,), (0,)), "or take one twice"),
        (tensor(Storage("0", DATA), 0, (0, 2**70), (1, 1)), "damaged"),
        (tensor(Storage("0", DATA), 0, (1,) * 70, (1,) * 70), "damaged"),
        (tensor(Storage("0", DATA, type="ComplexFloatStorage")), "ComplexFloatStorage"),
        (
            tensor(Storage("0", DATA, type="QInt8Storage")),
            "torch.QInt8Storage; read are",
        ),
        (tensor(Storage("0", DATA, entries="6")), "storage|damaged"),
        (tensor("0", 0, (1,)), "has no storage"),
        (tensor(Storage("0", DATA), 0, 6, (1,)), "without a shape"),
    ],
)
def test_tensors_that_do_not_fit(kind, wrong, message, path):
    torch_writer.write(path, {"fine": DATA[:0], "fc.bias": wrong}, kind)
    with pytest.raises(ValueError, match=r"a\.pth") as error:
        torch_import.read(path)
    text = str(error.value)
    unread = "is damaged, or not of" in text  # before there is a tensor to name
    assert "'fc.bias'" in text or unread, text
    assert any(part in text for part in message.split("|")), text


def test_missing_storage(path):
    """Cut the archive's record off, or name another one."""
    data = Storage("gone", DATA)
    torch_writer.write(path, {"a": DATA, "fc.bias": tensor(data)})
    kept = io.BytesIO()
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(kept, "w") as part:
        for name in whole.namelist():
            if not name.endswith("gone"):
                part.writestr(name, whole.read(name))
    path.write_bytes(kept.getvalue())
    with pytest.raises(ValueError, match=r"'fc.bias' has no storage 'gone'"):
        torch_import.read(path)


@kinds
def test_many_that_share_a_storage(kind, path):
    """Each fits; together they would fill the memory."""
    storage = Storage("0", np.zeros(5000, np.float16))
    content = {str(n): tensor(storage) for n in range(100)}
    with pytest.raises(ValueError, match=r"a\.pth: tensor '\d+' is one of many"):
        arrays(path, content, kind)
    few = {str(n): tensor(storage) for n in range(4)}
    assert len(arrays(path, few, kind)) == 4


@kinds
@pytest.mark.parametrize("key", [5, None, (1, 2), Raw(b"\x85" * 3 + b")")])
def test_keys_that_are_no_text(kind, key, path):
    torch_writer.write(path, {key: DATA}, kind)
    with pytest.raises(
        ValueError, match=r"a\.pth (is no state dict|holds a dict|is dam)"
    ):
        torch_import.read(path)


def test_keys_of_a_deep_tuple(path):
    """Their hash would overflow the interpreter's stack."""
    key = Raw(pickle.EMPTY_TUPLE + 100_000 * pickle.TUPLE1)
    torch_writer.write(path, {"a": Raw(b"}" + key.code + b"Ns")})
    with pytest.raises(ValueError, match="a key of type tuple"):
        torch_files.read(path)


@kinds
def test_cut_off(kind, path):
    """At every place, in both kinds: refused, never read as something else."""
    torch_writer.write(path, {"conv.weight": DATA, "fc.bias": DATA[:3]}, kind)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"a\.pth"):
            torch_import.read(path)


def test_compressed_archives(path):
    """A thousandth of their content on disk: what a bomb is made of."""
    zeros = {"a": np.zeros(100_000, np.float32)}
    torch_writer.write(path, zeros, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2000
    with pytest.raises(ValueError, match=r"a\.pth is a compressed archive"):
        torch_files.read(path)


def test_archives_whose_files_overlap(path):
    """Every entry of the directory points to the same bytes."""
    torch_writer.write(path, {"a": np.zeros(5000, np.float32)})
    with zipfile.ZipFile(path, "a") as archive:
        big = archive.getinfo("weights/data/0")
        for n in range(1, 10):
            other = zipfile.ZipInfo(f"weights/data/{n}")
            for key in ("CRC", "compress_size", "file_size", "header_offset"):
                setattr(other, key, getattr(big, key))
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
        archive._didModify = True
    with pytest.raises(ValueError, match="whose files overlap"):
        torch_files.read(path)


def test_other_archives(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match="archive of something else"):
        torch_files.read(path)


def test_other_machines_and_programs(path):
    torch_writer.write(path, {"a": DATA}, "stream", little=False)
    with pytest.raises(ValueError, match=r"a\.pth was written by a big-endian machine"):
        torch_files.read(path)
    torch_writer.write(path, {"a": DATA}, byteorder=b"big")
    with pytest.raises(ValueError, match=r"a\.pth was written by a big-endian machine"):
        torch_files.read(path)
    torch_writer.write(path, {"a": DATA}, "stream", magic=5)
    with pytest.raises(ValueError, match=r"a\.pth is damaged, or not of `torch.save`"):
        torch_files.read(path)


@pytest.mark.parametrize("archive", [True, False])
def test_equals_torch(archive, path):
    """What PyTorch writes is read alike, and what the writer here writes it reads."""
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = collections.OrderedDict(
        base=base,
        turned=base.transpose(0, 2),
        part=base[1, 1:, ::2],
        half=base.half(),
        brain=base.bfloat16(),
        double=base.double(),
        count=torch.tensor(5),
        truth=base > 3,
        parameter=torch.nn.Parameter(base[0]),
        empty=torch.zeros(0, 3),
    )
    state |= torch.nn.BatchNorm2d(3).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    file = torch_files.read(path)
    found = file.arrays(file.content)
    assert found.keys() == state.keys()
    for name, x in state.items():
        assert found[name].shape == x.shape
        wanted = x.detach().float().numpy()
        np.testing.assert_array_equal(found[name].astype(np.float32), wanted)
    kind = torch_writer.KINDS[not archive]
    torch_writer.write(path, {"a": np.asarray(base), "b": np.asarray(base).T}, kind)
    theirs = torch.load(path, weights_only=True)
    np.testing.assert_array_equal(theirs["b"], np.asarray(base).T)
