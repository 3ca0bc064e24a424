"""FOD-A from a small archive in the original's layout, against the rule in words."""

import io
import itertools
import shutil
import socket

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from anchornet_jax.data import datasets, fod_a, loading

WEATHER, LIGHT = ("Dry", "Wet"), ("Bright", "Dim", "Dark")
FRAMES = 5  # of a run
ANNOTATION = """<annotation>
  <filename>{number:06d}.jpg</filename>
  <size><width>300</width><height>300</height><depth>3</depth></size>
  {objects}
</annotation>"""
OBJECT = """<object><name>{label}</name><bndbox>
  <xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def picture(number):
    """Return a JPEG file whose grey says which frame it is."""
    file = io.BytesIO()
    Image.new("L", (300, 300), number % 256).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def runs():
    """Yield (class, weather, light) of each run in the order of the frames.

    Eighteen classes with four to six runs, and one with three, which is left out.
    """
    kinds = list(itertools.product(WEATHER, LIGHT))
    for place, label in enumerate((*fod_a.CLASSES, "Rope")):
        count = 3 if label == "Rope" else 4 + place % 3
        yield from ((label, *kind) for kind in kinds[:count])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Return a directory with FOD-A/VOC, and {frame: (run, label)}."""
    root = tmp_path_factory.mktemp("original")
    home = root / "FOD-A" / "VOC"
    for name in (fod_a.IMAGES, fod_a.ANNOTATIONS):
        (home / name).mkdir(parents=True)
    table, known = ["Image,Weather,Light"], {}
    for run, (label, weather, light) in enumerate(runs()):
        for _ in range(FRAMES):
            number = len(known)
            name, box = f"{number:06d}", (number % 200, 60, number % 200 + 30, 90)
            objects = [OBJECT.format(*box, label=label)] * (1 + (number % FRAMES == 3))
            text = ANNOTATION.format(number=number, objects="".join(objects))
            (home / fod_a.ANNOTATIONS / f"{name}.xml").write_text(text)
            (home / fod_a.IMAGES / f"{name}.jpg").write_bytes(picture(number))
            table.append(f"{name}.jpg,{weather},{light}")
            known[name] = (run, label)
    path = home / fod_a.CONDITIONS
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(table) + "\n")
    return root, known


def test_runs_are_kept_apart(original):
    """One run of each class for testing, one for calibration, the rest for training."""
    root, known = original
    parts = fod_a.split(fod_a.find(root), 2)
    seen = {
        name: {known[frame.number][0] for frame, _ in part}
        for name, part in parts.items()
    }
    assert not seen["train"] & (seen["test"] | seen["calibration"])
    assert not seen["test"] & seen["calibration"]
    assert len(seen["test"]) == len(seen["calibration"]) == 18
    assert len(set().union(*seen.values())) == sum(4 + n % 3 for n in range(18))
    for part in parts.values():
        assert {label for _, label in part} == set(fod_a.CLASSES)
        assert all(known[frame.number][1] == label for frame, label in part)


def test_frames_are_spread_over_a_run_and_hold_one_object(original):
    """Frames 0, 1, 2 and 4 hold one object; two of them, spread, are the first and third."""
    root, _ = original
    for part in fod_a.split(fod_a.find(root), 2).values():
        assert {int(frame.number) % FRAMES for frame, _ in part} == {0, 2}
    for part in fod_a.split(fod_a.find(root), 40 // 10).values():
        assert {int(frame.number) % FRAMES for frame, _ in part} == {0, 1, 2, 4}


@pytest.mark.parametrize("packed", [False, True])
def test_the_data_set(original, packed, tmp_path, monkeypatch):
    """It is made without a network, and boxes move along to what evaluation sees."""
    monkeypatch.setattr(socket, "getaddrinfo", None)
    root, known = original
    if packed:
        root = shutil.make_archive(tmp_path / "here" / "FOD-A", "zip", root)
        root = tmp_path / "here"
    source = loading.prepare(
        "fod_a/small",
        data_dir=str(tmp_path / "made"),
        manual_dir=str(root),
        image_size=100,
        resize=100,
    )
    assert source.classes == list(fod_a.CLASSES)
    assert source.examples("test") == source.examples("calibration") == 2 * 18
    for record in tfds.as_numpy(datasets.read(source.builder, "test")):
        number = int(np.asarray(Image.open(io.BytesIO(record["image"]))).mean())
        where = [
            n for n in map(int, known) if n % 256 == number and record["label"] >= 0
        ]
        left = {n % 200 for n in where}
        assert round(record["bbox"][1] * 300) in left
        np.testing.assert_allclose(record["bbox"][[0, 2]], [0.2, 0.3], rtol=1e-6)
    batch = next(loading.evaluation(source, "test", batch_size=4))
    np.testing.assert_allclose(batch["box"][..., 0], 20, rtol=1e-6)


def test_what_is_not_the_original(original, tmp_path):
    with pytest.raises(ValueError, match="holds neither folders JPEGImages"):
        fod_a.find(tmp_path)
    with pytest.raises(ValueError, match="fewer than 4 runs of Battery, .*: it is not"):
        fod_a.split(fod_a.find(original[0]), 40)


def test_the_subset_of_the_facts(tmp_path):
    """The classes are those of the subset that was made by the same rule."""
    from tests.test_boxes import SUBSET

    if not SUBSET.is_dir():
        pytest.skip("no FOD-A here")
    assert sorted(path.name for path in (SUBSET / "train").iterdir()) == list(
        fod_a.CLASSES
    )
