import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax.models import layers


@pytest.mark.parametrize(
    ("height", "width", "side", "stride", "padding"),
    [
        (11, 11, 3, 1, 0),
        (12, 9, 3, 2, 0),
        (11, 10, 3, 2, 1),
        (12, 12, 5, 2, 2),
        (9, 9, 5, 1, 2),
        (5, 5, 5, 1, 0),
    ],
)
def test_depthwise_equals_native(height, width, side, stride, padding, key):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (2, height, width, 6))
    kernel = jax.random.normal(keys[1], (side, side, 1, 6))
    where = {"stride": stride, "padding": padding}

    @jax.jit
    def run(x, kernel, seed):
        ours, pull = jax.vjp(
            lambda *a: layers.depthwise(*a, stride, padding), x, kernel
        )
        native, pull_native = jax.vjp(
            lambda *a: layers._native(*a, groups=6, **where), x, kernel
        )
        gradient = jax.random.normal(seed, ours.shape)
        return (ours, *pull(gradient)), (native, *pull_native(gradient))

    for one, other in zip(*run(x, kernel, keys[2])):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_depthwise_compiles_natively_elsewhere():
    """GPU and TPU keep the grouped convolution; the choice falls at lowering."""
    x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 1, 4))
    function = jax.jit(lambda x, k: layers.depthwise(x, k, 1, 0))
    texts = {
        platform: function.trace(x, kernel)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "stablehlo.convolution" not in texts["cpu"]
    assert "stablehlo.convolution" in texts["cuda"]
    assert "stablehlo.convolution" in texts["tpu"]


def test_swish_and_its_gradient():
    x = jnp.linspace(-30, 30, 201)
    np.testing.assert_allclose(layers.swish(x), jax.nn.swish(x), atol=1e-6)
    gradient = jax.vmap(jax.grad(layers.swish))(x)
    np.testing.assert_allclose(gradient, jax.vmap(jax.grad(jax.nn.swish))(x), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_equals_native(stride, key):
    x = jax.random.normal(key, (2, 7, 8, 5))
    conv = layers.Conv(3, stride=stride)
    variables = conv.init(key, x)
    native = layers._native(
        x, variables["params"]["kernel"], stride=stride, padding=0, groups=1
    )
    np.testing.assert_allclose(conv.apply(variables, x), native, atol=1e-5)
