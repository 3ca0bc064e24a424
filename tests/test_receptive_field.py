import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax.models import layers, receptive_field
from anchornet_jax.models.anchornet import EXTRACTOR, STEM, AnchorNet
from anchornet_jax.models.receptive_field import ReceptiveField

ROWS = [(row.kernel, row.stride) for row in (STEM, *EXTRACTOR)]
TABLE_1 = [  # 2022, Table 1: columns RF and OR
    (3, 111),
    (7, 55),
    (15, 27),
    (31, 25),
    (47, 23),
    (63, 21),
    (79, 19),
    (95, 17),
]


def test_table_1():
    fields = receptive_field.accumulate(ROWS)
    assert [(f.size, f.grid(224, 224)[0]) for f in fields] == TABLE_1
    assert fields[-1] == AnchorNet.field == (95, 8)


@pytest.mark.parametrize("seed", range(5))
def test_grid_equals_layer_by_layer(seed):
    rng = np.random.default_rng(seed)
    rows = [(int(k), int(s)) for k, s in rng.integers((1, 1), (6, 4), (5, 2))]
    field = receptive_field.accumulate(rows)[-1]
    for side in range(field.size, field.size + 40):
        n = side
        for kernel, stride in rows:
            n = (n - kernel) // stride + 1
        assert field.grid(side, field.size) == (n, 1)


def test_field_by_gradient():
    """One location of the convolutional extractor depends on its box and no more."""
    kernel = jnp.ones

    def extractor(image):  # [1, H, W, 1]; positive weights cannot cancel
        for k, s in ROWS:
            image = layers.depthwise(image, kernel((k, k, 1, 1)), s, 0)
        return image[0, :, :, 0]

    height, width = 127, 111  # non-square
    assert extractor(jnp.ones((1, height, width, 1))).shape == AnchorNet.field.grid(
        height, width
    )
    gradient = jax.jit(jax.grad(lambda image, at: extractor(image)[at[0], at[1]]))
    for location in [(0, 0), (4, 2), (2, 1)]:
        seen = gradient(jnp.ones((1, height, width, 1)), jnp.array(location))
        rows, columns = np.nonzero(np.asarray(seen)[0, :, :, 0])
        y, x = AnchorNet.field.corner(location)
        size = AnchorNet.field.size
        assert (rows.min(), rows.max()) == (y, y + size - 1)
        assert (columns.min(), columns.max()) == (x, x + size - 1)
        assert len(rows) == size**2


def test_corner_and_back():
    locations = np.stack(np.meshgrid(range(17), range(17), indexing="ij"), -1)
    field = ReceptiveField(95, 8)
    np.testing.assert_array_equal(field.corner(locations), 8 * locations)
    np.testing.assert_array_equal(field.location(field.corner(locations)), locations)
    assert field.location(field.corner((3, 16))) == (3, 16)


def test_too_small_an_image():
    with pytest.raises(ValueError, match=r"94x200 pixels.*95x95"):
        ReceptiveField(95, 8).grid(94, 200)


@pytest.mark.parametrize("rows", [[], [(0, 1)], [(3, 0)]])
def test_bad_rows(rows):
    with pytest.raises(ValueError, match="`layers`"):
        receptive_field.accumulate(rows)
