"""Patches of three sizes through views, method, engine, steps and pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax.figures import pictures
from anchornet_jax.inference import engine, serialised, stopping
from anchornet_jax.methods import localize, patches, preprocessing, registry, views
from anchornet_jax.methods import method as protocol
from anchornet_jax.runtime import parallel
from anchornet_jax.runtime.networks import Network
from tests import tiny

SIDE, COUNT = 60, 8
SIZES = (12, 20, 28)


def network(model, size, seed):
    variables = tiny.drawn(model, size, seed)
    return Network(model, variables, {"classes": ["a", "b", "c"]})


@pytest.fixture(scope="module")
def method():
    """Return the method with random networks of three classes, three inputs."""
    members = {
        "localizer": network(tiny.TinyScales(3), SIDE, 4),
        "glance": network(tiny.Tiny(3), 20, 1),
        "patch": network(tiny.Tiny(3), 20, 2),
    }
    return registry.create("anchornet", members, inputs=3, iou_threshold=0.5)


@pytest.fixture(scope="module")
def images():
    """Return coarse random pixels: evidence of all sizes."""
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (COUNT, 10, 10, 3), np.uint8)
    return coarse.repeat(6, 1).repeat(6, 2)


@pytest.fixture(scope="module")
def table(method, images):
    """Return the exit table's columns for all images."""
    variables = parallel.replicate(protocol.variables(method))
    batch = parallel.shard({"image": images})
    return parallel.gather(protocol.make_table(method)(variables, batch))


@pytest.fixture(scope="module")
def found(method, images):
    """Return the localisation of all images."""
    localizer = method.networks["localizer"]
    return localize.localize(
        localizer.model, localizer.variables, images, k=2, iou_threshold=0.5
    )


def boxes_of(found):
    """Return (top, left, bottom, right) of the patches [B, K, 4]; -1 where none is."""
    size = np.take(SIZES, found.branch)[:, None, None]
    boxes = np.concatenate([found.corners, found.corners + size], -1)
    return np.where(np.asarray(found.valid)[..., None], boxes, -1)


def resized(pixels, size):
    return patches.resize(jnp.asarray(pixels, jnp.float32), size)


def test_every_branch_is_chosen(found, table):
    assert set(np.asarray(found.branch)) == {0, 1, 2}
    whole, boxes = table["boxes"][:, 0], table["boxes"][:, 1:]
    assert (whole == [0, 0, SIDE, SIDE]).all()
    np.testing.assert_array_equal(boxes, boxes_of(found))


def test_patches_are_the_chosen_branch_s(method, images, found):
    """Strongest first, of the right grid; the rest of the largest grid is NaN."""
    model, variables, _ = method.networks["localizer"]
    logits, out = jax.jit(model.apply)(variables, preprocessing.normalise(images))
    np.testing.assert_array_equal(out["branch"], found.branch)
    for i, j in enumerate(np.asarray(found.branch)):
        grid = (SIDE - SIZES[j]) // 4 + 1
        wanted = out["evidence"][j][i, :, :, logits[i].argmax()]
        np.testing.assert_allclose(found.heatmap[i, :grid, :grid], wanted, rtol=1e-4)
        assert np.isnan(found.heatmap[i]).sum() == 13**2 - grid**2  # (60 - 12) / 4 + 1
        corners, valid = patches.select(
            wanted[None], model.fields[j], k=2, iou_threshold=0.5
        )
        np.testing.assert_array_equal(found.corners[i], corners[0])
        np.testing.assert_array_equal(found.valid[i], valid[0])


def test_cut_brings_patches_to_the_middle_size(method, images, found):
    pixels = views.cut(method.model, images, found)
    assert pixels.shape == (COUNT, 2, 20, 20, 3)
    for i in range(COUNT):
        size = SIZES[int(found.branch[i])]
        y, x = np.asarray(found.corners[i, 0])
        own = resized(images[None, i, y : y + size, x : x + size], 20)
        np.testing.assert_allclose(
            pixels[i, 0], preprocessing.normalise(own)[0], atol=1e-4
        )


def test_one_size_is_copied_pixel_for_pixel(images):
    corners = jnp.array([[[3, 5], [7, 0]]] * COUNT)
    branch = jnp.zeros(COUNT, int)
    found = patches.crop_scales(images, corners, branch, (20,), 20)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, patches.crop(images, corners, 20))


@pytest.mark.parametrize(("branch", "size"), [(1, 20), (2, 28)])
def test_view_of_one_branch_keeps_its_size(method, images, branch, size):
    model, variables, _ = method.networks["localizer"]
    view = views.make("patches", model, k=2, branch=size)
    inputs, valid = view(images, None, variables)
    found = localize.localize(model, variables, images, k=2, branch=size)
    assert (np.asarray(found.branch) == branch).all()
    wanted = patches.crop(images, found.corners, size)
    np.testing.assert_allclose(inputs, preprocessing.normalise(wanted), atol=1e-5)
    np.testing.assert_array_equal(valid, found.valid)


