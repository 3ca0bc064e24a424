"""Every reader answers whatever it is given: with a result, or with a ValueError.

`FUZZ=1000 python -m pytest tests/test_fuzz.py` gives each reader more damaged files.
"""

import io
import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from anchornet_jax.data import photos
from anchornet_jax.figures import examples
from anchornet_jax.inference import exit_table, results
from anchornet_jax.runtime import checkpoint, files, torch_import, workdir
from tests import fake_results, torch_writer

TRIES = int(os.environ.get("FUZZ", "40"))  # of each reader
VARIABLES = {"params": {"conv": {"kernel": np.ones((3, 3, 1, 2), np.float32)}}}


def picture(format):
    """Return the bytes of a small photo."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def table(path):
    """Return the bytes of an exit table."""
    rng = np.random.default_rng(0)
    made = exit_table.ExitTable(
        rng.random((9, 2)), [1.0, 2.0], rng.random((9, 2)) > 0.5
    )
    made.save(path)
    return path.read_bytes()


def summary(directory):
    fake_results.write(directory, fake_results.summary(), fake_results.arrays())
    return (directory / "summary.json").read_bytes()


def arrays(directory):
    fake_results.write(directory, fake_results.summary(), fake_results.arrays())
    return (directory / "examples.npz").read_bytes()


def weights(directory, kind):
    state = {"conv.weight": np.ones((3, 2), np.float32), "fc.bias": np.zeros(3)}
    torch_writer.write(directory / "a.pth", {"epoch": 3, "state_dict": state}, kind)
    return (directory / "a.pth").read_bytes()


def config(directory):
    workdir.claim(directory / "run", {"epochs": 1.0})
    return (directory / "run" / "config.json").read_bytes()


def image_reader(name):
    return lambda directory: photos.read(directory / name, image_size=16, resize=20)


READERS = {  # file: (its bytes, from an empty directory; who reads it)
    **{
        f"photo.{kind}": (
            lambda directory, kind=kind: picture(kind),
            image_reader(f"photo.{kind}"),
        )
        for kind in ("jpeg", "png", "webp")
    },
    "table.npz": (
        lambda directory: table(directory / "table.npz"),
        lambda directory: exit_table.ExitTable.load(directory / "table.npz"),
    ),
    "summary.json": (summary, results.read),
    "examples.npz": (arrays, lambda directory: examples.read(directory, 3, 3)),
    "config.json": (config, workdir.read_config),
    **{
        f"{kind}.pth": (
            lambda directory, kind=kind: weights(directory, kind),
            lambda directory, kind=kind: torch_import.read(directory / f"{kind}.pth"),
        )
        for kind in torch_writer.KINDS
    },
}


def damaged(content: bytes, seed: int) -> bytes:
    """Flip, cut, repeat or fill in a few places."""
    rng = np.random.default_rng(seed)
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(max(1, len(data))))
        kind = rng.integers(5)
        if kind == 0 and data:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = data[max(0, place - 50) : place]
        elif kind == 3:
            data[place : place + 8] = rng.bytes(8)
        else:
            data[place : place + 4] = b"\xff\xff\xff\x7f"  # a large number
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    make, read = READERS[name]
    (tmp_path / "made").mkdir()
    content = make(tmp_path / "made")
    (tmp_path / name).write_bytes(content)
    for seed in range(TRIES):
        (tmp_path / name).write_bytes(damaged(content, seed))
        try:
            read(tmp_path)
        except ValueError as error:
            assert "\n" not in str(error).strip()


def test_flipped_bits_of_a_network(tmp_path):
    """What changes what is loaded is noticed, in every file of a network."""
    metadata = {"classes": ["cat", "dog"], "step": 5}
    checkpoint.save_variables(tmp_path / "whole", VARIABLES, metadata)
    rng = np.random.default_rng(0)
    paths = [p for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    for number in range(TRIES):
        path = paths[number % len(paths)]
        shutil.copytree(tmp_path / "whole", tmp_path / "other")
        other = tmp_path / "other" / path.relative_to(tmp_path / "whole")
        data = bytearray(path.read_bytes())
        if data:
            place = int(rng.integers(8 * len(data)))
            data[place // 8] ^= 1 << place % 8
            other.write_bytes(data)
        try:
            variables, about = checkpoint.load_variables(tmp_path / "other")
        except ValueError:
            pass
        else:  # white space, or what Orbax does not need
            jax.tree.map(np.testing.assert_array_equal, variables, VARIABLES)
            assert about == metadata
        shutil.rmtree(tmp_path / "other")


def test_flipped_bits_of_a_checkpoint(tmp_path):
    """Another state never becomes the best one without a word."""
    state = {"step": np.ones(1)}
    with checkpoint.Checkpoints(tmp_path / "whole", keep=3) as checkpoints:
        for step, metric in ((1, 0.2), (2, 0.9), (3, 0.5)):
            checkpoints.save(step, {"step": np.full(1, float(step))}, metric=metric)
    about = tmp_path / "whole" / "2" / "metrics" / "metrics"
    content = about.read_bytes()
    places = range(0, 8 * len(content), max(1, 8 * len(content) // TRIES))
    for place in places:
        data = bytearray(content)
        data[place // 8] ^= 1 << place % 8
        shutil.copytree(tmp_path / "whole", tmp_path / "other")
        (tmp_path / "other" / "2" / "metrics" / "metrics").write_bytes(data)
        with checkpoint.Checkpoints(tmp_path / "other", keep=3) as checkpoints:
            step, _ = checkpoints.restore_best(state)
        aside = (tmp_path / "other" / "2.unreadable").exists()
        assert step == 2 or aside
        shutil.rmtree(tmp_path / "other")


@pytest.mark.parametrize("value", [[], 5, "x", None, {"sha256": 5}, {"sha256": {}}])
def test_other_json(value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="config.json "):
        files.read_sealed(tmp_path / "config.json")
