"""Tiles give the map of the whole image; a location sees what the arithmetic says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import folding
from anchornet_jax.methods import localize, tiles
from anchornet_jax.models import Network, receptive_field
from tests import tiny


@functools.cache
def network():
    """Return AnchorNet and variables that keep its signal alive."""
    model = models.create("anchornet", num_classes=10)
    return model, tiny.drawn(model, 127)


class Counting:
    """A network that counts how often a stage of it is traced."""

    def __init__(self, model):
        self._model, self.traced = model, 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, *args, **kwargs):
        self.traced += 1
        return self._model.apply(*args, **kwargs)


def image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("height, width, tile", [(203, 340, 9), (181, 127, 64)])
def test_equal_to_the_whole(height, width, tile, folded):
    """Tiles that fit, that do not, and that are larger than the map; both sides differ."""
    model, variables = network()
    if folded:
        found = folding.fold(Network(model, variables, {}), 127)
        model, variables = found.model, found.variables
    pixels = image(height, width)
    run = jax.jit(functools.partial(localize.look, model))
    logits, _, (heatmap,) = run(variables, pixels[None])
    found = tiles.localize(model, variables, pixels, tile=tile)
    spread = np.abs(heatmap).max()
    assert found.heatmap.shape == heatmap.shape[1:]
    np.testing.assert_allclose(found.heatmap / spread, heatmap[0] / spread, atol=1e-6)
    spread = np.abs(logits).max()  # a small one is what is left of large parts
    np.testing.assert_allclose(found.logits / spread, logits[0] / spread, atol=1e-6)


def test_sizes_share_programs():
    """Nothing compiles per image once its maps are as large as a tile."""
    model, variables = network()
    model = Counting(model)
    tiles.localize(model, variables, image(190, 180), tile=5)
    assert model.traced == 2 * len(model.stages)
    tiles.localize(model, variables, image(167, 230), tile=5)
    assert model.traced == 2 * len(model.stages)


@pytest.mark.parametrize("grid", [(1, 1), (7, 3), (12, 20), (9, 9)])
def test_split(grid):
    """Every location is fresh in one tile, and all tiles have one shape."""
    count = np.zeros(grid, int)
    shapes = set()
    for tile in tiles.split(grid, 4):
        count[tile.whole()] += 1
        shapes.add(tuple(e - b for b, e in zip(tile.begin, tile.end)))
        own = np.zeros([e - b for b, e in zip(tile.begin, tile.end)])
        assert own[tile.inside()].shape == count[tile.whole()].shape
    assert (count == 1).all() and len(shapes) == 1


def test_stages_see_what_the_arithmetic_says():
    """By gradient, at every level: a location depends on its square and no more."""
    model, variables = network()
    fields = receptive_field.accumulate(
        (field.size, field.stride) for field in model.stages
    )
    assert fields[-1] == model.field
    height, width = 119, 103
    shapes = jax.eval_shape(
        lambda v, x: model.apply(v, x, number=0, method="stage"),
        *(variables, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)),
    )
    assert shapes.shape[1:3] == fields[0].grid(height, width)

    def value(pixels, at, level):
        x = pixels
        for number in range(level + 1):
            # Gates of a fixed mean: squeeze-excite alone sees beyond the field.
            squeezed = variables["params"][f"bneck_{number}"]["se"]["se1"][
                "kernel"
            ].shape[2]
            mean = jnp.full((1, 1, 1, squeezed), 0.3)
            x = model.apply(variables, x, number=number, mean=mean, method="stage")
        return x[0, at[0], at[1]].sum()

    pixels = jax.random.normal(jax.random.key(0), (1, height, width, 3))
    for level, field in enumerate(fields):
        rows, columns = field.grid(height, width)
        gradient = jax.jit(jax.grad(functools.partial(value, level=level)))
        for at in [(0, 0), (rows - 1, columns // 2)]:
            seen = np.abs(np.asarray(gradient(pixels, jnp.array(at)))[0]).sum(-1) > 0
            y, x = field.corner(at)
            expected = np.zeros((height, width), bool)
            expected[y : y + field.size, x : x + field.size] = True
            assert not (seen & ~expected).any()
            for axis in (0, 1):  # and reaches its edges
                near = np.flatnonzero(seen.any(axis))
                first = at[1 - axis] * field.stride
                assert (near[0], near[-1]) == (first, first + field.size - 1)


def test_refusals():
    model, variables = network()
    with pytest.raises(ValueError, match="94x200"):
        tiles.localize(model, variables, image(94, 200))
    with pytest.raises(ValueError, match="`tile` is 0"):
        tiles.localize(model, variables, image(127, 127), tile=0)
    with pytest.raises(ValueError, match="`model` is ResNet"):
        tiles.localize(models.create("resnet10", 10), {}, image(127, 127))
