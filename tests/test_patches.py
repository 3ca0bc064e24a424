import functools

import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax.methods import patches, preprocessing
from anchornet_jax.models.receptive_field import ReceptiveField

FIELD = ReceptiveField(95, 8)


def greedy(heatmap, field, k, threshold, coverage=1.0):
    """The paper's procedure, written plainly (2022, Sec. 3.3; 2020, Algorithm 1)."""
    columns = heatmap.shape[1]
    values = heatmap.reshape(-1)
    order = sorted(
        (i for i in range(values.size) if not np.isnan(values[i])),
        key=lambda i: (-values[i], i),
    )
    visited = max(1, int(values.size * coverage))
    kept = []
    for index in order[:visited]:
        corner = (index // columns * field.stride, index % columns * field.stride)
        steps = [(abs(corner[0] - y), abs(corner[1] - x)) for y, x in kept]
        if all(_iou(dy, dx, field.size) < threshold for dy, dx in steps):
            kept.append(corner)
        if len(kept) == k:
            break
    return kept


@functools.cache
def _iou(dy, dx, size):
    one = {(y, x) for y in range(size) for x in range(size)}
    other = {(y + dy, x + dx) for y, x in one}
    return len(one & other) / len(one | other)


def heatmaps(kind, count, shape, rng):
    maps = rng.standard_normal((count, *shape)).astype(np.float32)
    if kind == "ties":
        maps = np.round(maps)
    if kind == "nan":
        maps[rng.random(maps.shape) < 0.7] = np.nan
    if kind == "infinite":
        maps[rng.random(maps.shape) < 0.3] = -np.inf
        maps[rng.random(maps.shape) < 0.1] = np.inf
    return maps


@pytest.mark.parametrize("kind", ["random", "ties", "nan", "infinite"])
@pytest.mark.parametrize(
    ("shape", "field", "k", "threshold", "coverage"),
    [
        ((6, 6), ReceptiveField(7, 2), 4, 0.3, 1.0),
        ((5, 8), ReceptiveField(9, 2), 6, 0.5, 1.0),
        ((6, 6), ReceptiveField(7, 2), 5, 0.8, 0.2),
        ((4, 4), ReceptiveField(5, 3), 1, 0.0, 1.0),
        ((4, 4), ReceptiveField(5, 3), 9, 1.0, 1.0),
        ((1, 3), ReceptiveField(5, 3), 1, 0.3, 0.01),
    ],
)
def test_equals_greedy(kind, shape, field, k, threshold, coverage):
    maps = heatmaps(kind, 100, shape, np.random.default_rng(k))
    corners, valid = patches.select(
        jnp.asarray(maps), field, k=k, iou_threshold=threshold, coverage=coverage
    )
    for found, mask, heatmap in zip(np.asarray(corners), np.asarray(valid), maps):
        wanted = greedy(heatmap, field, k, threshold, coverage)
        assert [tuple(c) for c in found[mask]] == wanted
        assert mask.tolist() == [i < len(wanted) for i in range(k)]
        assert not found[~mask].any()


def test_equals_greedy_on_the_papers_geometry():
    maps = heatmaps("random", 30, (17, 17), np.random.default_rng(0))
    corners, valid = patches.select(jnp.asarray(maps), FIELD, k=5, iou_threshold=0.3)
    assert valid.all()
    for found, heatmap in zip(np.asarray(corners), maps):
        assert [tuple(c) for c in found] == greedy(heatmap, FIELD, 5, 0.3)


def test_all_nan_is_no_patch():
    corners, valid = patches.select(jnp.full((1, 17, 17), jnp.nan), FIELD, k=2)
    assert not valid.any() and not corners.any()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"k": 0}, "`k` is 0"),
        ({"k": 26}, "`k` is 26; .* at most 25"),
        ({"k": 1, "iou_threshold": -0.1}, "`iou_threshold` is -0.1"),
        ({"k": 1, "iou_threshold": 1.1}, "`iou_threshold` is 1.1"),
        ({"k": 1, "coverage": 0.0}, "`coverage` is 0.0"),
        ({"k": 1, "coverage": 1.5}, "`coverage` is 1.5"),
    ],
)
def test_bad_arguments(argument, message):
    with pytest.raises(ValueError, match=message):
        patches.select(jnp.zeros((1, 17, 17)), FIELD, **argument)


def test_crop_is_exact():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 40, 50, 3), np.uint8)
    corners = rng.integers(0, (30, 40), (3, 4, 2)).astype(np.int32)
    pixels = np.asarray(patches.crop(images, jnp.asarray(corners), 11))
    assert pixels.shape == (3, 4, 11, 11, 3) and pixels.dtype == np.uint8
    for b in range(3):
        for k, (y, x) in enumerate(corners[b]):
            np.testing.assert_array_equal(
                pixels[b, k], images[b, y : y + 11, x : x + 11]
            )


@pytest.mark.parametrize("size", [7, 95, 224])
def test_both_forms_of_resizing_agree(size):
    images = np.random.default_rng(0).random((2, 130, 97, 3), np.float32)
    images = jnp.asarray(images)
    np.testing.assert_allclose(
        patches._resize_dot(images, size), patches._resize_taps(images, size), atol=1e-5
    )


def test_resize_commutes_with_normalising():
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 31, 3), np.uint8)
    found = preprocessing.normalise(patches.resize(jnp.asarray(images), 9))
    wanted = patches.resize(preprocessing.normalise(images), 9)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_resize_keeps_constants_and_corners():
    image = np.random.default_rng(0).random((1, 33, 57, 2), np.float32)
    small = patches.resize(jnp.asarray(image), 9)
    np.testing.assert_allclose(  # align_corners: corner pixels stay
        small[0, [0, 0, -1, -1], [0, -1, 0, -1]],
        image[0, [0, 0, -1, -1], [0, -1, 0, -1]],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        patches.resize(jnp.ones((1, 30, 31, 1)), 7), 1, rtol=1e-6
    )
    same = patches.resize(jnp.asarray(image[:, :, :33]), 33)
    np.testing.assert_allclose(same, image[:, :, :33], atol=1e-6)
