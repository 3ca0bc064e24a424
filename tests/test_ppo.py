"""PPO: the published update, in every number."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from anchornet_jax.models import gfnet
from anchornet_jax.runtime import torch_import
from anchornet_jax.training import ppo
from tests.golden import recipe

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "peers_state_shapes.json").read_text())
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_update_equals_the_published_one(kind):
    """Forward, returns, loss, gradients, and the policy after one step of Adam."""
    file = np.load(GOLDEN / "gfnet_ppo.npz")
    golden = {
        key.removeprefix(f"{kind}_"): file[key] for key in file if kind in key[:6]
    }
    policy = gfnet.Policy(1000, 8, convolutional=kind == "conv")
    maps = jnp.asarray(golden["states"]).transpose(0, 1, 3, 4, 2)
    state = {
        key.removeprefix("policy."): recipe.tensor(int(file["seed"]), key, tuple(shape))
        for key, shape in SHAPES[f"gfnet_ppo_{kind}"].items()
    }
    template = jax.eval_shape(
        policy.init, jax.random.key(0), maps[0], jnp.zeros((4, 8))
    )
    variables = torch_import.convert(state, template)
    gains = ppo.returns(jnp.asarray(golden["rewards"]))
    np.testing.assert_allclose(gains, golden["returns"], **CLOSE)
    np.testing.assert_allclose(ppo.entropy(), golden["entropy"][0, 0], rtol=1e-5)

    def loss(variables):
        means, values = ppo.rollout(policy, variables, maps)
        old, actions = golden["old_logprobs"], golden["actions"]
        return ppo.loss(means, values, actions, old, gains), (means, values)

    (found, (means, values)), grads = jax.value_and_grad(loss, has_aux=True)(variables)
    np.testing.assert_allclose(means, golden["means"], **CLOSE)
    np.testing.assert_allclose(values, golden["values"], **CLOSE)
    np.testing.assert_allclose(
        ppo.log_probability(golden["actions"], means), golden["logprobs"], rtol=1e-4
    )
    np.testing.assert_allclose(found, golden["loss"], rtol=1e-4)
    adam = optax.adam(3e-4)
    changes, _ = adam.update(grads, adam.init(variables), variables)
    _check(golden, "grad", grads, 1e-4)
    _check(golden, "after", optax.apply_updates(variables, changes), 1e-4)
    parts = {"encoder": "state_encoder", "gru": "gru", "actor": "actor"}
    for name, start in (parts | {"critic": "critic"}).items():
        own = [g for key, g in grads["params"].items() if key.startswith(start)]
        np.testing.assert_allclose(
            optax.tree.norm(own), golden[f"norm_{name}"], rtol=1e-4
        )


def _check(golden, kind, tree, rtol):
    flat = traverse_util.flatten_dict(tree["params"], sep="/")
    for key, wanted in golden.items():
        if key.startswith(f"{kind}_"):
            at, wanted = torch_import._translate(key.removeprefix(f"{kind}_"), wanted)
            found = flat[at.removeprefix("params/")]
            np.testing.assert_allclose(found, wanted, rtol, rtol * np.abs(wanted).max())


def test_samples_stay_inside():
    """Clipped to [0, 1]; the density is that of what was clipped."""
    means = jnp.array([[0.01, 0.99]] * 50)
    actions, density = ppo.sample(jax.random.key(0), means)
    assert actions.min() == 0 and actions.max() == 1
    np.testing.assert_array_equal(density, ppo.log_probability(actions, means))
