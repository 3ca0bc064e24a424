"""Boxes of a folder's images: read, moved along, scored, and otherwise left alone."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from anchornet_jax.data import loading
from anchornet_jax.programs import evaluate
from tests.test_data import flat

SUBSET = pathlib.Path(__file__).parent.parent.parent / "shared/data/fod_a"
PIXELS = {"image_size": 50, "resize": 50}


def folder(root, boxes):
    """Return the name of a data set of 100 x 200 px, with what `boxes.json` holds."""
    for split, label, number in (
        ("train", "ant", 0),
        ("train", "bee", 1),
        ("val", "ant", 2),
        ("val", "bee", 3),
    ):
        path = root / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (200, 100), number).convert("RGB").save(path)
    text = boxes if isinstance(boxes, str) else json.dumps(boxes)
    (root / "boxes.json").write_text(text)
    return f"folder:{root}"


def test_boxes_move_along(tmp_path):
    """To the half of the size, and to the middle square; an unknown one is all -1."""
    name = folder(
        tmp_path, {"val/bee/3.png": [100, 20, 140, 40], "gone.png": [0, 0, 1, 1]}
    )
    source = loading.prepare(name, **PIXELS)
    batches = list(loading.evaluation(source, "val", batch_size=4))
    label, box = flat(batches, "label"), flat(batches, "box")
    mask = flat(batches, "mask")
    np.testing.assert_allclose(box[mask & (label == 1)], [[10, 25, 20, 45]])
    np.testing.assert_allclose(box[mask & (label == 0)], [[-1, -1, -1, -1]])


def test_training_sees_no_box(tmp_path):
    source = loading.prepare(
        folder(tmp_path, {"train/ant/0.png": [0, 0, 9, 9]}), **PIXELS
    )
    batch = next(loading.training(source, "train+val", batch_size=4, seed=0))
    assert set(batch) == {"image", "label"}


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ("{", "boxes.json cannot be read"),
        ([], "boxes.json holds no object"),
        ({"a.png": [0, 0, 0, 5]}, r"has \[0, 0, 0, 5\] for a.png; allowed is \[xmin,"),
        ({"a.png": [0, 0, 5]}, "for a.png; allowed is"),
        ({"a.png": [0, -1, 5, 5]}, "for a.png; allowed is"),
        ({"a.png": ["0", 1, 5, 5]}, "for a.png; allowed is"),
        ('{"a.png": [0, 0, 5, NaN]}', "for a.png; allowed is"),
    ],
)
def test_what_is_no_box(boxes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loading.prepare(folder(tmp_path, boxes), **PIXELS)


def test_coverage_of_known_boxes():
    """Half of the first box is inside, all of the second; three do not count."""
    region = np.array([0, 0, 10, 10])
    boxes = [[5, 0, 15, 10], [2, 2, 4, 4], [-1] * 4, [3, 3, 3, 9], [-1] * 4]
    found = {
        "box": np.array(boxes, float),
        "boxes": np.stack([region * 0, region])[None].repeat(5, 0),
    }
    assert evaluate._box_coverage(found) == pytest.approx(0.75)
    # What is seen whole, or is nothing, is not chosen: the third is the first choice.
    whole, nothing = np.array([0, 0, 40, 40]), np.full(4, -1)
    for second in (whole, nothing):
        found["boxes"] = np.stack([whole, second, region])[None].repeat(5, 0)
        assert evaluate._box_coverage(found) == pytest.approx(0.75)
    found["box"][:] = -1
    assert evaluate._box_coverage(found) is None


def test_real_photographs():
    """FOD-A as it lies there: half of the boxes are narrower than a fifth."""
    if not SUBSET.is_dir():
        pytest.skip("no FOD-A here")
    source = loading.prepare(f"folder:{SUBSET}", image_size=224, resize=224)
    batches = list(loading.evaluation(source, "test[:40]", batch_size=40))
    box = flat(batches, "box")
    assert (box >= 0).all() and (box <= 224).all()
    assert np.median((box[:, 2:] - box[:, :2]) / 224) < 0.4
