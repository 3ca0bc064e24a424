"""The three trainings of GFNet, as two objectives of several networks.

Glance and Focus (Wang et al., 2020), Sec. 3.2 and 3.3: first the encoders and the
classifier learn from patches at random places; then, with them frozen, the policy learns
where to look by proximal policy optimisation; then encoders and classifier learn once
more, from patches where the policy says. So the first and the last are one objective,
`networks`, of methods that differ in `places`.

The roles of the method that an objective does not train, or leaves as they are, run as in
inference.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.methods import method as protocol
from anchornet_jax.methods.gfnet import ROLES, GFNet
from anchornet_jax.models import gfnet
from anchornet_jax.runtime import parallel
from anchornet_jax.training import objectives, ppo
from anchornet_jax.training.objectives import Objective

POLICY = "policy"
LEARN = tuple(role for role in ROLES if role != POLICY)


def networks(
    method: GFNet,
    *,
    fixed: tuple[str, ...] = (),
    auxiliary: float = 1.0,
    settings: ppo.Settings = ppo.SETTINGS,
    label_smoothing: float = 0.0,
    freeze: str = "",
) -> Objective:
    """Return the cross-entropies of all inputs: the first and the third training.

    The loss of an image is the mean, over its inputs, of the cross-entropy of the
    method's answer and `auxiliary` times that of the encoder's own head. Places are
    uniform where the method's are random, and drawn around the policy's actions
    otherwise. Every patch of an image updates the statistics of its encoder by itself,
    one after the other, as in the public code.

    Args:
      method: with networks of which those that learn may have shapes for variables.
      fixed: roles that stay as they are, as the public code has `glance` where the
        encoder is a MobileNetV3 or an EfficientNet.
      auxiliary: weight of the encoders' own heads.
      settings: the deviation around the policy's actions.
      label_smoothing: share of the target that is spread over all classes.
      freeze: as of `objectives.classification`, in all that learn.

    Raises:
      ValueError: for a method that is no GFNet, roles that cannot be fixed, or a share
        outside [0, 1).
    """
    _check(method, label_smoothing)
    if not set(fixed) < set(LEARN):
        raise ValueError(
            f"`fixed` is {tuple(fixed)}; allowed are some of {LEARN}, but not all"
        )
    trained = tuple(role for role in LEARN if role not in fixed)
    keep = objectives.keep_statistics(freeze)

    def loss(variables, frozen, images, labels, keys):
        known = {**frozen, **variables}
        see, statistics = _learning(method, known, trained, keep, keys)
        if method.places == POLICY:
            choose, _ = _drawn(method, known[POLICY], keys, settings)
        else:
            choose = lambda t, maps: jax.vmap(jax.random.uniform, (0, None))(
                _keys(keys, t), (2,)
            )
        losses = []
        for logits, own in _look(method, known, images, see, choose):
            both = jnp.stack([logits, own], 1)[:, :, None]  # [b, 2, 1, N]
            both = objectives.cross_entropy(both, labels, label_smoothing)
            losses.append(both[:, 0] + auxiliary * both[:, 1])
        losses = sum(losses) / method.inputs
        return objectives.totals(losses, logits, labels), statistics

    return _objective(method, trained, loss)


def policy(method: GFNet, *, settings: ppo.Settings = ppo.SETTINGS, **_) -> Objective:
    """Return the loss of proximal policy optimisation: the second training.

    A reward is what a patch adds to the probability of the true class. There is one
    update with each batch, so that the policy that acts is the one that learns, and the
    ratio of their probabilities is 1.

    Args:
      method: whose policy learns, and nothing else.
      settings: of the optimisation.
      **_: whatever else `networks` takes; it has no effect here.

    Raises:
      ValueError: for a method that is no GFNet with a policy and two inputs or more.
    """
    _check(method)
    if method.places != POLICY or method.inputs < 2:
        raise ValueError(
            f"`places` is {method.places!r} and `inputs` {method.inputs}; where a policy "
            f"learns, allowed are {POLICY!r} and 2 or more"
        )
    model = method.networks[POLICY].model

    def loss(variables, frozen, images, labels, keys):
        acting = jax.lax.stop_gradient(variables[POLICY])
        choose, taken = _drawn(method, acting, keys, settings)
        see = lambda role, pixels, t: gfnet.encode(
            method.networks[role].model, frozen[role], pixels
        )
        scores = []
        for logits, _ in _look(method, frozen, images, see, choose):
            right = jax.nn.softmax(logits)
            scores.append(jnp.take_along_axis(right, labels[:, None], 1)[:, 0])
        scores = jnp.stack(scores)  # [T, b]
        gains = ppo.returns(scores[1:] - scores[:-1], settings, parallel.AXIS)
        maps, actions, densities = (jnp.stack(column) for column in zip(*taken))
        means, values = ppo.rollout(model, variables[POLICY], maps)
        found = ppo.loss(means, values, actions, densities, gains, settings)
        losses = jnp.broadcast_to(found, labels.shape)
        return objectives.totals(losses, logits, labels), {POLICY: {}}

    return _objective(
        method,
        (POLICY,),
        loss,
        whole_batch="returns are standardised over the whole batch",
    )


OBJECTIVES = {"gfnet_networks": networks, "gfnet_policy": policy}


def _check(method, label_smoothing=0.0) -> None:
    if not hasattr(method, "patch_pixels"):
        raise ValueError(
            f"`method` is a {type(method).__name__}; this objective needs a GFNet"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"`label_smoothing` is {label_smoothing}; allowed is 0 to below 1"
        )


def _objective(method, trained, loss, **more) -> Objective:
    """Return the objective; it predicts as the method does after its last input."""

    def predict(variables, frozen, images, keys):
        logits, _ = protocol.run(method, {**frozen, **variables}, images)
        return logits[:, -1]

    modules = {role: method.networks[role].model for role in trained}
    given = method.given()
    return Objective(
        modules, {role: given[role] for role in trained}, loss, predict, **more
    )


def _look(method, variables, images, see, choose):
    """Yield the answer after each input, and its encoder's own logits, [b, N] both.

    Args:
      method: a GFNet.
      variables: of its classifier, by role.
      images: uint8 [b, H, W, 3].
      see: `see(role, pixels, t) -> (features, map, logits)`, an encoder.
      choose: `choose(t, map) -> actions [b, 2]` for input t after one with that map.
    """
    memory, maps = method.memory(len(images)), None
    for t in range(method.inputs):
        role = "patch" if t else "glance"
        if t:
            pixels, _ = method.patch_pixels(images, choose(t, maps))
        else:
            pixels = method.glance_pixels(images)
        pooled, maps, own = see(role, pixels, t)
        memory, logits = method.answer(variables["classifier"], pooled, own, memory, t)
        yield logits.astype(jnp.float32), own.astype(jnp.float32)


def _learning(method, variables, trained, keep, keys):
    """Return how encoders see in training, and their statistics, renewed as they do."""
    statistics = {role: variables[role].get("batch_stats", {}) for role in trained}

    def see(role, pixels, t):
        model = method.networks[role].model
        if role not in trained:
            return gfnet.encode(model, variables[role], pixels)
        with nn.intercept_methods(keep):
            found, updates = model.apply(
                {"params": variables[role]["params"], "batch_stats": statistics[role]},
                pixels,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(keys[0], t)},
            )
        statistics[role] = updates.get("batch_stats", {})
        return gfnet.features(*found)

    return see, statistics


def _drawn(method, variables, keys, settings):
    """Return what draws actions around a policy's, and a list that it fills.

    For each action: the map [b, h, w, C] before it, itself [b, 2], and its log-density.
    """
    model, taken = method.networks[POLICY].model, []
    state = jnp.zeros((len(keys), model.hidden), jnp.float32)
    draw = jax.vmap(lambda key, mean: ppo.sample(key, mean, settings))

    def choose(t, maps):
        nonlocal state
        state, means, _ = model.apply(variables, maps, state)
        actions, densities = jax.lax.stop_gradient(draw(_keys(keys, t), means))
        taken.append((jax.lax.stop_gradient(maps), actions, densities))
        return actions

    return choose, taken


def _keys(keys, t):
    """Return the images' own keys [b] for input t."""
    return jax.vmap(lambda key: jax.random.fold_in(key, t))(keys)
