import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from anchornet_jax.training import optimizers

PLAIN = {
    "learning_rate": 0.1,
    "schedule": "cosine",
    "warmup": 0.0,
    "boundaries": (),
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
}
PARAMS = {
    "policy": {"fc": {"kernel": jnp.ones((2,))}},
    "network": {"conv1": {"kernel": jnp.ones((3,))}, "fc": {"kernel": jnp.ones((4,))}},
}


def change(steps=100, params=PARAMS, gradient=1.0, **changes):
    """Return the change of an optimiser's first step under an even gradient."""
    optimizer = optimizers.create(steps, **{**PLAIN, **changes})
    gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, {0: 0.1, 50: 0.05, 100: 0.0}),
        ({"warmup": 0.2}, {0: 0.0, 10: 0.05, 20: 0.1, 60: 0.05, 100: 0.0}),
        (
            {"schedule": "step", "boundaries": (0.3, 0.6, 0.9)},  # 2022, Sec. 4.1
            {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4},
        ),
        (
            {"schedule": "restarts", "boundaries": (0.2, 0.6)},
            {0: 0.1, 10: 0.05, 20: 0.1, 40: 0.05, 60: 0.1, 80: 0.05},
        ),
        (
            {"schedule": "restarts", "boundaries": (0.5,), "warmup": 0.1},
            {0: 0.0, 5: 0.05, 25: 0.05, 50: 0.1, 75: 0.05},
        ),
    ],
)
def test_schedules(changes, rates):
    optimizer = optimizers.create(100, **{**PLAIN, **changes})
    for step, rate in rates.items():
        state = optimizer.init(jnp.zeros(()))
        state = optax.tree_utils.tree_set(state, count=jnp.int32(step))
        found, _ = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        np.testing.assert_allclose(-found, rate, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "`schedule` is 'linear'; choose one of"),
        ({"warmup": 5}, "`warmup` is 5 .* shares"),
        ({"boundaries": (30, 60)}, r"`boundaries` are \(30, 60\)"),
        ({"name": "lamb"}, r"`name` is 'lamb'; choose one of \['adam', 'adamw', 'sgd'"),
        ({"freeze": "("}, "`freeze` is '\\(': .*"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        optimizers.create(100, **{**PLAIN, **changes})


def test_adam_and_adamw():
    """Adam's first step has the size of its rate, whatever the gradient is."""
    for name in ("adam", "adamw"):
        for gradient in (1.0, 1e-3):
            found = change(name=name, gradient=gradient, momentum=0.9)
            np.testing.assert_allclose(found["policy"]["fc"]["kernel"], -0.1, rtol=1e-3)
    # Decay is part of the moments of Adam, and beside those of AdamW.
    decay = {"gradient": 0.0, "momentum": 0.9, "weight_decay": 0.5}
    adam, adamw = (change(name=name, **decay) for name in ("adam", "adamw"))
    np.testing.assert_allclose(adam["policy"]["fc"]["kernel"], -0.1, rtol=1e-3)
    np.testing.assert_allclose(adamw["policy"]["fc"]["kernel"], -0.05, rtol=1e-3)


def test_each_role_has_its_rate():
    found = change(rates={"policy": 0.1})
    np.testing.assert_allclose(found["policy"]["fc"]["kernel"], -0.01, rtol=1e-6)
    np.testing.assert_allclose(found["network"]["fc"]["kernel"], -0.1, rtol=1e-6)


def test_frozen_parameters_stay():
    """Neither the gradient nor weight decay moves them."""
    found = change(freeze="conv1|layer", weight_decay=0.1)
    np.testing.assert_array_equal(found["network"]["conv1"]["kernel"], 0)
    np.testing.assert_allclose(found["network"]["fc"]["kernel"], -0.11, rtol=1e-6)


@pytest.mark.parametrize(("freeze", "kind"), [("layer9", "no"), (".*", "all")])
def test_a_pattern_that_freezes_nothing_or_all(freeze, kind):
    with pytest.raises(ValueError, match=f"matches {kind} parameters; .*'conv1', 'fc'"):
        change(freeze=freeze, params={"network": PARAMS["network"]})
