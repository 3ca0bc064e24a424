"""MSDNet and RANet: the published numbers at every exit, and what an exit costs."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.models import msdnet, multiply_adds, ranet
from anchornet_jax.runtime import torch_import
from tests.golden import recipe
from tests.tiny import drawn

GOLDEN = pathlib.Path(__file__).parent / "golden"
COUNTS = json.loads((GOLDEN / "peers_counts.json").read_text())
PUBLISHED = ["msdnet_4_4", "msdnet_7_7", "ranet_32", "ranet_64"]
TINY = {
    "msdnet": msdnet.MSDNet(
        3, base=2, step=1, exits=3, channels=4, growth=4, factors=(1, 2)
    ),
    "ranet": ranet.RANet(3, channels=4, growth=4, blocks=2, step=2, factors=(2, 1)),
}
# What compiles fast suffices here: programs run but once.
FAST = {"xla_backend_optimization_level": 0}


@functools.cache
def template(name):
    """Return the model and the shapes of its variables."""
    model = models.create(name, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    with jax.disable_jit():  # traced in line: half the time
        return model, jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_exit_equals_the_published_network(name):
    """Weights by naming rule; logits of all exits to 1e-4 of the largest."""
    golden = np.load(GOLDEN / f"{name.partition('_')[0]}.npz")
    shapes = json.loads((GOLDEN / "peers_state_shapes.json").read_text())[name]
    seed, gain = int(golden["seed"]), float(golden["gain"])
    state = {
        key: recipe.tensor(seed, key, tuple(shape), gain)
        for key, shape in shapes.items()
    }
    model, wanted = template(name)
    variables = torch_import.convert(state, wanted)
    images = np.stack([recipe.image(int(s), 224) for s in golden["image_seeds"]])
    run = jax.jit(lambda *args: model.apply(*args)[1], compiler_options=FAST)
    found = run(variables, recipe.normalised(images))["exit_logits"]
    for one, other in zip(np.moveaxis(found, 1, 0), golden[name], strict=True):
        assert np.abs(one - other).max() < 1e-4 * np.abs(other).max()


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_exit_pays_for_what_it_needs(name):
    """Exactly the multiply-adds of the published networks, counted lazily."""
    model, variables = template(name)
    counts = COUNTS[name]["at_224"]
    carried = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    macs = []
    for k in range(model.exits):

        def advance(variables, carried):
            return model.apply(variables, carried, exit=k, method="advance")  # noqa: B023

        with jax.disable_jit():
            macs.append(multiply_adds.macs(advance, variables, carried))
            carried, _ = jax.eval_shape(advance, variables, carried)
        assert sorted(carried) == sorted(model.carries(k))
    wanted = counts.get("multiply_adds_lazy", counts["multiply_adds"])
    assert np.cumsum(macs).tolist() == wanted
    assert multiply_adds.parameters(variables) == COUNTS[name]["parameters"]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [32, 47])
def test_exit_by_exit_is_the_whole_network(name, size):
    """For any image size; maps that are only passed on come back as they are."""
    model = TINY[name]
    variables = drawn(model, size)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))
    logits, out = jax.jit(model.apply)(variables, images)
    carried = images
    for k in range(model.exits):
        run = functools.partial(model.apply, exit=k, method="advance")
        kept = set(model.carries(k)) & set(model.carries(k - 1) if k else ())
        left, found = run(variables, carried)
        assert all(left[name] is carried[name] for name in kept)
        np.testing.assert_allclose(found, out["exit_logits"][:, k], 1e-4, 1e-5)
        assert np.std(found) > 1e-3
        carried = left
    assert carried == {}
    np.testing.assert_array_equal(logits, out["exit_logits"][:, -1])


@pytest.mark.parametrize("name", TINY)
def test_training_gives_all_heads(name):
    model = TINY[name].clone(dtype="bfloat16")
    variables = drawn(model, 32)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    (logits, out), updates = jax.eval_shape(train, variables, images)
    assert (logits.shape, logits.dtype) == ((2, model.exits, 3), jnp.float32)
    assert out == {}
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )


def test_scales_end_after_equal_parts():
    """35 layers: a scale ends with layers 10, 19 and 28 (published state dict)."""
    rows = msdnet.table(7, 7, 5, 4)
    assert [n for n, row in enumerate(rows, 1) if row.drops] == [10, 19, 28]
    assert [row.finest for row in rows] == [0] * 9 + [1] * 9 + [2] * 9 + [3] * 8


def test_scales_are_computed_up_to_where_an_exit_needs_them():
    """Sec. 5: scale s of S up to layer L - (S - s); 0-based here."""
    first = msdnet.schedule(7, 7, 5, 4)[0]
    last = {s: max(n for n, scale in first.computes if scale == s) for s in range(4)}
    assert last == {0: 4, 1: 5, 2: 6, 3: 7}


def test_resize_keeps_the_corners():
    """As torch.nn.functional.interpolate(mode="bilinear", align_corners=True)."""
    x = jnp.arange(3.0).reshape(1, 3, 1, 1) + jnp.arange(2.0).reshape(1, 1, 2, 1) * 10
    found = ranet.resize(x, (5, 3))[0, :, :, 0]
    np.testing.assert_allclose(
        found, np.add.outer([0, 0.5, 1, 1.5, 2], [0, 5, 10]), atol=1e-6
    )
    assert ranet.resize(x, (3, 2)) is x
    np.testing.assert_array_equal(ranet.resize(x, (1, 1)), [[[[0]]]])


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: msdnet.MSDNet(3, step=0), "`step`.* are 7, 0, 5, 32 and 16; allowed"),
        (lambda: ranet.RANet(3, growth=2), "are 64, 2, 8 and 2; allowed is 1 or more"),
    ],
)
def test_refused(create, message):
    with pytest.raises(ValueError, match=message):
        create()
