import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.inference import folding
from anchornet_jax.models import layers
from anchornet_jax.runtime.networks import Network


def draw(model, size):
    """Return a network with drawn parameters and statistics, its signal kept alive."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        drawn = rng.standard_normal(shape.shape, np.float32)
        if shape.ndim > 1:
            return 1.5 * drawn / np.sqrt(np.prod(shape.shape[:-1]), dtype=np.float32)
        return abs(drawn) + 0.5 if path[-1].key in ("var", "scale") else 0.2 * drawn

    return Network(model, jax.tree_util.tree_map_with_path(leaf, shapes), {})


def outputs(network, size, count=2):
    images = jax.random.normal(jax.random.key(1), (count, size, size, 3))
    return jax.jit(network.model.apply)(network.variables, images)


def norms(network):
    """Count the BatchNorms that still have statistics."""
    paths = jax.tree_util.tree_leaves_with_path(network.variables.get("batch_stats"))
    return sum(path[-1].key == "mean" for path, _ in paths)


@pytest.mark.parametrize(
    ("name", "overrides", "size", "stay"),
    [
        ("anchornet", {}, 103, 0),
        ("resnet10", {}, 64, 0),
        # Each of the 8 dense layers normalises what was concatenated; so do the three
        # transitions and the end. The stem and the layers' second BatchNorms are folded.
        ("densenet121", {"depths": (2, 2, 2, 2)}, 64, 8 + 3 + 1),
    ],
)
def test_same_outputs(name, overrides, size, stay):
    network = draw(models.create(name, 7, **overrides), size)
    folded = folding.fold(network, size)
    assert norms(folded) == stay
    for one, other in zip(
        jax.tree.leaves(outputs(network, size)), jax.tree.leaves(outputs(folded, size))
    ):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())
        assert np.std(one) > 1e-3


def test_bfloat16():
    network = draw(models.create("resnet10", 7), 64)
    half = folding.fold(network, 64, "bfloat16")
    kernels = [x for x in jax.tree.leaves(half.variables) if x.ndim == 4]
    assert all(kernel.dtype == jnp.bfloat16 for kernel in kernels)
    (one, _), (other, _) = outputs(network, 64), outputs(half, 64)
    assert other.dtype == jnp.float32
    assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max()


class Shared(nn.Module):
    """A network of another origin; its second convolution is read twice."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="conv1")(x)
        x = nn.relu(nn.BatchNorm(True, name="bn1", use_scale=False)(x))
        x = layers.Conv(4, name="conv2")(x)
        y = nn.BatchNorm(True, name="bn2")(x)
        return (x * y).mean((1, 2)), {}


def test_what_two_read_is_left_alone():
    network = draw(Shared(), 9)
    folded = folding.fold(network, 9)
    assert list(folded.variables["batch_stats"]) == ["bn2"]
    np.testing.assert_allclose(
        outputs(network, 9)[0], outputs(folded, 9)[0], rtol=1e-4, atol=1e-5
    )


def test_type_that_a_network_does_not_offer():
    with pytest.raises(ValueError, match="`dtype` is 'bfloat16' for Shared; choose"):
        folding.fold(draw(Shared(), 9), 9, "bfloat16")
