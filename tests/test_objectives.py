import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from anchornet_jax.runtime import parallel
from anchornet_jax.training import objectives, optimizers, train_step
from anchornet_jax.training.objectives import NETWORK
from tests.test_optimizers import PLAIN


class Two(nn.Module):
    """Convolution, BatchNorm, head: enough to freeze the first half."""

    num_classes: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        """Return logits [B, N] and no intermediate values."""
        x = nn.Conv(4, (3, 3), name="conv1")(images)
        norm = nn.BatchNorm(
            use_running_average=not train, axis_name=self.axis_name, name="bn1"
        )
        x = norm(x)
        x = nn.relu(x).mean((1, 2))
        return nn.Dense(self.num_classes, name="fc")(x), {}


def whole(images, keys, localizer):
    """Give an image as the one input it is, in [0, 1]."""
    inputs = images[:, None].astype(jnp.float32) / 255
    return inputs, jnp.ones(inputs.shape[:2], bool)


def batch(size=8):
    """Return random images and labels, without an axis of devices."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), np.uint8),
        "label": rng.integers(0, 3, size).astype(np.int32),
    }


def sums(objective, images, labels):
    """Return the sums of an objective's loss with the first state's networks."""
    state = train_step.create_state(objective, optax.sgd(0.1), 0)
    keys = jax.random.split(jax.random.key(1), len(labels))
    return objective.loss(state.variables(), None, images, labels, keys)


def logits_of(objective, images):
    """Return the logits in training of the first state's network."""
    state = train_step.create_state(objective, optax.sgd(0.1), 0)
    return Two().apply(
        state.variables()[NETWORK], images / 255.0, train=True, mutable=["batch_stats"]
    )[0][0]


def test_label_smoothing():
    """A tenth of the target lies evenly on all classes."""
    data = batch()
    objective = objectives.classification(Two(), whole, 8, label_smoothing=0.1)
    wanted = optax.softmax_cross_entropy(
        logits_of(objective, data["image"]),
        0.9 * jax.nn.one_hot(data["label"], 3) + 0.1 / 3,
    )
    found, _ = sums(objective, data["image"], data["label"])
    np.testing.assert_allclose(found["loss"], wanted.sum(), rtol=1e-5)
    assert found["count"] == 8


def test_mixup():
    """The loss is that of mixed images under both labels, by their share."""
    data = batch()
    objective = objectives.classification(Two(), whole, 8, mixup=0.2)
    key = jax.random.split(jax.random.key(1), 8)[0]
    share = jax.random.beta(jax.random.fold_in(key, 1), 0.2, 0.2)
    images = share * data["image"] + (1 - share) * data["image"][::-1]
    logits = logits_of(objective, images)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    wanted = share * cross_entropy(logits, data["label"])
    wanted += (1 - share) * cross_entropy(logits, data["label"][::-1])
    found, _ = sums(objective, data["image"], data["label"])
    np.testing.assert_allclose(found["loss"], wanted.sum(), rtol=1e-4)


@pytest.mark.parametrize("bad", [{"label_smoothing": 1.0}, {"mixup": -0.1}])
def test_bad_shares(bad):
    with pytest.raises(ValueError, match="allowed are 0 to below 1, and 0 or more"):
        objectives.classification(Two(), whole, 8, **bad)


def train(objective, steps=3, **changes):
    """Return (first state, last state, sums of each step) on four devices."""
    optimizer = optimizers.create(10, **{**PLAIN, **changes})
    first = train_step.create_state(objective, optimizer, 0)
    step = parallel.train_step(train_step.make_train_step(objective, optimizer, 0))
    state, history = parallel.replicate(first), []
    for _ in range(steps):
        state, found = step(state, None, jax.tree.map(parallel.shard, batch()))
        history.append(jax.device_get(found))
    return jax.device_get(first), jax.device_get(state), history


