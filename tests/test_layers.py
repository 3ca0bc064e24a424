import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from anchornet_jax.models import layers


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def assert_same(ours, native, **arguments):
    """Compare two forms of one convolution: the results and both gradients."""

    # Compiles in half the time, and runs but once.
    fast = {"xla_backend_optimization_level": 0}

    @functools.partial(jax.jit, compiler_options=fast)
    def run(x, kernel):
        results = []
        for form in (ours, native):
            result, pull = jax.vjp(form, x, kernel)
            results.append((result, *pull(jnp.cos(result))))
        return results

    for one, other in zip(*run(**arguments)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "side", "stride", "padding", "dilation"),
    [
        (11, 11, 3, 1, 0, 1),
        (12, 9, 3, 2, 0, 1),
        (11, 10, 3, 2, 1, 1),
        (12, 12, 5, 2, 2, 1),
        (9, 9, 5, 1, 2, 1),
        (5, 5, 5, 1, 0, 1),
        (9, 8, 3, 1, 2, 2),
        (3, 3, 3, 1, 2, 2),
        (12, 11, 3, 2, 1, 3),
    ],
)
def test_depthwise_equals_native(height, width, side, stride, padding, dilation):
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    assert_same(
        functools.partial(layers.depthwise, **where),
        functools.partial(layers.native_convolution, groups=6, **where),
        x=normal(2, height, width, 6),
        kernel=normal(side, side, 1, 6),
    )


@pytest.mark.parametrize(
    ("channels", "features", "groups", "stride"),
    [(8, 8, 2, 1), (40, 20, 5, 2), (72, 72, 9, 1), (80, 160, 2, 2)],
)
def test_grouped_equals_native(channels, features, groups, stride):
    where = {"stride": stride, "padding": 1, "groups": groups}
    assert_same(
        functools.partial(layers.grouped, **where),
        functools.partial(layers.native_convolution, **where),
        x=normal(2, 7, 6, channels),
        kernel=normal(3, 3, channels // groups, features),
    )


@pytest.mark.parametrize(
    ("images", "height", "width", "features", "side", "stride", "padding", "dilation"),
    [
        (24, 9, 8, 6, 3, 1, 1, 1),
        (25, 12, 11, 5, 3, 2, 0, 1),
        (24, 13, 13, 4, 7, 2, 3, 1),
        (24, 7, 6, 4, 3, 1, 2, 2),
    ],
)
def test_gradient_of_dense_kernel(
    images, height, width, features, side, stride, padding, dilation, monkeypatch
):
    """As products it is XLA's, to 1e-5 of the largest entry."""
    monkeypatch.setattr(layers, "MANY_PIXELS", 1)
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    native = functools.partial(layers.native_convolution, groups=1, **where)

    @jax.jit
    def run(x, kernel):
        wanted, pull = jax.vjp(native, x, kernel)
        found, ours = jax.vjp(
            lambda *args: layers.dense(*args, *where.values()), x, kernel
        )
        return (found, *ours(jnp.cos(wanted))), (wanted, *pull(jnp.cos(wanted)))

    x, kernel = normal(images, height, width, 3), normal(side, side, 3, features)
    for found, wanted in zip(*run(x, kernel)):
        assert abs(found - wanted).max() <= 1e-5 * abs(wanted).max()


@pytest.mark.parametrize(
    ("platform", "images", "size", "loops"),
    [
        ("cpu", 24, 20, True),
        ("cpu", 23, 20, False),
        ("cpu", 24, 19, False),
        ("cuda", 24, 20, False),
        ("tpu", 24, 20, False),
    ],
)
def test_form_of_gradient_of_dense_kernel(platform, images, size, loops):
    """A loop over images on CPU alone, in large batches of large maps."""
    x, kernel = jnp.zeros((images, size, size, 2)), jnp.zeros((3, 3, 2, 2))
    gradient = jax.jit(jax.grad(lambda k: layers.dense(x, k, 1, 1).sum()))
    lowered = gradient.trace(kernel).lower(lowering_platforms=(platform,))
    assert ("stablehlo.while" in lowered.as_text()) == loops


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


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "zeros"),
    [  # TensorFlow's tf.nn.convolution, "SAME"
        (224, 3, 2, (0, 1)),
        (224, 5, 2, (1, 2)),
        (95, 3, 2, (1, 1)),
        (95, 5, 2, (2, 2)),
        (56, 3, 1, (1, 1)),
        (7, 1, 2, (0, 0)),
        (2, 3, 4, (0, 1)),
    ],
)
def test_same_padding(size, kernel, stride, zeros):
    assert layers.same_padding(size, kernel, stride) == zeros


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 1), (1, 2)])
def test_same_convolution(kernel, stride, groups, key):
    """One side even and one odd, in every form of the convolution."""
    x = normal(2, 12, 9, 6)
    where = {"groups": groups, "padding": layers.SAME}
    conv = layers.Conv(6, kernel, stride, **where)
    variables = conv.init(key, x)
    wanted = lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    np.testing.assert_allclose(conv.apply(variables, x), wanted, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_equals_native(stride, key):
    x = jax.random.normal(key, (2, 7, 8, 5))
    conv = layers.Conv(3, stride=stride)
    variables = conv.init(key, x)
    native = layers.native_convolution(
        x, variables["params"]["kernel"], stride=stride, padding=0, groups=1
    )
    np.testing.assert_allclose(conv.apply(variables, x), native, atol=1e-5)


@pytest.mark.parametrize(("platform", "count"), [("cpu", 4), ("cuda", 1), ("tpu", 1)])
def test_grouped_compiles_natively_elsewhere(platform, count):
    """Four blocks of 32 channels on CPU, one grouped convolution on GPU and TPU."""
    x, kernel = jnp.zeros((1, 8, 8, 128)), jnp.zeros((3, 3, 4, 128))
    function = jax.jit(lambda x, k: layers.grouped(x, k, 1, 1, 32))
    lowered = function.trace(x, kernel).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.convolution") == count


@pytest.mark.parametrize("size", [6, 7])
def test_pooling(size):
    x = np.maximum(normal(2, size, size + 1, 3), 0)

    @jax.jit
    def run(x):
        native = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        pooled = layers.average_pool(x, 2, 2), nn.avg_pool(x, (2, 2), (2, 2))
        return *pooled, layers.max_pool(x, 3, 2, 1), native

    average, native_average, largest, native_largest = run(x)
    np.testing.assert_allclose(average, native_average, atol=1e-6)
    np.testing.assert_array_equal(largest, native_largest)
