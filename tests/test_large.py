"""Images of any size: what is cut of them, the levels of localisation, the engine."""

import jax
import numpy as np
import pytest

from anchornet_jax.data import photos
from anchornet_jax.inference import engine, serialised, stopping
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import patches, registry
from anchornet_jax.methods.pyramid import Pyramid
from anchornet_jax.models import Network
from anchornet_jax.models.receptive_field import ReceptiveField
from anchornet_jax.runtime import parallel
from tests.tiny import Tiny, TinyAnchorNet, drawn

CLASSES = ["a", "b", "c"]
VIEW = 127


def network(model, size, seed):
    return Network(model, drawn(model, size, seed), {"classes": CLASSES})


MEMBERS = {
    "localizer": network(TinyAnchorNet(3), VIEW, 0),
    "glance": network(Tiny(3), 95, 1),
    "patch": network(Tiny(3), 95, 2),
}


def create(name="large", **arguments):
    if name == "large":
        arguments = {"view": VIEW, "zooms": 2, **arguments}
    members = dict(MEMBERS)
    if "localizer" in arguments:
        del members["localizer"]
    return registry.create(name, members, **{"inputs": 4, **arguments})


def image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def test_ordinary_images_as_ever():
    """An image as large as a view is one view: the same answers as AnchorNet's."""
    images = np.stack([image(VIEW, VIEW, seed) for seed in range(4)])
    usual = create("anchornet", iou_threshold=0.8)
    large = create(zooms=0, iou_threshold=0.8)
    found, wanted = (
        parallel.gather(
            protocol.make_table(one)(
                protocol.variables(one), {"image": images[:, None]}
            )
        )
        for one in (large, usual)
    )
    exits = [0, 2, 3, 4]  # all but the look, which says nothing new
    np.testing.assert_array_equal(found["boxes"][:, exits], wanted["boxes"])
    np.testing.assert_allclose(
        found["confidence"][:, exits], wanted["confidence"], rtol=1e-5
    )
    assert large.macs()[1] == 4 * (usual.macs(VIEW)[1] - usual.macs(VIEW)[2])


def test_engine_mixed_sizes():
    """Any sizes in one run: the answers of the table, every step traced once."""
    sizes = [(300, 500), (95, 130), (1200, 140), (127, 127), (777, 640), (60, 900)]
    images = [image(*size, seed) for seed, size in enumerate(sizes)]
    method = create()
    exits = len(method.steps)
    classifier = engine.Classifier(
        method,
        stopping.fixed(exits, exits),
        image_size=0,
        batch_size=4,
        details=True,
    )
    found = classifier.classify(images)
    table = protocol.make_trace(method)(images, classifier.rule)
    np.testing.assert_array_equal(found.boxes, table["boxes"])
    np.testing.assert_allclose(found.confidence, table["confidence"][:, -1], atol=1e-5)
    assert set(classifier.traced.values()) <= {1, len(classifier.devices)}
    streamed = list(classifier.stream(iter(images)))
    assert [one.predicted for one in streamed] == found.predicted.tolist()
    classifier.rule = stopping.fixed(1, exits)
    assert (classifier.classify(images[:3]).exit == 0).all()
    assert (np.diff(classifier.milliseconds(repeats=1)) > 0).all()
    # Planned by the compiler for the images that are on the device, views and patches.
    traced = dict(classifier.traced)
    own = jax.tree.leaves(protocol.variables(method))
    variables, views = sum(leaf.nbytes for leaf in own), 4 * 4 * 3 * VIEW**2
    assert variables + views < classifier.peak_bytes() < 50 * views
    assert classifier.traced == traced
    for boxes, (height, width) in zip(found.boxes, sizes):
        assert boxes[0].tolist() == [0, 0, height, width]
        assert (boxes[1:4] == -1).all()
        assert (boxes[4:] >= -1).all() and (boxes[4:, 2:] <= [height, width]).all()
    # Where the last level shows the image pixel for pixel, the patches are so too.
    assert found.boxes[3, 4, 2:].tolist() == (found.boxes[3, 4, :2] + 95).tolist()


@pytest.mark.parametrize("bad", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3))])
def test_wrong_images(bad):
    method = create()
    rule = stopping.fixed(1, len(method.steps))
    classifier = engine.Classifier(method, rule, image_size=0, batch_size=1)
    with pytest.raises(ValueError, match=r"item 1 is .*needed: uint8 \[H, W, 3\]"):
        classifier.classify([image(100, 100), bad])
    with pytest.raises(ValueError, match=r"item 0 is .*needed: uint8 \[H, W, 3\]"):
        list(classifier.stream([bad]))


