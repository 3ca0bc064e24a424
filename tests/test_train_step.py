import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.methods import preprocessing, views
from anchornet_jax.runtime import checkpoint, parallel
from anchornet_jax.training import objectives, optimizers, train_step
from anchornet_jax.training.objectives import NETWORK
from tests.tiny import Tiny, tiny  # noqa: F401

SGD = {
    "learning_rate": 0.1,
    "schedule": "cosine",
    "warmup": 0.0,
    "boundaries": (),
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
}


def batches(count, size=16):
    """Yield random batches with leading axes [1, B]."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            "image": rng.integers(0, 256, (1, size, 96, 96, 3), np.uint8),
            "label": rng.integers(0, 3, (1, size)).astype(np.int32),
        }


def setup(view_name="full", seed=0):
    """Return (state, step function) of a tiny network."""
    objective = classification(Tiny(3, axis_name=parallel.AXIS), view_name)
    optimizer = optimizers.create(10, **SGD)
    state = train_step.create_state(objective, optimizer, seed)
    return state, train_step.make_train_step(objective, optimizer, seed)


def classification(model, view_name="full"):
    """Return the objective of a network on a view, from images of 96 pixels."""
    view = views.make(view_name, models.create("anchornet", 3), k=3)
    return objectives.classification(model, view, 96)


@pytest.mark.parametrize("view", ["full", "random"])
def test_four_devices_equal_one(view):
    """The same loss, statistics and parameters, whatever the number of devices."""
    assert jax.local_device_count() == 4
    state, step = setup(view)
    one = jax.jit(
        jax.vmap(step, in_axes=(None, None, 0), out_axes=None, axis_name=parallel.AXIS)
    )
    four = parallel.train_step(step)
    states = [state, parallel.replicate(state)]
    for batch in batches(3):
        split = jax.tree.map(lambda a: parallel.shard(a[0]), batch)
        (states[0], sums), (states[1], others) = (
            one(states[0], None, batch),
            four(states[1], None, split),
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, others
        )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        *jax.device_get(states),
    )


def test_step_is_plain_sgd():
    """One step equals the gradient of the mean loss, computed plainly."""
    state, step = setup()
    batch = next(batches(1))
    new, sums = jax.vmap(
        step, in_axes=(None, None, 0), out_axes=None, axis_name=parallel.AXIS
    )(state, None, batch)
    model, images, labels = (
        Tiny(3),
        preprocessing.normalise(batch["image"][0]),
        batch["label"][0],
    )

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats[NETWORK]}
        (logits, _), _ = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[jnp.arange(16), labels].mean()

    value, gradient = jax.value_and_grad(loss)(state.params[NETWORK])
    np.testing.assert_allclose(sums["loss"] / sums["count"], value, rtol=1e-5)
    # Nesterov's first step is 1.9 times the gradient; decay 1e-4 on every parameter.
    wanted = jax.tree.map(
        lambda p, g: p - 0.1 * 1.9 * (g + 1e-4 * p), state.params[NETWORK], gradient
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6),
        new.params[NETWORK],
        wanted,
    )


def test_score_ignores_filling_rows():
    def score(networks_, batch):
        return {"score": jnp.float32(batch["image"] == batch["label"])}

    batch = {
        "image": np.array([[0, 1], [2, 0]]),
        "label": np.array([[0, 2], [2, 0]]),
        "mask": np.array([[True, True], [True, False]]),
    }
    assert train_step.mean_score(score, None, [batch, batch]) == pytest.approx(2 / 3)


class Plain(nn.Module):
    """A network without BatchNorm."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        """Return logits of 64 blocks' means."""
        side = images.shape[1] // 8
        x = nn.avg_pool(images, (side, side), (side, side)).reshape(len(images), -1)
        return nn.Dense(self.num_classes)(x), {}


def one_step(model, view_name, accumulate, count=1):
    """Return the state and the last sums of steps on four devices, 16 images each."""
    objective = classification(model, view_name)
    optimizer = optimizers.create(10, **SGD)
    state = parallel.replicate(train_step.create_state(objective, optimizer, 0))
    step = parallel.train_step(
        train_step.make_train_step(objective, optimizer, 0, accumulate)
    )
    for batch in batches(count):
        state, sums = step(
            state, None, jax.tree.map(lambda a: parallel.shard(a[0]), batch)
        )
    return jax.device_get((state, sums))


