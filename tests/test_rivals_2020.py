"""HCGNet and BagNet: the numbers of the published PyTorch networks."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.methods import localize
from anchornet_jax.models.receptive_field import ReceptiveField
from anchornet_jax.runtime import torch_import
from tests.golden import recipe
from tests.selection import slow_but

GOLDEN = pathlib.Path(__file__).parent / "golden"
# What compiles fast suffices here: programs run but once.
FAST = {"xla_backend_optimization_level": 0}


def published(name, model, size=224):
    """Return variables by naming rule, normalised images, and the golden arrays."""
    stem = "bagnet" if name.startswith("bagnet") else "hcgnet"
    golden = dict(np.load(GOLDEN / f"{stem}.npz"))
    shapes = json.loads((GOLDEN / "peers_state_shapes.json").read_text())[name]
    seed, gain = int(golden["seed"]), float(golden["gain"])
    state = {
        key: recipe.tensor(seed, key, tuple(shape), gain)
        for key, shape in shapes.items()
    }
    images = np.stack([recipe.image(int(s), size) for s in golden["image_seeds"]])
    with jax.disable_jit():  # traced in line: half the time
        template = jax.eval_shape(
            model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
        )
    return torch_import.convert(state, template), recipe.normalised(images), golden


def close(found, wanted):
    """Compare to 1e-4 of the largest value."""
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("size", slow_but([95], [95, 224]))
@pytest.mark.parametrize("name", slow_but(["hcgnet_b"], ["hcgnet_b", "hcgnet_c"]))
def test_hcgnet_equals_the_published_network(name, size):
    model = models.create(name, num_classes=1000)
    variables, images, golden = published(name, model, size)
    apply = jax.jit(lambda *args: model.apply(*args)[0], compiler_options=FAST)
    close(apply(variables, images), golden[f"{name}_{size}"])


@pytest.mark.parametrize("q", slow_but([33], [9, 17, 33]))
def test_bagnet_equals_the_published_network(q):
    """Logits, classes, and the class map of each image's class."""
    name = f"bagnet{q}"
    model = models.create(name, num_classes=1000)
    variables, images, golden = published(name, model)

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(variables, images):
        logits, out = model.apply(variables, images)
        classes = logits.argmax(-1)
        (heat,) = model.contributions(variables, out, classes)
        return logits, classes, heat, model.classify(variables, out)

    logits, classes, heat, (same, branch) = run(variables, images)
    close(logits, golden[name])
    close(same, golden[name])
    np.testing.assert_array_equal(classes, golden[f"{name}_class"])
    assert heat.shape[1:] == model.field.grid(224, 224)
    assert model.field == (q, 8) and model.fields == (model.field,)
    close(heat, golden[f"{name}_heat"])
    means = np.asarray(heat).mean((1, 2))
    close(means, np.asarray(logits)[np.arange(len(classes)), classes])
    assert not branch.any()


def test_heatmaps_for_patches_of_another_size():
    """The mean of what lies inside a patch; the centre's value where that says nothing."""
    own, heatmap = ReceptiveField(33, 8), np.arange(24.0 * 24).reshape(1, 24, 24)
    wide = localize.regrid(heatmap, own, ReceptiveField(95, 8), (224, 224))
    assert wide.shape == (1, 17, 17)  # AnchorNet's grid
    np.testing.assert_allclose(wide[0, 3, 5], heatmap[0, 3:11, 5:13].mean())
    own, heatmap = ReceptiveField(77, 8), np.arange(19.0 * 19).reshape(1, 19, 19)
    for size, shift in ((95, 1), (63, -1)):
        field = ReceptiveField(size, 8)
        found = localize.regrid(heatmap, own, field, (224, 224), ordered=True)
        assert found.shape[1:] == field.grid(224, 224)
        np.testing.assert_array_equal(
            found[0, 4:9, 4:9], heatmap[0, 4 + shift : 9 + shift, 4 + shift : 9 + shift]
        )
    assert np.isnan(found[0, 0]).all() and np.isnan(found[0, -1]).all()