@pytest.mark.parametrize("size", [(127, 127), (500, 500), (400, 1500), (3000, 90)])
def test_views_cover_the_image(size):
    """Every pixel is in a view, and every patch of the scale in one of them."""
    method = create()
    boxes = method.covering(*size)
    seen = np.zeros(size, bool)
    for top, left, bottom, right in boxes:
        seen[top:bottom, left:right] = True
    assert seen.all()
    if size == (127, 127):
        assert boxes.tolist() == [[0, 0, 127, 127], *3 * [[0, 0, 0, 0]]]


def test_a_location_sees_what_the_arithmetic_says():
    """A pixel outside changes nothing in what a location of a view sees, inside it does."""
    method = create()
    box = np.array([40, 70, 40 + 3 * VIEW, 70 + 3 * VIEW])
    seen, scale = method.seen(box[None, None])
    assert scale.tolist() == [[[3, 3]]] and seen.shape[2:4] == (5, 5)
    top, left, bottom, right = np.asarray(seen[0, 0, 2, 1]).round().astype(int)
    assert (top, left) == (40 + 3 * 16, 70 + 3 * 8) and bottom - top == 3 * 95
    pixels = np.zeros((500, 500, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    view = Pyramid(pixels).view(box, VIEW)
    y, x = method.model.field.corner((2, 1))
    expected = np.zeros_like(view)
    expected[y : y + 95, x : x + 95] = 255
    assert (view == expected).mean() > 0.95  # halved copies blur the edge
    rows, columns = np.nonzero(view[..., 0] > 127)
    for low, high, first in (
        (*np.sort(rows)[[0, -1]], y),
        (*np.sort(columns)[[0, -1]], x),
    ):
        assert abs(low - first) <= 1 and abs(high - first - 94) <= 1


def test_finds_a_spot():
    """A bright spot in a large dark image: the patches end at full resolution on it."""
    method = create(localizer="edges", view=224, zooms=3, inputs=2)
    pixels = np.zeros((2000, 2600, 3), np.uint8)
    pixels[1500:1540, 700:740] = image(40, 40)
    rule = stopping.fixed(len(method.steps), len(method.steps))
    top, left, bottom, right = protocol.make_trace(method)([pixels], rule)["boxes"][
        0, -1
    ]
    assert top <= 1500 and left <= 700 and bottom >= 1540 and right >= 740
    assert (bottom - top, right - left) == (95, 95)


def test_pyramid():
    pixels = image(301, 203)
    one = Pyramid(pixels)
    np.testing.assert_array_equal(one.view((5, 6, 55, 56), 50), pixels[5:55, 6:56])
    view = one.view((0, 0, 150, 150), 100)  # each covers 1.5 x 1.5 pixels
    wanted = pixels[:2, :2] * np.array([[4, 2], [2, 1]])[..., None] / 9
    np.testing.assert_allclose(view[0, 0], wanted.sum((0, 1)), atol=0.51)
    np.testing.assert_allclose(
        one.view((0, 0, 200, 200), 50),
        pixels[:200, :200].reshape(50, 4, 50, 4, 3).mean((1, 3)),
        atol=1.6,
    )
    assert not one.view((0, 0, 0, 0), 9).any()
    with pytest.raises(ValueError, match="`image` is float64"):
        Pyramid(pixels / 255)


def test_select_boxes_as_select():
    field = ReceptiveField(95, 8)
    scores = np.random.default_rng(0).random((3, 6, 7)).astype(np.float32)
    scores[0, 2] = np.nan
    places = np.stack(np.meshgrid(range(6), range(7), indexing="ij"), -1)
    corners = field.corner(places).reshape(-1, 2)
    boxes = np.concatenate([corners, corners + 95], -1).astype(np.float32)
    boxes = np.broadcast_to(boxes, (3, *boxes.shape))
    wanted, valid = patches.select(scores, field, k=4, iou_threshold=0.5)
    best, exists = patches.select_boxes(
        scores.reshape(3, -1), boxes, k=4, iou_threshold=0.5
    )
    np.testing.assert_array_equal(exists, valid)
    chosen = np.take_along_axis(boxes, np.asarray(best)[..., None], 1)[..., :2]
    np.testing.assert_array_equal(chosen[valid], np.asarray(wanted)[valid])


@pytest.mark.parametrize("name, value", [("view", 94), ("views", 0), ("zooms", -1)])
def test_refusals(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value}"):
        create(**{name: value})


def test_photo_as_it_is(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    pixels = image(310, 190)
    image_module.fromarray(pixels).save(tmp_path / "photo.png")
    found = photos.read(tmp_path / "photo.png", image_size=0, resize=0)
    np.testing.assert_array_equal(found, pixels)


def test_export_has_no_serialised_steps():
    method = create()
    assert serialised.serialise(method, 224) == {} and serialised.describe(method) == []
