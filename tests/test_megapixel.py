"""Megapixel MNIST: every number of the two recipes, and where the digits come from."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from anchornet_jax.data import datasets, loading, megapixel

CONFIGS = {config.name: config for config in megapixel.MegapixelMnist.BUILDER_CONFIGS}


def flat(label):
    """Return digits whose pixels all have the value of their place, from 1 on."""
    return megapixel.Digits(
        np.asarray(label), lambda place: np.full((28, 28), place + 1, np.uint8)
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("drawn")
    return datasets.find("megapixel_mnist/small", data_dir=str(directory))


def examples(builder, split):
    return list(tfds.as_numpy(builder.as_dataset(split=split)))


@pytest.mark.parametrize(
    ("name", "side", "noise", "noise_on_top"),
    [("ats", 1500, 50, True), ("ips", 1500, 50, False), ("ats_easy", 500, 0, True)],
)
def test_recipes(name, side, noise, noise_on_top):
    """Counts, sides and noise as in both scripts' defaults, and the easy variant's."""
    config = CONFIGS[name]
    assert (config.train, config.test) == (5000, 1000)
    assert (config.side, config.noise) == (side, noise)
    assert config.noise_on_top == noise_on_top
    assert tfds.builder("megapixel_mnist").builder_config == CONFIGS["ats"]


def test_majority():
    """Three digits of the class and two of others, all equally likely, with repeats."""
    labels, rng = np.arange(40) % 10, np.random.default_rng(0)
    targets, repeats = [], 0
    for _ in range(500):
        target, places = megapixel.choose(rng, labels)
        assert (labels[places[:3]] == target).all()
        assert (labels[places[3:]] != target).all()
        targets.append(target)
        repeats += len(set(places.tolist())) < 5
    counts = np.bincount(targets, minlength=10)
    assert len(counts) == 10 and counts.min() > 25  # 50 each; 25 is 3.7 deviations off
    assert 0 < repeats < 500


def test_digits_do_not_overlap():
    rng, seen = np.random.default_rng(0), []
    for _ in range(100):
        corners = megapixel.scatter(rng, 160)
        assert corners.shape == (5, 2)
        seen.append(corners)
        apart = np.abs(corners[:, None] - corners[None]).max(-1)
        assert (apart[np.triu_indices(5, 1)] >= 28).all()
    assert np.min(seen) == 0 and np.max(seen) == 160 - 28  # up to the canvas' rim


def test_scribbles():
    """Two lines of 80 to 100 % brightness; the steepest has a slope of tan(pi / 2.5)."""
    noise = megapixel.scribbles(np.random.default_rng(0), 200)
    assert noise.shape == (200, 28, 28) and noise.dtype == np.uint8
    ink = noise[noise > 0]
    assert ink.min() >= int(0.8 * 255) and ink.max() <= 255 and np.ptp(ink) > 45
    assert (noise.reshape(200, -1) > 0).sum(1).max() <= 2 * 56
    start = (noise[:, 0, 0] > 0) | (noise[:, 0, -1] > 0)
    assert start.all()  # every line begins in an upper corner
    right = (noise[:, 0, -1] > 0).mean()
    # A second line is mirrored by one of two draws of .33; others end there by chance.
    assert abs(right - 2 * 0.33 * 0.67) < 0.12


@pytest.mark.parametrize("on_top", [True, False])
def test_order_of_painting(on_top):
    """Noise covers digits in one recipe, digits cover noise in the other."""
    noise = np.full((400, 28, 28), 255, np.uint8)  # covers nearly all inside the rim
    image, classes, corners = megapixel.draw(
        np.random.default_rng(1),
        flat(np.arange(20) % 10),
        noise,
        side=160,
        noise_on_top=on_top,
    )
    shown = np.array([image[t + 14, left + 14] for t, left in corners])
    assert (shown < 255).all() != on_top
    assert (classes[:3] == classes[0]).all()


def test_noise_stays_inside():
    """Places from 28 to W - 28 px, so the last pattern ends at the rim."""
    noise = np.full((3000, 28, 28), 255, np.uint8)
    rng = np.random.default_rng(0)
    image, *_ = megapixel.draw(
        rng, flat(np.arange(20) % 10), noise, side=100, noise_on_top=True
    )
    rows, columns = np.nonzero(image == 255)
    for found in (rows, columns):
        assert (found.min(), found.max()) == (28, 71 + 27)


def test_tasks():
    classes = np.array([3, 3, 3, 8, 0])
    corners = np.array([[50, 0], [40, 9], [60, 0], [70, 70], [10, 99]])
    found = megapixel.tasks(classes, corners)
    assert (found["label"], found["max"], found["top"]) == (3, 8, 0)
    assert np.flatnonzero(found["multi"]).tolist() == [0, 3, 8]


def test_small(small):
    """What is stored is what the recipe says, and the loader reads it."""
    assert small.info.metadata["digits"] == "drawn"
    sizes = {split: info.num_examples for split, info in small.info.splits.items()}
    assert sizes == {"train": 16, "calibration": 8, "test": 8}
    for example in examples(small, "test"):
        image, objects = example["image"][..., 0], example["objects"]
        corners = (256 * objects["bbox"]).round().astype(int)
        assert image.shape == (256, 256)
        assert (corners[:, 2:] - corners[:, :2] == 28).all()
        expected = megapixel.tasks(objects["label"], corners[:, :2])
        for key, value in expected.items():
            np.testing.assert_array_equal(example[key], value)
        assert np.bincount(objects["label"]).argmax() == example["label"]
    source = loading.prepare(
        "megapixel_mnist/small",
        data_dir=str(small.data_path.parents[2]),
        image_size=256,
        augment="none",
        resize=0,
    )
    batch = next(loading.evaluation(source, "test", batch_size=4))
    assert batch["image"].shape == (4, 1, 256, 256, 3)
    assert "box" not in batch  # five digits have no one box


def test_an_image_depends_on_its_number_alone(small, tmp_path):
    fewer = megapixel.MegapixelConfig(
        name="fewer", train=3, calibration=1, test=1, side=256, noise=5
    )
    builder = tfds.builder("megapixel_mnist", config=fewer, data_dir=tmp_path)
    builder.download_and_prepare()
    whole = {e["image"].tobytes() for e in examples(small, "train")}
    assert len(whole) == 16
    assert {e["image"].tobytes() for e in examples(builder, "train")} < whole


def test_drawn_digits():
    """As large as MNIST's, all different, and each split has its own."""
    seen = set()
    for split, count in megapixel.DRAWN_COUNTS.items():
        digits = megapixel.drawn(split)
        assert len(digits.labels) == count
        for number in range(30):
            image = digits.image(number)
            rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
            assert max(np.ptp(rows), np.ptp(columns)) + 1 in range(18, 21)
            mass = image / image.sum()
            middle = [(mass.sum(1 - a) * (np.arange(28) + 0.5)).sum() for a in (0, 1)]
            assert np.abs(np.array(middle) - 14).max() < 1.5
            seen.add(image.tobytes())
    assert len(seen) == 90


def test_mnist_where_it_is(tmp_path, monkeypatch):
    """Its digits are taken, those of calibration are no training image's."""
    made = {
        "train": {
            "image": np.arange(200, dtype=np.uint8).repeat(784).reshape(-1, 28, 28, 1),
            "label": np.arange(200) % 10,
        },
        "test": {
            "image": np.full((20, 28, 28, 1), 222, np.uint8),
            "label": np.arange(20) % 10,
        },
    }

    class Mnist:
        def is_prepared(self):
            return True

        def as_dataset(self, split, batch_size):
            assert batch_size == -1
            return tf.nest.map_structure(tf.constant, made[split])

    find = tfds.builder
    monkeypatch.setattr(
        tfds,
        "builder",
        lambda name, **where: Mnist() if name == "mnist" else find(name, **where),
    )
    config = megapixel.MegapixelConfig(
        name="tiny", train=6, calibration=6, test=2, side=160, noise=0
    )
    builder = tfds.builder("megapixel_mnist", config=config, data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.info.metadata["digits"] == "mnist"

    def values(split):
        images = [e["image"] for e in examples(builder, split)]
        return set(np.unique(images)) - {0}

    assert values("test") == {222}
    assert values("train") and values("calibration")
    assert not values("train") & values("calibration")
