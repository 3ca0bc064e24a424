import jax
import jax.numpy as jnp
import pytest
from jax import lax

from anchornet_jax import models
from anchornet_jax.models import multiply_adds

SIDE = jax.ShapeDtypeStruct((8, 8), "float32")


def test_anchornet():
    model = models.create("anchornet", num_classes=1000)
    # 2022, Sec. 3.2: 60 MFLOPs; 60.54 M by PyTorch's counters.
    assert multiply_adds.model_macs(model, 224) == 60_538_544
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    # 674,984 in the published state dict less 288 that are never used.
    assert multiply_adds.parameters(variables) == 674_696


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda x: x @ x, 512),
        (lambda x: jnp.einsum("ij,ij->i", x, x), 64),
        (lambda x: x + x, 0),
        (jax.jit(lambda x: jnp.tanh(x @ x)), 512),
        (lambda x: lax.scan(lambda c, _: (c @ x, None), x, length=10)[0], 5120),
        (lambda x: lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x), 512),
        (lambda x: lax.fori_loop(0, x[0, 0].astype(int), lambda i, c: c @ x, x), 512),
        (
            lambda x: lax.platform_dependent(
                x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x
            ),
            512,
        ),
        (jax.vmap(lambda row: row @ row), 64),
        (jax.checkpoint(lambda x: x @ x), 512),
    ],
)
def test_programs(function, macs):
    assert multiply_adds.macs(function, SIDE) == macs


@pytest.mark.parametrize(
    ("groups", "macs"), [(1, 6 * 6 * 9 * 4 * 8), (4, 6 * 6 * 9 * 8)]
)
def test_convolution(groups, macs):
    images = jax.ShapeDtypeStruct((1, 8, 8, 4), "float32")
    kernel = jax.ShapeDtypeStruct((3, 3, 4 // groups, 8), "float32")

    def convolve(x, k):
        return lax.conv_general_dilated(
            x,
            k,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    assert multiply_adds.macs(convolve, images, kernel) == macs
