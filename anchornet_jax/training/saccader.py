"""The three trainings of Saccader, as objectives of one network.

Saccader (Elsayed et al., 2019), Sec. 3.2: first the representation network learns to
classify; then, with it frozen, the location network learns to visit cells in the order of
the predicted class' logits; then both learn together, locations by REINFORCE.

What a phase must not change, the config freezes by `LOCATION` or `REPRESENTATION`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import saccader
from anchornet_jax.training import objectives
from anchornet_jax.training.objectives import NETWORK, Objective, image

LOCATION = "where|mix|cell"  # patterns of `optimizers.create`
REPRESENTATION = "representation"
TARGETS = 12  # cells that the location network learns to visit, in order
REINFORCE = 1.0  # weight beside the cross-entropy
L2 = 8e-5  # weight of the mean square of the kernels of each of both parts


def representation(model, view, input_size, **settings) -> Objective:
    """Return the cross-entropy of the representation network: the first phase.

    Args:
      model: a `models.saccader.Saccader`.
      view: from `views.make`, of whole images.
      input_size: side in pixels of what the view gives.
      **settings: `label_smoothing`, `mixup` and `freeze`, as of
        `objectives.classification`; there is no mixup here.
    """
    forward, smoothing = _forward(model, view, **settings)

    def loss(variables, frozen, images, labels, keys):
        out, statistics = forward(variables[NETWORK], frozen, images, keys)
        losses = _cross_entropy(out["bag_logits"], labels, smoothing)
        return objectives.totals(losses, out["bag_logits"], labels), statistics

    def predict(variables, frozen, images, keys):
        inputs, _ = view(images, keys, frozen)
        maps = model.apply(variables[NETWORK], inputs[:, 0], method="maps")
        return maps["bag_logits"]

    return Objective({NETWORK: model}, {NETWORK: image(input_size)}, loss, predict)


def location(model, view, input_size, **settings) -> Objective:
    """Return the cross-entropy of each glimpse with the next best cell: the second phase.

    Targets are the `TARGETS` cells with the largest logits of the class that the
    representation network predicts, best first, and each is to be chosen once those
    before it were visited. The public code visits cells that it samples instead, so that
    a target may have been visited already and costs 1e5. `correct` counts the cells that
    would be chosen, as shares.

    Args:
      model: as for `representation`.
      view: as for `representation`.
      input_size: as for `representation`.
      **settings: as for `representation`.
    """
    forward, _ = _forward(model, view, **settings)

    def loss(variables, frozen, images, labels, keys):
        own = variables[NETWORK]
        out, statistics = forward(own, frozen, images, keys, learn=False)
        wanted = targets(own["params"]["representation"]["fc"], out)  # [b, T]
        cell = own["params"]["cell"]
        losses, right = [], []
        follow = lambda t, _: wanted[:, t]
        for scores, chosen in saccader.walk(
            cell, out["mixed"], wanted.shape[1], follow
        ):
            losses.append(-_log_probability(scores, chosen))
            right.append(scores.argmax(-1) == chosen)
        sums = {
            "loss": jnp.stack(losses).mean(0).sum(),
            "count": jnp.float32(len(labels)),
            "correct": jnp.stack(right).mean(0).sum(),
            "images": jnp.float32(len(labels)),
        }
        return sums, statistics

    predict = _predict(model, view)
    return Objective({NETWORK: model}, {NETWORK: image(input_size)}, loss, predict)


def joint(model, view, input_size, **settings) -> Objective:
    """Return cross-entropy and REINFORCE on sampled cells: the third phase.

    The reward is 1 for an image that the mean over its cells classifies correctly, the
    baseline the mean reward of the batch.

    Args:
      model: as for `representation`.
      view: as for `representation`.
      input_size: as for `representation`.
      **settings: as for `representation`.
    """
    forward, smoothing = _forward(model, view, **settings)

    def loss(variables, frozen, images, labels, keys):
        params = variables[NETWORK]["params"]
        out, statistics = forward(variables[NETWORK], frozen, images, keys)
        classifier = params["representation"]["fc"]
        logits, log_probability = [], []
        for scores, chosen in saccader.walk(
            params["cell"], out["mixed"], model.glimpses, _sampler(keys)
        ):
            logits.append(saccader.answer(classifier, out["extracted"], chosen))
            log_probability.append(_log_probability(scores, chosen))
        logits = sum(logits) / len(logits)
        reward = (logits.argmax(-1) == labels).astype(jnp.float32)
        advantage = reward - _mean(reward, model.axis_name)
        losses = _cross_entropy(logits, labels, smoothing)
        losses -= REINFORCE * advantage * jnp.stack(log_probability).mean(0)
        sums = objectives.totals(losses, logits, labels)
        sums["loss"] += L2 * regularisation(params) * sums["count"]
        return sums, statistics

    return Objective(
        {NETWORK: model},
        {NETWORK: image(input_size)},
        loss,
        _predict(model, view),
        whole_batch="the baseline of REINFORCE is the mean reward of the whole batch",
    )


OBJECTIVES = {
    "saccader_representation": representation,
    "saccader_location": location,
    "saccader_joint": joint,
}


def targets(classifier, out) -> jax.Array:
    """Return the cells [B, T] int32 that say most for the predicted class, best first.

    Args:
      classifier: parameters of the representation network's.
      out: of `models.saccader.Saccader`.
    """
    what, classes = out["extracted"].astype(jnp.float32), out["bag_logits"].argmax(-1)
    flat = what.reshape(what.shape[0], -1, what.shape[-1])
    maps = jnp.einsum("blc,bc->bl", flat, classifier["kernel"].T[classes])
    return jax.lax.top_k(maps, min(TARGETS, maps.shape[1]))[1].astype(jnp.int32)


def regularisation(params) -> jax.Array:
    """Return the mean square of the kernels, of the representation and of the rest."""
    parts = [
        params["representation"],
        {name: tree for name, tree in params.items() if name != "representation"},
    ]
    total = 0.0
    for part in parts:
        kernels = [leaf for leaf in jax.tree.leaves(part) if leaf.ndim > 1]
        squares = sum((leaf**2).sum() for leaf in kernels)
        total += squares / sum(leaf.size for leaf in kernels)
    return total


def _forward(
    model, view, *, label_smoothing: float = 0.0, mixup: float = 0.0, freeze: str = ""
) -> tuple[Callable, float]:
    """Return the function that runs a network in training, and the label smoothing.

    Raises:
      ValueError: for another network, a mixup, or a share outside [0, 1).
    """
    if not hasattr(model, "glimpses"):
        raise ValueError(
            f"`model` is a {type(model).__name__}; this objective needs a Saccader"
        )
    if mixup or not 0 <= label_smoothing < 1:
        raise ValueError(
            f"`label_smoothing` is {label_smoothing} and `mixup` {mixup}; allowed are 0 "
            "to below 1, and 0"
        )
    keep = objectives.keep_statistics(freeze)

    def forward(variables, frozen, images, keys, learn=True):
        """Return the maps and {role: statistics}; `learn`: the representation too."""
        inputs, _ = view(images, keys, frozen)
        params = dict(variables["params"])
        if not learn:
            params["representation"] = jax.lax.stop_gradient(params["representation"])
        with nn.intercept_methods(keep):
            out, updates = model.apply(
                {**variables, "params": params},
                inputs[:, 0],
                train=True,
                mutable=["batch_stats"],
                method="maps",
            )
        return out, {NETWORK: updates.get("batch_stats", {})}

    return forward, label_smoothing


def _predict(model, view):
    def predict(variables, frozen, images, keys):
        inputs, _ = view(images, keys, frozen)
        return model.apply(variables[NETWORK], inputs[:, 0])[0]

    return predict


def _sampler(keys):
    """Return what draws a cell for each image, by the image's own key."""

    def choose(t, scores):
        own = jax.vmap(lambda key: jax.random.fold_in(key, t))(keys)
        return jax.vmap(jax.random.categorical)(own, scores)

    return choose


def _log_probability(scores, cells):
    """Return the log-probability [B] of the chosen cells [B]."""
    return jnp.take_along_axis(jax.nn.log_softmax(scores), cells[:, None], 1)[:, 0]


def _mean(values, axis_name):
    mean = values.mean()
    return jax.lax.pmean(mean, axis_name) if axis_name else mean


def _cross_entropy(logits, labels, smoothing):
    return objectives.cross_entropy(logits[:, None, None], labels, smoothing)[:, 0]