@pytest.mark.parametrize("view", ["full", "random"])
def test_accumulated_equals_one_large_batch(view):
    whole, parts = (one_step(Plain(3), view, n, count=2) for n in (1, 4))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        whole,
        parts,
    )


def test_accumulation_normalises_each_part():
    """Statistics are updated once per part, as in PyTorch: 0.9 of the old stay."""
    model = Tiny(3, axis_name=parallel.AXIS)
    images = preprocessing.normalise(next(batches(1))["image"][0])
    state, sums = one_step(model, "full", 2)
    initial = train_step.create_state(classification(model), optax.sgd(0.1), 0)
    # Four devices hold four images each; part one is the first two of each.
    parts = images.reshape(4, 2, 2, 96, 96, 3).swapaxes(0, 1).reshape(2, 8, 96, 96, 3)
    variables = initial.variables()[NETWORK]
    for part in parts:
        _, updates = Tiny(3).apply(variables, part, train=True, mutable=["batch_stats"])
        variables = {**variables, **updates}
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        state.batch_stats[NETWORK],
        variables["batch_stats"],
    )
    assert sums["images"] == 16


@pytest.mark.parametrize("name", ["tiny", "resnet10"])
def test_bfloat16(name, tiny):  # noqa: F811
    """Parameters, statistics and loss are float32; the loss is near float32's."""
    create = functools.partial(models.create, name, 3, axis_name=parallel.AXIS)
    (_, wanted), (state, sums) = (
        one_step(create(dtype=dtype), "full", 1) for dtype in ("float32", "bfloat16")
    )
    for leaf in jax.tree.leaves((state.params, state.batch_stats, state.opt_state)):
        assert leaf.dtype in (np.float32, np.int32)  # integers count the steps
    assert sums["loss"].dtype == np.float32
    # bfloat16 keeps 8 bits: 0.4 % of each product, less in the mean of 16 losses.
    np.testing.assert_allclose(sums["loss"], wanted["loss"], rtol=0.02)
    assert sums["loss"] != wanted["loss"]  # it was really computed in another type


def test_first_state(tiny):  # noqa: F811
    state, _ = setup(seed=7)
    variables = state.variables()
    again = train_step.create_state(
        classification(Tiny(3)), optimizers.create(10, **SGD), 0, variables
    )
    jax.tree.map(np.testing.assert_array_equal, again, state)
    given = variables[NETWORK]
    assert (
        checkpoint.match(given, train_step.shapes(Tiny(3), objectives.image(96)))
        is given
    )
    with pytest.raises(ValueError, match=r"(?s)\+ .*fc/kernel.*- .*fc/kernel"):
        checkpoint.match(given, train_step.shapes(Tiny(4), objectives.image(96)))


def test_a_batch_may_have_to_stay_whole():
    objective = classification(Tiny(3))._replace(whole_batch="its policy sees it all")
    optimizer = optimizers.create(10, **SGD)
    train_step.make_train_step(objective, optimizer, 0)
    with pytest.raises(ValueError, match="`accumulate` is 2; allowed is 1: its policy"):
        train_step.make_train_step(objective, optimizer, 0, 2)


def test_settled_statistics():
    """They become those of the parameters as they are; nothing else changes."""
    objective = classification(Tiny(3, axis_name=parallel.AXIS))
    state = train_step.create_state(objective, optimizers.create(10, **SGD), 0)
    settle = parallel.train_step(train_step.make_settle_step(objective, 0))
    (batch,) = batches(1)
    split = jax.tree.map(lambda a: parallel.shard(a[0]), batch)
    settled = parallel.replicate(state)
    for _ in range(60):  # 0.9 ** 60 of the old ones is left
        settled, _ = settle(settled, None, split)
        jax.block_until_ready(settled.step)  # or launches queue up
    settled = jax.device_get(settled)
    for name in ("step", "params", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(settled, name), getattr(state, name)
        )
    pixels = preprocessing.normalise(batch["image"][0], Tiny(3))
    own = settled.variables()[NETWORK]
    logits = [
        Tiny(3).apply(own, pixels, train=train, mutable=["batch_stats"])[0][0]
        for train in (False, True)
    ]
    np.testing.assert_allclose(*logits, atol=0.01)