def test_what_is_frozen_stays_and_the_rest_learns():
    """Parameters and statistics of frozen layers are the same to the bit."""
    freeze = "conv1|bn1"
    objective = objectives.classification(
        Two(axis_name=parallel.AXIS), whole, 8, freeze=freeze
    )
    first, last, history = train(
        objective, freeze=freeze, momentum=0.9, weight_decay=1e-2
    )
    for name in ("conv1", "bn1"):
        jax.tree.map(
            np.testing.assert_array_equal,
            first.params[NETWORK][name],
            last.params[NETWORK][name],
        )
    jax.tree.map(np.testing.assert_array_equal, first.batch_stats, last.batch_stats)
    assert np.any(
        first.params[NETWORK]["fc"]["kernel"] != last.params[NETWORK]["fc"]["kernel"]
    )
    assert history[-1]["loss"] < history[0]["loss"]
    unfrozen, learned, _ = train(
        objectives.classification(Two(axis_name=parallel.AXIS), whole, 8)
    )
    assert np.any(
        unfrozen.batch_stats[NETWORK]["bn1"]["mean"]
        != learned.batch_stats[NETWORK]["bn1"]["mean"]
    )


def two_networks():
    """Return an objective of two networks whose logits are added."""
    trained = {role: Two(axis_name=parallel.AXIS) for role in ("first", "second")}

    def logits(variables, images, train):
        results = {
            role: model.apply(
                variables[role],
                images.astype(jnp.float32) / 255,
                train=train,
                mutable=["batch_stats"] if train else False,
            )
            for role, model in trained.items()
        }
        if not train:
            return sum(found for found, _ in results.values()), {}
        return (
            sum(found for (found, _), _ in results.values()),
            {role: updates["batch_stats"] for role, (_, updates) in results.items()},
        )

    def loss(variables, frozen, images, labels, keys):
        found, batch_stats = logits(variables, images, True)
        losses = optax.softmax_cross_entropy_with_integer_labels(found, labels)
        return {
            "loss": losses.sum(),
            "count": jnp.float32(len(labels)),
            "correct": (found.argmax(-1) == labels).sum(dtype=jnp.float32),
            "images": jnp.float32(len(labels)),
        }, batch_stats

    def predict(variables, frozen, images, keys):
        return logits(variables, images, False)[0]

    return objectives.Objective(
        trained, dict.fromkeys(trained, objectives.image(8)), loss, predict
    )


def test_two_networks_with_a_rate_each():
    """Both learn; a rate of zero would leave one as it is, a factor scales its steps."""
    objective = two_networks()
    first, still, _ = train(objective, steps=1, rates={"second": 0.0})
    _, moved, history = train(objective, steps=1)
    differ = [
        jax.tree.map(functools.partial(np.subtract), state.params, first.params)
        for state in (still, moved)
    ]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(differ[0]["second"]))
    for role in ("first", "second"):
        assert any(np.any(leaf) for leaf in jax.tree.leaves(differ[1][role]))
    jax.tree.map(np.testing.assert_array_equal, differ[0]["first"], differ[1]["first"])
    assert np.any(
        first.params["first"]["fc"]["kernel"] != first.params["second"]["fc"]["kernel"]
    )
    assert history[0]["images"] == 8


def test_score_of_two_networks():
    """Without a score of its own an objective is scored by whether it is right."""
    objective = two_networks()
    state = train_step.create_state(objective, optax.sgd(0.1), 0)
    data = batch()
    step = parallel.predict_step(train_step.make_score_step(objective, 0))
    found = parallel.gather(step((state.variables(), None), parallel.shard(data)))
    images = data["image"] / 255.0
    wanted = sum(
        Two().apply(variables, images)[0] for variables in state.variables().values()
    )
    np.testing.assert_array_equal(found["score"], wanted.argmax(-1) == data["label"])


def test_loss_is_float32():
    """Logits so close that bfloat16 could not tell a loss from them."""

    class Half:
        def apply(self, variables, images, **_):
            return jnp.full((len(images), 3), 1, jnp.bfloat16), {}

    logits, _ = objectives.run(Half(), {}, np.zeros((2, 1, 8, 8, 3), np.float32))
    assert logits.dtype == jnp.float32
    assert logits.shape == (2, 1, 1, 3)
