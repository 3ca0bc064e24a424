import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from anchornet_jax import checkpoint, learning, models, networks, parallel, views
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
    model = Tiny(3, axis_name=parallel.AXIS)
    view = views.make(view_name, models.create("anchornet", 3), k=3)
    optimizer = learning.create_optimizer(10, **SGD)
    state = learning.create_state(model, optimizer, 96, seed, "")
    return state, learning.make_train_step(model, view, optimizer, seed)


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
        views.normalise(batch["image"][0]),
        batch["label"][0],
    )

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        (logits, _), _ = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[jnp.arange(16), labels].mean()

    value, gradient = jax.value_and_grad(loss)(state.params)
    np.testing.assert_allclose(sums["loss"] / sums["count"], value, rtol=1e-5)
    # Nesterov's first step is 1.9 times the gradient; decay 1e-4 on every parameter.
    wanted = jax.tree.map(
        lambda p, g: p - 0.1 * 1.9 * (g + 1e-4 * p), state.params, gradient
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6),
        new.params,
        wanted,
    )


@flax.struct.dataclass
class Half:
    """A model whose logits are bfloat16."""

    def apply(self, variables, images, **_):
        """Return logits so close that bfloat16 could not tell a loss from them."""
        return (jnp.full((len(images), 3), 1, jnp.bfloat16), {}), {}


def test_loss_is_float32():
    view = views.make("full", models.create("anchornet", 3))
    logits, _, _ = learning._see(
        view, Half(), {}, np.zeros((2, 96, 96, 3), np.uint8), None, None, mutable=["x"]
    )
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, {0: 0.1, 50: 0.05, 100: 0.0}),
        ({"warmup": 0.2}, {0: 0.0, 10: 0.05, 20: 0.1, 60: 0.05, 100: 0.0}),
        (
            {"schedule": "step", "boundaries": (0.3, 0.6, 0.9)},  # 2022, Sec. 4.1
            {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4},
        ),
    ],
)
def test_schedules(changes, rates):
    for step, rate in rates.items():
        optimizer = learning.create_optimizer(
            100,
            **{**SGD, "momentum": 0.0, "nesterov": False, "weight_decay": 0, **changes},
        )
        state = optimizer.init(jnp.zeros(()))
        state = optax.tree_utils.tree_set(state, count=jnp.int32(step))
        change, _ = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        np.testing.assert_allclose(-change, rate, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "`schedule` is 'linear'; choose one of"),
        ({"warmup": 5}, "`warmup` is 5 .* shares"),
        ({"boundaries": (30, 60)}, r"`boundaries` are \(30, 60\)"),
    ],
)
def test_bad_schedules(changes, message):
    with pytest.raises(ValueError, match=message):
        learning.create_optimizer(100, **{**SGD, **changes})


def test_accuracy_ignores_filling_rows():
    def predict(networks_, batch):
        return {"logits": jnp.eye(3)[batch["image"]]}

    batch = {
        "image": np.array([[0, 1], [2, 0]]),
        "label": np.array([[0, 2], [2, 0]]),
        "mask": np.array([[True, True], [True, False]]),
    }
    assert learning.accuracy(predict, None, [batch, batch]) == pytest.approx(2 / 3)


def test_init_from(tmp_path, tiny):  # noqa: F811
    state, _ = setup(seed=7)
    optimizer = learning.create_optimizer(10, **SGD)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    networks.save(tmp_path / "net", {"name": "tiny", "num_classes": 3}, variables)
    loaded = learning.create_state(Tiny(3), optimizer, 96, 0, str(tmp_path / "net"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, state.params)
    with pytest.raises(ValueError, match=r"(?s)\+ .*fc/kernel.*- .*fc/kernel"):
        learning.create_state(Tiny(4), optimizer, 96, 0, str(tmp_path / "net"))
    network = networks.load(tmp_path / "net")
    assert isinstance(network.model, Tiny)
    assert checkpoint.match(network.variables, variables) is not None
