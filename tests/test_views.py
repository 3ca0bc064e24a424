import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.methods import localize, patches, preprocessing, views
from anchornet_jax.models.pixels import IMAGENET, Pixels


@pytest.fixture(scope="module")
def localizer():
    """Return an AnchorNet and random variables."""
    model = models.create("anchornet", num_classes=3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 127, 127, 3)))
    return model, variables


@pytest.fixture
def images():
    """Return uint8 images [2, 127, 127, 3]."""
    return np.random.default_rng(0).integers(0, 256, (2, 127, 127, 3), np.uint8)


def see(name, localizer, images, **kwargs):
    """Run a view as a jitted step does."""
    model, variables = localizer
    keys = jax.random.split(jax.random.key(1), len(images))
    return jax.jit(views.make(name, model, **kwargs))(images, keys, variables)


def test_normalise():
    pixels = np.array([[[[0, 128, 255]]]], np.uint8)
    wanted = (np.array([0, 128, 255]) / 255 - IMAGENET.mean) / IMAGENET.std
    np.testing.assert_allclose(
        preprocessing.normalise(pixels)[0, 0, 0], wanted, rtol=1e-5
    )


class Symmetric:
    """A network that wants pixels from -1 to 1."""

    pixels = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", views.VIEWS)
def test_normalised_for_the_network_that_looks(name, localizer, images):
    """The localiser still sees the images its own way: the patches are the same."""
    own, _ = see(name, localizer, images, network=Symmetric())
    usual, _ = see(name, localizer, images)
    wanted = np.asarray(usual) * IMAGENET.std + IMAGENET.mean
    np.testing.assert_allclose((own + 1) / 2, wanted, atol=1e-5)


def test_full(localizer, images):
    inputs, valid = see("full", localizer, images)
    np.testing.assert_allclose(inputs[:, 0], preprocessing.normalise(images), rtol=1e-5)
    assert valid.shape == (2, 1) and valid.all()


def test_resized(localizer, images):
    inputs, valid = see("resized", localizer, images)
    wanted = patches.resize(preprocessing.normalise(images), 95)
    np.testing.assert_allclose(inputs[:, 0], wanted, atol=1e-5)
    assert valid.all()


def test_patches(localizer, images):
    inputs, valid = see("patches", localizer, images, k=2, iou_threshold=0.9)
    found = localize.localize(*localizer, images, k=2, iou_threshold=0.9)
    assert inputs.shape == (2, 2, 95, 95, 3) and valid.all()
    for b in range(2):
        for k, (y, x) in enumerate(np.asarray(found.corners[b])):
            patch = images[b, y : y + 95, x : x + 95]
            np.testing.assert_allclose(
                inputs[b, k], preprocessing.normalise(patch), atol=1e-5
            )


def test_random_depends_on_the_key_alone(localizer, images):
    inputs, valid = see("random", localizer, images, k=3)
    again, _ = see("random", localizer, images, k=3)
    assert inputs.shape == (2, 3, 95, 95, 3) and valid.all()
    np.testing.assert_array_equal(inputs, again)
    assert not np.allclose(inputs[0, 0], inputs[0, 1])


def test_random_corners_are_uniform():
    keys = jax.random.split(jax.random.key(0), 2000)
    corners = np.asarray(views.random_corners(keys, 98, 95, 95, 2))
    assert corners.min() == 0 and corners[..., 1].max() == 0
    counts = np.bincount(corners[..., 0].ravel())
    assert len(counts) == 4 and (abs(counts / 4000 - 0.25) < 0.04).all()


def test_bad_arguments(localizer):
    with pytest.raises(ValueError, match="`view` is 'crop'; choose one of"):
        views.make("crop", localizer[0])
