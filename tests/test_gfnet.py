"""GFNet: the published numbers at every step."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import registry
from anchornet_jax.models import Network, gfnet
from anchornet_jax.runtime import torch_import
from tests.golden import recipe
from tests.selection import slow_but

GOLDEN = pathlib.Path(__file__).parent / "golden"
COUNTS = json.loads((GOLDEN / "peers_counts.json").read_text())
SHAPES = json.loads((GOLDEN / "peers_state_shapes.json").read_text())
PUBLISHED = {  # encoder, its arguments, its names, features, map's channels, method
    "gfnet_resnet50_96": ("resnet50", {}, dict, 2048, 2048, {}),
    "gfnet_regnety_600m_96": (
        (
            "regnet_y_600mf",
            {},
            gfnet.regnet_state,
            608,
            608,
            {"resize": "bilinear", "own_head": True},
        )
    ),
    "gfnet_mobilenetv3_large_100_96": (
        "mobilenet_v3_large",
        {"epsilon": 1e-5},
        gfnet.mobilenet_state,
        1280,
        960,
        {"inputs": 3},
    ),
}
GAINS = {"glance": "gain", "patch": "gain", "classifier": "gain_fc"}
PARTS = {"glance": "model_prime", "patch": "model", "classifier": "fc"}


def state(name, prefix, seed, gain):
    """Return a part's state dict by naming rule, without the part's name."""
    return {
        key.removeprefix(prefix): recipe.tensor(seed, key, tuple(shape), gain)
        for key, shape in SHAPES[name].items()
        if key.startswith(prefix)
    }


def published(name):
    """Return the method with variables by naming rule, and the golden arrays."""
    golden = np.load(GOLDEN / f"{name}.npz")
    encoder, arguments, names, features, channels, method = PUBLISHED[name]
    cascade = "mobilenet" in name
    linear = "resnet" in name
    pixels = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
    row = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    made = {
        role: (models.create(encoder, 1000, **arguments), (pixels,))
        for role in ("glance", "patch")
    }
    made["classifier"] = (
        (gfnet.CascadeClassifier(1000), (row((1, 2 * features)),))
        if cascade
        else (gfnet.RecurrentClassifier(1000), (row((1, features)), row((1, 1024))))
    )
    hidden = 1024 if linear else 256
    policy = gfnet.Policy(1000, hidden, convolutional=not linear)
    made["policy"] = policy, (row((1, 3, 3, channels)), row((1, hidden)))
    networks = {}
    for role, (model, given) in made.items():
        part = PARTS.get(role, role)
        gain = float(golden[GAINS.get(role, "gain_policy")])
        own = state(name, f"{part}.", int(golden["seed"]), gain)
        own = names(own) if role in ("glance", "patch") else own
        init = (
            functools.partial(model.init, step=2)
            if cascade and role == ("classifier")
            else model.init
        )
        template = jax.eval_shape(init, jax.random.key(0), *given)
        variables = torch_import.convert(own, template)
        networks[role] = Network(model, variables, {})
    return registry.create("gfnet", networks, **method), golden


def run(method, variables, images):
    """Return what `protocol.run` does, and the policy's actions [T - 1, B, 2]."""
    state, answers, actions = method.start(len(images), images.shape[1]), [], []
    for t, step in enumerate(method.steps):
        if t:
            actor = method.networks["policy"].model
            _, means, _ = actor.apply(
                variables["policy"], state["map"], state["policy"]
            )
            actions.append(means)
        place = jnp.full(len(images), t, jnp.int32)
        state, logits = step.run(variables, images, None, state, place)
        answers.append(logits)
    return jnp.stack(answers, 1), state, jnp.stack(actions)


@pytest.mark.parametrize(
    "name", slow_but(["gfnet_mobilenetv3_large_100_96"], PUBLISHED)
)
def test_every_step_equals_the_published_system(name):
    """Logits to 1e-4 of the largest, actions to 0.01 px; corners and costs exactly."""
    method, golden = published(name)
    images = np.stack([recipe.image(int(s), 224) for s in golden["image_seeds"]])
    logits, left, actions = jax.jit(functools.partial(run, method))(
        protocol.variables(method), images
    )
    difference = np.abs(actions - golden["actions"]) * (224 - 96)
    assert difference.max() < 0.01
    np.testing.assert_array_equal(
        left["boxes"][:, 1:, :2], golden["corners"].swapaxes(0, 1)
    )
    for t, wanted in enumerate(golden["logits"]):
        assert np.abs(logits[:, t] - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert protocol.costs(method, 224) == COUNTS[name]["multiply_adds"]