def test_preset_gives_room_for_its_largest_k(method, images, monkeypatch):
    """As the papers' 24, 10 and 8: of the other branches the rest does not exist."""
    known = {size: patches.Selection(k, 1.0, 1.0) for size, k in zip(SIZES, (5, 3, 2))}
    monkeypatch.setitem(patches.PRESETS, "rooms", known)
    model, variables, _ = method.networks["localizer"]
    view = views.make("patches", model, preset="rooms", branch=28)
    inputs, valid = view(images, None, variables)
    assert inputs.shape == (COUNT, 5, 28, 28, 3)
    assert (np.asarray(valid) == [[True] * 2 + [False] * 3]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"branch": 16}, r"`branch` is 16; choose one of \[12, 20, 28\]"),
        ({"preset": "many"}, "`branches` holds 12; the preset 'many' is known for"),
        ({"preset": "few"}, "`preset` is 'few'; choose one of"),
    ],
)
def test_views_that_cannot_be(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        views.make("patches", method.model, **arguments)


def test_table_equals_input_after_input(method, images, found, table):
    pixels = views.cut(method.model, images, found)
    glance = preprocessing.normalise(resized(images, 20))
    apply = lambda role, pixels: method.networks[role].model.apply(
        method.networks[role].variables, pixels
    )[0]
    own = [apply("glance", glance), *(apply("patch", pixels[:, k]) for k in range(2))]
    exists = np.pad(found.valid, [(0, 0), (1, 0)], constant_values=True)
    total = np.cumsum(np.stack(own, 1) * exists[..., None], 1)
    confidence, predicted = protocol.decide(jnp.asarray(total))
    np.testing.assert_allclose(table["confidence"], confidence, rtol=1e-4)
    np.testing.assert_array_equal(table["predicted"], predicted)


def test_random_patches_have_the_same_sizes():
    """Uniform over all places of a patch of each image's own size."""
    keys = jax.random.split(jax.random.key(0), 900)
    size = jnp.tile(jnp.array(SIZES), 300)
    corners = np.asarray(views.random_corners(keys, SIDE, SIDE, size, 1))[:, 0]
    for own in SIZES:
        assert corners[size == own].min() == 0
        assert corners[size == own].max() == SIDE - own


def test_engine_equals_the_table(method, images, table):
    rule = stopping.ThresholdRule(
        np.quantile(table["confidence"][:, :2], 0.5, 0) + 1e-4
    )
    classifier = engine.Classifier(
        method, rule, image_size=SIDE, batch_size=4, details=True
    )
    result = classifier.classify(images)
    exits = rule.exits(table["confidence"])
    np.testing.assert_array_equal(result.exit, exits)
    np.testing.assert_array_equal(
        result.predicted, table["predicted"][np.arange(COUNT), exits]
    )
    later = exits > 0
    assert 0 < later.sum() < COUNT
    for t in range(3):
        seen = exits >= t
        np.testing.assert_array_equal(result.boxes[seen, t], table["boxes"][seen, t])
        assert (result.boxes[~seen, t] == -1).all()


def test_serialised_steps_equal_the_table(method, images, table):
    steps = serialised.deserialise(
        serialised.serialise(method, SIDE),
        protocol.variables(method),
        serialised.describe(method),
        {},
    )
    confidence, predicted = protocol.decide(steps.logits(images))
    np.testing.assert_allclose(confidence, table["confidence"], rtol=1e-4)
    np.testing.assert_array_equal(predicted, table["predicted"])
    state, _ = steps.run[0](images)
    for step in steps.run[1:]:
        state, _ = step(images, state)
    found = method.regions(state, SIDE)
    np.testing.assert_array_equal(found.boxes, table["boxes"])
    np.testing.assert_allclose(found.heatmap, table["heatmap"], atol=1e-4)
    np.testing.assert_array_equal(found.extent, table["extent"])


def test_pictures_draw_each_image_s_own_patches(images, table, found):
    names = ("heatmap", "boxes", "extent", "predicted", "confidence")
    arrays = {name: table[name] for name in names} | {
        "image": images,
        "label": np.zeros(COUNT, int),
        "exit": np.full(COUNT, 2),
    }
    exits = ["glance", "look", "patch"]
    figure = pictures.examples(arrays, ["a", "b", "c"], exits)
    columns = 1 + 3
    for i, size in enumerate(np.take(SIZES, found.branch)):
        picture = figure.axes[columns * i]
        sides = {patch.get_width() for patch in picture.patches}
        assert sides == {size}
        left, right, _, _ = picture.images[1].get_extent()
        # Locations stand for the centres of their patches, a stride of 4 px each; a
        # smaller grid than the largest ends in cells without a value.
        first = (size - 4) / 2
        assert (left, right) == (first, first + 4 * 13)
        cells = picture.images[1].get_array()
        grid = (SIDE - size) // 4 + 1
        assert not cells.mask[:grid, :grid].any() and cells.mask.sum() == 169 - grid**2
        assert figure.axes[columns * i + 2].images[0].get_array().shape[:2] == (
            size,
            size,
        )
