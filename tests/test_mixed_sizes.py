"""Images of any sizes in one run: loaded, evaluated, exported and predicted as they are."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from anchornet_jax import models
from anchornet_jax.data import loading, photos
from anchornet_jax.inference import export, results
from anchornet_jax.programs import evaluate, page, pipeline
from anchornet_jax.runtime import networks
from configs import common
from configs import predict as predict_config
from tests.tiny import Tiny, TinyAnchorNet, drawn

CLASSES = ["a", "b", "c"]
VIEW = 111
SIDES = ((130, 300), (260, 120), (95, 97), (310, 305))  # px, height and width
BOX = [10, 20, 60, 50]  # (left, top, right, bottom), as boxes.json has them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of images of four sizes, with boxes."""
    root, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    sides, boxes = itertools.cycle(SIDES), {}
    for split, count in {"train": 1, "val": 2, "test": 2}.items():
        for name, number in itertools.product(CLASSES, range(count)):
            path = root / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (*next(sides), 3), np.uint8)
            Image.fromarray(pixels).save(path)
            boxes[str(path.relative_to(root))] = BOX
    (root / "boxes.json").write_text(json.dumps(boxes))
    return root


def prepare(folder, **changes):
    return loading.prepare(f"folder:{folder}", **{"resize": 0, **changes})


def test_loaded_as_they_are(folder):
    """Every image once, to the pixel, with its box; rows that only fill up are black."""
    source = prepare(folder, image_size=0)
    (one, two) = loading.evaluation(source, "test", batch_size=4)
    assert one["image"].shape == (4, 1) and one["image"].dtype == object
    assert (
        two["mask"].sum() == 2
        and [i.shape for i in two["image"][2:, 0]] == [(1, 1, 3)] * 2
    )
    found = [*one["image"][:, 0], *two["image"][:2, 0]]
    paths = [p for p in (folder / "test").rglob("*.png")]
    wanted = {np.asarray(Image.open(path)).tobytes() for path in paths}
    assert {image.tobytes() for image in found} == wanted and len(wanted) == 6
    assert {image.shape[:2] for image in found} <= set(SIDES)
    left, top, right, bottom = BOX
    np.testing.assert_allclose(
        one["box"][:, 0], [[top, left, bottom, right]] * 4, atol=1e-4
    )
    first = loading.first_images(source, "test", 3, batch_size=4)
    assert [i.shape for i in first] == [i.shape for i in found[:3]]


def test_unreadable_images_are_passed_over(folder, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / split / "a" / "0.png")
        (tmp_path / split / "a" / "1.png").write_text("no image")
    source = prepare(tmp_path, image_size=0, bad_images="skip")
    (batch,) = loading.evaluation(source, "val", batch_size=4)
    assert batch["mask"].sum() == 1
    (row,) = np.flatnonzero(batch["mask"])
    assert batch["image"][row, 0].shape == (30, 40, 3)


def test_training_needs_squares(folder):
    with pytest.raises(ValueError, match="`image_size` is 0.*`whole`"):
        next(
            loading.training(
                prepare(folder, image_size=0), "train", batch_size=4, seed=0
            )
        )


def test_whole_images_in_squares(folder):
    """Nothing is cut off: the corners of the image are those of the square."""
    source = prepare(folder, image_size=64, whole=True, augment="none", flip=False)
    batch = next(loading.evaluation(source, "test", batch_size=4))
    assert batch["image"].shape == (4, 1, 64, 64, 3)
    as_they_are = next(
        loading.evaluation(prepare(folder, image_size=0), "test", batch_size=4)
    )
    for square, image, box in zip(
        *(part[:, 0] for part in (batch["image"], as_they_are["image"], batch["box"]))
    ):
        height, width = image.shape[:2]
        left, top, right, bottom = BOX
        wanted = np.array([top / height, left / width, bottom / height, right / width])
        np.testing.assert_allclose(box, 64 * wanted, rtol=1e-5)
        assert abs(square.mean() - image.mean()) < 2
        shrunk = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(shrunk, int) - square)
        assert difference.max() <= 3


def test_photos_in_squares(folder):
    path = folder / "test" / "a" / "0.png"
    whole = photos.read(path, image_size=64, resize=200, whole=True)
    shrunk = Image.open(path).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(whole, np.asarray(shrunk))


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    """Return a directory of networks, and beside them their evaluation and export."""
    root = tmp_path_factory.mktemp("large")
    kinds = {"localizer": ("tiny_anchornet", VIEW), "glance": ("tiny", 95)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", (Tiny, {}))
        patch.setitem(models.MODELS, "tiny_anchornet", (TinyAnchorNet, {}))
        for seed, (role, (name, size)) in enumerate(kinds.items()):
            description = {"name": name, "num_classes": 3}
            variables = drawn(models.create(**description), size, seed)
            networks.save(
                root / role / "network", description, variables, classes=CLASSES
            )
        config = common.on("folder")
        config.data.update(name=f"folder:{folder}", image_size=0, resize=0)
        config.timing.images, config.batch_size, config.budgets = 0, 4, 2
        config.train_split, config.calibration_split = "train", "val"
        config.test_split = "test"
        members = {role: str(root / role / "network") for role in kinds}
        members["patch"] = members["glance"]
        large = {"inputs": 2, "iou_threshold": 0.5, "fuse": "logits"}
        large |= {"view": VIEW, "views": 2, "zooms": 1}
        config.method = common.method("large", members, localizer="network", **large)
        del members["localizer"]
        config.references.random_patches = common.method(
            "large", members, localizer="random", **large
        )
        evaluate.evaluate(config, root / "evaluate")
        config.evaluation = str(root / "evaluate")
        export.export(config, root / "export")
        yield root


def test_evaluated_as_they_are(evaluated):
    found = results.read(evaluated / "evaluate")
    assert found.exits == ["glance", "look 1", "look 2", "patch"]
    assert found.images == 6 and 0 <= found.box_coverage <= 1
    costs = [point.cost for point in found.references["random patches"].anytime]
    assert costs[0] == costs[1] == costs[2] < costs[3]  # to look at random is free
    shown = np.load(evaluated / "evaluate" / "examples.npz")
    assert shown["image"].shape[1:] == (310, 305, 3)  # the largest of them
    assert len(shown["image"]) == len(shown["boxes"]) == 6


def test_predicted_as_they_are(evaluated, folder, tmp_path):
    """Large photographs are not shrunk, neither by `predict` nor by the page."""
    config = predict_config.get_config()
    config.export, config.images = str(evaluated / "export"), str(folder / "test")
    config.pictures = False
    summary = pipeline.run(config, tmp_path)
    assert summary["images"] == 6
    shown = page.Page(export.load(evaluated / "export"))
    image = shown.read(folder / "test" / "a" / "0.png")
    assert image.shape[:2] in SIDES
    text, *_ = shown.show(image, max(shown.budgets))
    assert "sure after" in text


def test_a_method_that_needs_squares(evaluated, folder):
    made = common.static(str(evaluated / "glance" / "network"))
    with pytest.raises(ValueError, match="`image_size` is 0.*1 or more"):
        export.assemble(made.to_dict(), 0)
