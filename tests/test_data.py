import itertools

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from anchornet_jax import data

AS_IS = {"augment": "none", "flip": False, "resize": 0}


@pytest.fixture
def source(data_dir):
    """Return the small embedded data set, as it is."""
    return data.prepare("plates/small", data_dir=data_dir, **AS_IS)


def flat(batches, name):
    """Join the devices and the batches."""
    return np.concatenate([b[name].reshape(-1, *b[name].shape[2:]) for b in batches])


@pytest.mark.parametrize("batch_size", [4, 12, 32, 100])
def test_evaluation_counts_every_image_once(source, batch_size):
    batches = list(data.evaluation(source, "test", batch_size=batch_size))
    devices = jax.local_device_count()
    for batch in batches:
        assert batch["image"].shape == (devices, batch_size // devices, 224, 224, 3)
    mask = flat(batches, "mask")
    truth = list(tfds.as_numpy(source.builder.as_dataset("test")))
    assert mask.sum() == len(truth) == 32
    np.testing.assert_array_equal(
        flat(batches, "label")[mask], [e["label"] for e in truth]
    )
    np.testing.assert_array_equal(
        flat(batches, "image")[mask], [e["image"] for e in truth]
    )
    np.testing.assert_allclose(
        flat(batches, "box")[mask], [e["bbox"] * 224 for e in truth], rtol=1e-6
    )


@pytest.mark.parametrize("first_step", [1, 7, 8, 19])
def test_training_continues_where_it_stopped(source, first_step):
    whole = data.training(source, "train", batch_size=8, seed=3)
    rest = data.training(source, "train", batch_size=8, seed=3, first_step=first_step)
    for one, other in zip(
        itertools.islice(whole, first_step, first_step + 3), itertools.islice(rest, 3)
    ):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_an_epoch_is_every_image_once_in_a_new_order(source):
    stream = data.training(source, "train", batch_size=8, seed=0)
    epochs = [list(itertools.islice(stream, 8)) for _ in range(2)]
    sums = [flat(e, "image").astype(int).sum((1, 2, 3)) for e in epochs]
    assert sorted(sums[0]) == sorted(sums[1]) and len(set(sums[0])) == 64
    assert sums[0].tolist() != sums[1].tolist()


def test_augmentation_is_random_and_repeatable(data_dir):
    source = data.prepare("plates/small", data_dir=data_dir, image_size=96, resize=128)
    first = [next(data.training(source, "train", batch_size=8, seed=0)) for _ in "ab"]
    other = next(data.training(source, "train", batch_size=8, seed=1))
    np.testing.assert_array_equal(first[0]["image"], first[1]["image"])
    assert first[0]["image"].shape[2:] == (96, 96, 3)
    assert not (first[0]["image"] == other["image"]).all()
    evaluated = next(data.evaluation(source, "test", batch_size=8))
    assert evaluated["image"].shape[2:] == (96, 96, 3)


def test_centre_moves_the_box_along(data_dir):
    """A white square stays under its box through resize and crop."""
    source = data.prepare("plates/small", data_dir=data_dir, image_size=64, resize=100)
    image = np.zeros((200, 300, 3), np.uint8)
    image[80:120, 130:190] = 255
    box = np.array([80 / 200, 130 / 300, 120 / 200, 190 / 300], np.float32)
    pixels, (y0, x0, y1, x1) = data._centre(source, tf.constant(image), box)
    rows, columns = np.nonzero(pixels.numpy()[..., 0] > 127)
    assert abs(rows.min() - y0) <= 1 and abs(rows.max() + 1 - y1) <= 1
    assert abs(columns.min() - x0) <= 1 and abs(columns.max() + 1 - x1) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "plate"}, "`name` is 'plate', which TFDS does not know"),
        ({"name": "plates/tiny"}, "`name` is 'plates/tiny'"),
        ({"augment": "mixup"}, "`augment` is 'mixup'; choose one of"),
        ({"resize": 100}, "`resize` is 100; it must be 0 or at least .* 224"),
    ],
)
def test_bad_data(data_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.prepare(**{"name": "plates/small", "data_dir": data_dir, **arguments})


def test_bad_split_and_batch(source):
    with pytest.raises(ValueError, match="`split` is 'validation'; plates has"):
        next(data.evaluation(source, "validation", batch_size=8))
    with pytest.raises(ValueError, match="`batch_size` is 6; .* multiple of the 4"):
        next(data.training(source, "train", batch_size=6, seed=0))
    with pytest.raises(ValueError, match="`batch_size` is 100; 'train' has 64 images"):
        next(data.training(source, "train", batch_size=100, seed=0))


def test_images_smaller_than_asked_for(data_dir):
    source = data.prepare(
        "plates/small", data_dir=data_dir, image_size=300, augment="none", resize=0
    )
    with pytest.raises(ValueError, match="smaller than `image_size`, 300"):
        next(data.evaluation(source, "test", batch_size=8))


def test_labels_outside_the_classes(source):
    batches = tf.data.Dataset.from_tensors({"label": np.array([3, 10])})
    with pytest.raises(ValueError, match="`label` holds 10; plates has .* 0 to 9"):
        next(data._checked(source, batches))
