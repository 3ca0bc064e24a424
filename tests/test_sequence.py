import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.methods import anchornet, patches, views
from anchornet_jax.models import multiply_adds
from anchornet_jax.runtime import parallel
from anchornet_jax.runtime.networks import Network
from tests.tiny import Tiny


def algorithm_1(inputs, valid, fuse):
    """2022, Algorithm 1 for one image: confidence and class after each input."""
    total, seen, steps = 0, 0, []
    for logits, exists in zip(inputs, valid):
        if exists:
            p = np.exp(logits - logits.max())
            total = total + (logits if fuse == "logits" else p / p.sum())
            seen += 1
        if fuse == "logits":
            p = np.exp(total - total.max())
            p = p / p.sum()
        else:
            p = total / seen
        steps.append((p.max(), p.argmax()))
    return [list(column) for column in zip(*steps)]


@pytest.mark.parametrize("fuse", anchornet.FUSE)
def test_decide_equals_algorithm_1(fuse):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 5, 7)).astype(np.float32) * 3
    valid = rng.random((50, 5)) < 0.8
    valid[:, 0] = True
    confidence, predicted = anchornet.decide(logits, jnp.asarray(valid), fuse)
    for i in range(50):
        wanted = algorithm_1(logits[i], valid[i], fuse)
        np.testing.assert_allclose(confidence[i], wanted[0], rtol=1e-5)
        np.testing.assert_array_equal(predicted[i], wanted[1])


@pytest.fixture(scope="module")
def method():
    """Return the method with random networks of three classes."""

    def network(model, size, seed):
        variables = jax.jit(model.init)(
            jax.random.key(seed), jnp.zeros((1, size, size, 3))
        )
        return Network(model, variables, {"classes": ["a", "b", "c"]})

    return anchornet.Sequence(
        network(models.create("anchornet", 3), 127, 0),
        network(Tiny(3), 95, 1),
        network(Tiny(3), 95, 2),
        inputs=3,
        iou_threshold=0.8,
    )


def test_table_step_equals_one_image_at_a_time(method):
    images = np.random.default_rng(0).integers(0, 256, (4, 127, 127, 3), np.uint8)
    step = parallel.predict_step(anchornet.make_table_step(method, random=True, seed=0))
    batch = parallel.shard({"image": images})
    found = parallel.gather(step(parallel.replicate(method.variables()), batch))
    assert found["random_confidence"].shape == (4, 3)
    glance, patch = method.glance, method.patches
    for i, image in enumerate(images):
        place = views.localize(
            method.anchornet.model,
            method.anchornet.variables,
            image[None],
            k=2,
            iou_threshold=0.8,
        )
        np.testing.assert_array_equal(found["corners"][i], place.corners[0])
        pixels = views.normalise(image[None])
        inputs = [
            glance.model.apply(glance.variables, patches.resize(pixels, 95))[0][0]
        ]
        for y, x in np.asarray(place.corners[0]):
            cut = pixels[:, y : y + 95, x : x + 95]
            inputs.append(patch.model.apply(patch.variables, cut)[0][0])
        valid = [True, *np.asarray(place.valid[0])]
        wanted = algorithm_1(np.asarray(inputs), valid, "logits")
        np.testing.assert_allclose(found["confidence"][i], wanted[0], rtol=1e-4)
        np.testing.assert_array_equal(found["predicted"][i], wanted[1])


def test_macs(method):
    """Exit t costs t inputs, and AnchorNet once past the glance (2022, Sec. 3.4)."""
    one = multiply_adds.model_macs(Tiny(3), 95)
    anchornet = multiply_adds.model_macs(method.anchornet.model, 127)
    assert method.macs(127) == [one, 2 * one + anchornet, 3 * one + anchornet]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": 1}, "`inputs` is 1; allowed is 2 or more"),
        ({"fuse": "votes"}, "`fuse` is 'votes'; choose one of"),
    ],
)
def test_bad_sequence(method, changes, message):
    with pytest.raises(ValueError, match=message):
        anchornet.check(method._replace(**changes))


def test_networks_of_other_classes(method):
    other = method.glance._replace(metadata={"classes": ["a", "b"]})
    with pytest.raises(
        ValueError, match=r"different classes: .*glance: 3, named \['a', 'b'\]"
    ):
        anchornet.check(method._replace(glance=other))


def test_networks_that_know_no_names(method):
    """Converted weights carry no names: those of the others hold, or numbers."""
    nameless = [network._replace(metadata={}) for network in method[:3]]
    assert anchornet.check(method._replace(glance=nameless[1])).classes == [
        "a",
        "b",
        "c",
    ]
    assert anchornet.Sequence(*nameless, *method[3:]).classes == ["0", "1", "2"]
    other = nameless[1]._replace(model=Tiny(4))
    with pytest.raises(ValueError, match="different classes: .*glance: 4"):
        anchornet.check(method._replace(glance=other))


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, 90, "90x90 pixels.*95x95"),
        ({"inputs": 27}, 127, "`k` is 26; .* at most"),
        ({"iou_threshold": 1.5}, 127, "`iou_threshold` is 1.5; allowed is 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_before_compiling(method, changes, size, message):
    with pytest.raises(ValueError, match=message):
        anchornet.check_images(method._replace(**changes), size)
