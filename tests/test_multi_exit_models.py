"""MSDNet and RANet: the published numbers at every exit, and what an exit costs."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from anchornet_jax import models
from anchornet_jax.models import msdnet, multiply_adds, ranet
from anchornet_jax.runtime import torch_import
from tests.golden import recipe
from tests.selection import slow_but
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


def published(name, model):
    """Return variables by naming rule, normalised images, and logits of all exits."""
    golden = np.load(GOLDEN / f"{name.partition('_')[0]}.npz")
    shapes = json.loads((GOLDEN / "peers_state_shapes.json").read_text())[name]
    seed, gain = int(golden["seed"]), float(golden["gain"])
    state = {
        key: recipe.tensor(seed, key, tuple(shape), gain)
        for key, shape in shapes.items()
    }
    images = np.stack([recipe.image(int(s), 224) for s in golden["image_seeds"]])
    images = recipe.normalised(images)
    with jax.disable_jit():  # traced in line: half the time
        template = jax.eval_shape(model.init, jax.random.key(0), images)
    return torch_import.convert(state, template), images, golden[name]


@pytest.mark.parametrize("name", slow_but(["msdnet_4_4"], PUBLISHED))
def test_every_exit_equals_the_published_network(name):
    """Logits to 1e-4 of the largest; multiply-adds, counted lazily, to the last one.

    Each exit is traced once, for its count and to be run.
    """
    model = models.create(name, num_classes=1000)
    variables, carried, wanted = published(name, model)
    counts, macs = COUNTS[name]["at_224"], []
    assert multiply_adds.parameters(variables) == COUNTS[name]["parameters"]
    for k in range(model.exits):
        run = functools.partial(model.apply, exit=k, method="advance")
        with jax.disable_jit():
            traced, shape = jax.make_jaxpr(run, return_shape=True)(variables, carried)
        run = jax.jit(core.jaxpr_as_fun(traced), compiler_options=FAST)
        found = run(*jax.tree.leaves((variables, carried)))
        carried, logits = jax.tree.unflatten(jax.tree.structure(shape), found)
        assert sorted(carried) == sorted(model.carries(k))
        assert np.abs(logits - wanted[k]).max() < 1e-4 * np.abs(wanted[k]).max()
        macs.append(multiply_adds.count(traced.jaxpr) // len(logits))
    lazy = counts.get("multiply_adds_lazy", counts["multiply_adds"])
    assert np.cumsum(macs).tolist() == lazy


@pytest.mark.parametrize("name", TINY)
def test_exit_by_exit_is_the_whole_network(name, size=47):
    """For any image size; maps that are only passed on come back as they are."""
    model = TINY[name]
    variables = drawn(model, size)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))

    @jax.jit
    def run(variables, images):
        carried, answers = images, []
        for k in range(model.exits):
            given = dict(carried) if k else {}
            advance = functools.partial(model.apply, exit=k, method="advance")
            carried, logits = advance(variables, carried)
            answers.append(logits)
            assert all(carried[same] is given[same] for same in {*given} & {*carried})
        assert carried == {}
        return model.apply(variables, images), jnp.stack(answers, 1)

    (logits, out), answers = run(variables, images)
    np.testing.assert_allclose(answers, out["exit_logits"], 1e-5, 1e-6)
    np.testing.assert_array_equal(logits, out["exit_logits"][:, -1])
    assert (np.std(answers, (0, 2)) > 1e-3).all()


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
    """2018, Sec. 4: scale s of S up to layer L - (S - s); 0-based here."""
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
