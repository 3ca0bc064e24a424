"""GFNet as a method: table, engine and export say the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import engine, export, folding, stopping
from anchornet_jax.methods import gfnet as gfnet_method
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import registry
from anchornet_jax.models import Network, gfnet
from anchornet_jax.models.resnet import ResNet
from anchornet_jax.runtime import parallel
from tests.test_multi_exit import check

SIZE, COUNT, PATCH, CLASSES = 48, 21, 32, ["a", "b", "c"]
ENCODER = {"depths": (1, 1), "width": 8, "stem_kernel": 3}
FEATURES, HIDDEN = 16, 8


def networks(cascade):
    """Return small networks of drawn weights by role."""
    rng = np.random.default_rng(0)
    encoder, classifier = {"name": "tiny_encoder"}, {"name": "gfnet_recurrent"}
    if cascade:
        classifier = {"name": "gfnet_cascade"}
    else:
        classifier["hidden"] = HIDDEN
    policy = {"name": "gfnet_policy", "hidden": HIDDEN, "convolutional": cascade}
    pixels, seen = jnp.zeros((1, PATCH, PATCH, 3)), jnp.zeros((1, FEATURES))
    rows = {
        "glance": (encoder, (pixels,)),
        "patch": (encoder, (pixels,)),
        "classifier": (classifier, (seen, jnp.zeros((1, HIDDEN)))),
        "policy": (policy, (jnp.zeros((1, 4, 4, FEATURES)), jnp.zeros((1, HIDDEN)))),
    }
    if cascade:
        rows["classifier"] = classifier, (jnp.zeros((1, 2 * FEATURES)),)
    found = {}
    for role, (description, given) in rows.items():
        description = {**description, "num_classes": len(CLASSES)}
        model = models.create(**description)
        steps = {"step": 2} if cascade and role == "classifier" else {}
        shapes = jax.eval_shape(
            lambda *a, m=model, s=steps: m.init(jax.random.key(0), *a, **s), *given
        )
        variables = jax.tree.map(
            lambda leaf: (
                np.abs(rng.normal(0, 0.5, leaf.shape)).astype(np.float32)
                if leaf.ndim == 1
                else rng.normal(0, 0.5, leaf.shape).astype(np.float32)
            ),
            shapes,
        )
        found[role] = Network(
            model, variables, {"model": description, "classes": CLASSES}
        )
    return found


@pytest.fixture(scope="module", params=["recurrent", "cascade", "random"])
def method(request):
    """Return the method, three inputs; the last one looks at random places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny_encoder", (ResNet, ENCODER))
        given = networks(request.param == "cascade")
        places = "random" if request.param == "random" else "policy"
        if places == "random":
            del given["policy"]
        yield registry.create("gfnet", given, inputs=3, patch_size=PATCH, places=places)


@pytest.fixture(scope="module")
def images():
    """Return uint8 images whose colours vary from one to the next."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (COUNT, 1, 1, 3))
    noise = rng.integers(-60, 60, (COUNT, SIZE, SIZE, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def table(method, images):
    """Return the exit table's arrays for all images."""
    variables = parallel.replicate(protocol.variables(method), jax.local_devices()[:1])
    found = protocol.make_table(method)(variables, {"image": images[None]})
    return parallel.gather(found)


def rule(table):
    """Return the middle confidences."""
    values = np.sort(table["confidence"][:, :-1], 0)[COUNT // 2 - 1 : COUNT // 2 + 1]
    return stopping.ThresholdRule(tuple(values.mean(0).tolist()))


@pytest.mark.parametrize(("batch_size", "in_flight"), [(1, 1), (5, 8)])
def test_engine_equals_the_table(method, images, table, batch_size, in_flight):
    classifier = engine.Classifier(
        method,
        rule(table),
        image_size=SIZE,
        batch_size=batch_size,
        in_flight=in_flight,
        devices=jax.local_devices()[:1],
    )
    check(classifier.classify(images), classifier.rule, table)


def test_export_equals_the_table(method, images, table, tmp_path):
    export.save(tmp_path / "export", method, image_size=SIZE)
    steps = export.load_steps(tmp_path / "export")
    for batch in (images, images[:1]):
        confidence, predicted = protocol.decide(steps.logits(batch))
        wanted = table["confidence"][: len(batch)]
        np.testing.assert_allclose(confidence, wanted, atol=1e-4)
        np.testing.assert_array_equal(predicted, table["predicted"][: len(batch)])


def test_folding_keeps_what_sees_no_pixels(method):
    folded = folding.fold_method(method, SIZE)
    assert "batch_stats" not in folded.networks["patch"].variables
    assert folded.networks["classifier"] is method.networks["classifier"]
    assert protocol.costs(folded, SIZE) == protocol.costs(method, SIZE)


def test_boxes_are_inside(method, table):
    boxes = table["boxes"]
    assert (boxes[:, 0] == -1).all() and len(np.unique(boxes[:, 1:], axis=0)) > 1
    assert boxes[:, 1:].min() >= 0 and boxes[:, 1:].max() <= SIZE
    assert registry.name(method) == "gfnet"


def test_refused(method):
    for change, message in (
        ({"inputs": 0}, "`inputs` is 0; allowed is 1"),
        ({"patch_size": 1}, "`patch_size` is 1; allowed is 2 or more"),
        ({"resize": "area"}, "`resize` is 'area'; choose one of"),
        ({"places": "policies"}, "`places` is 'policies'; choose one of"),
    ):
        with pytest.raises(ValueError, match=message):
            gfnet_method.GFNet(method.networks, **change)
    with pytest.raises(ValueError, match="images have 31 pixels a side; patches of 32"):
        method.start(1, PATCH - 1)
    with pytest.raises(ValueError, match="`step` is 6; allowed is 2 to 5"):
        gfnet.CascadeClassifier(3).apply({}, jnp.zeros((1, 12)), 6)
