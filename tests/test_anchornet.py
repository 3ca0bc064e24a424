import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.methods import patches
from anchornet_jax.runtime import torch_import
from tests.golden import recipe

GOLDEN = pathlib.Path(__file__).parent / "golden"


@functools.cache
def parity():
    """Run the published weights' stand-ins: (golden arrays, images, variables, ...)."""
    golden = np.load(GOLDEN / "anchornet_2022.npz")
    shapes = json.loads((GOLDEN / "state_shapes.json").read_text())["anchornet_2022"]
    state = {
        name: recipe.tensor(
            int(golden["seed"]), name, tuple(shape), float(golden["gain"])
        )
        for name, shape in shapes.items()
    }
    images = np.stack([recipe.image(int(s), 224) for s in golden["image_seeds"]])
    model = models.create("anchornet", num_classes=1000)
    template = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
    )
    variables = torch_import.convert(state, template)
    images = recipe.normalised(images)
    logits, out = jax.jit(model.apply)(variables, images)
    return golden, model, variables, images, logits, out["features"]


def close(ours, golden, tolerance=1e-5):
    """Compare relative to the largest golden value."""
    error = np.abs(np.asarray(ours) - golden).max() / np.abs(golden).max()
    assert error < tolerance, error


def test_logits_and_features():
    golden, _, _, _, logits, features = parity()
    close(logits, golden["logits"])
    close(features[:2, :, :, :8], golden["features"])


def test_heatmap_and_corners():
    golden, model, variables, _, logits, features = parity()
    heatmap = model.heatmap(variables, features, logits.argmax(-1))
    close(heatmap, golden["cam"])
    corners, valid = patches.select(heatmap, model.field, k=4, iou_threshold=0.3)
    assert valid.all()
    np.testing.assert_array_equal(corners, golden["corners"])


def test_resized():
    golden, model, _, images, _, _ = parity()
    small = patches.resize(jnp.asarray(images[:1]), model.field.size)
    close(small[0], golden["resized"])


def test_heatmap_adds_up_to_the_logit():
    """The logit is the sum of what the locations contribute, and the bias."""
    _, model, variables, _, logits, features = parity()
    classes = logits.argmax(-1)
    heatmap = model.heatmap(variables, features, classes)
    total = heatmap.mean((1, 2)) * features.shape[-1]
    bias = variables["params"]["fc"]["bias"][classes]
    np.testing.assert_allclose(
        total + bias, np.take_along_axis(logits, classes[:, None], 1)[:, 0], rtol=1e-4
    )


def test_contributions_are_the_heatmap():
    """In the units of the logit, whether the last layers or the mean come first."""
    _, model, variables, images, logits, features = parity()
    _, out = jax.jit(model.apply)(variables, images)
    classes = logits.argmax(-1)
    (maps,) = model.contributions(variables, out, classes)
    heatmap = model.heatmap(variables, features, classes) * features.shape[-1]
    bias = variables["params"]["fc"]["bias"][classes]
    close(maps, heatmap + bias[:, None, None])


@pytest.mark.parametrize("shape", [(95, 95), (95, 131), (224, 103)])
def test_any_size_from_the_field_up(shape):
    model = models.create("anchornet", num_classes=3)
    images = jax.ShapeDtypeStruct((2, *shape, 3), "float32")
    (logits, out), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 3)
    assert out["features"].shape == (2, *model.field.grid(*shape), 512)


def test_too_small_an_image():
    model = models.create("anchornet", num_classes=3)
    images = jax.ShapeDtypeStruct((1, 94, 224, 3), "float32")
    with pytest.raises(ValueError, match="94x224.*95x95"):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_bfloat16_keeps_float32_parameters_and_logits():
    model = models.create("anchornet", num_classes=3, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((1, 95, 95, 3), "float32")
    (logits, out), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert logits.dtype == jnp.float32 and out["features"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_unknown_name():
    with pytest.raises(
        ValueError, match="`name` is 'anchor'; choose one of .*anchornet"
    ):
        models.create("anchor", num_classes=3)
