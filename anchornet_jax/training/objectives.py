"""Objectives: what is trained, and what its loss is.

The loop and the step serve every objective (`train`, `train_step`); an objective says
which networks learn, what they lose on a batch, and how they classify. Here is the one of
both papers: cross-entropy on a view of the image (2022, Sec. 3.5; 2020, Sec. 3.2).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from anchornet_jax.training import optimizers

NETWORK = "network"  # the role of the one network that a classification trains


class Objective(NamedTuple):
    """What a training step minimises.

    Attributes:
      trained: {role: module} of the networks that learn.
      input_sizes: {role: side in pixels} of what they see.
      loss: `loss(variables, frozen, images, labels, keys) -> (sums, batch_stats)` with
        `variables` {role: variables}, `frozen` what the objective reads besides, uint8
        images [b, H, W, 3], labels [b] and one random key per image. `sums` are over the
        batch: `loss`, which is differentiated, `count` that it is divided by, `correct`
        of `images`. `batch_stats` {role: …} are the new ones.
      predict: `predict(variables, frozen, images, keys) -> logits [b, N]`.
      whole_batch: why a batch may not be taken in parts, empty where it may.
    """

    trained: dict[str, nn.Module]
    input_sizes: dict[str, int]
    loss: Callable
    predict: Callable
    whole_batch: str = ""


def classification(
    model: nn.Module,
    view: Callable,
    input_size: int,
    *,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    freeze: str = "",
) -> Objective:
    """Return the cross-entropy of one network on a view, summed over inputs and heads.

    Args:
      model: from `models.create`.
      view: from `views.make`; `frozen` are the localiser's variables.
      input_size: side in pixels of what the view gives.
      label_smoothing: share of the target that is spread over all classes.
      mixup: alpha of the Beta distribution from which the share of a second image is
        drawn (mixup, 2018); images are paired within what a device takes at once.
      freeze: as of `optimizers.create`: the BatchNorm of frozen parameters keeps its
        statistics and normalises by them.

    Raises:
      ValueError: for a share outside [0, 1) or a negative alpha.
    """
    if not 0 <= label_smoothing < 1 or not 0 <= mixup < float("inf"):
        raise ValueError(
            f"`label_smoothing` is {label_smoothing} and `mixup` {mixup}; allowed are 0 "
            "to below 1, and 0 or more"
        )
    keep = keep_statistics(freeze)

    def loss(variables, frozen, images, labels, keys):
        inputs, valid = view(images, keys, frozen)
        targets = [(1.0, labels)]
        if mixup:
            share = jax.random.beta(jax.random.fold_in(keys[0], 1), mixup, mixup)
            inputs = share * inputs + (1 - share) * inputs[::-1]
            valid = valid & valid[::-1]
            targets = [(share, labels), (1 - share, labels[::-1])]
        with nn.intercept_methods(keep):
            logits, updates = run(
                model,
                variables[NETWORK],
                inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": keys[0]},
            )
        losses = sum(
            part if len(targets) == 1 else weight * part
            for weight, part in (
                (weight, cross_entropy(logits, wanted, label_smoothing))
                for weight, wanted in targets
            )
        )
        right = fuse(logits.mean(2), valid).argmax(-1) == labels
        sums = {
            "loss": (losses * valid).sum(),
            "count": valid.sum(dtype=jnp.float32),
            "correct": right.sum(dtype=jnp.float32),
            "images": jnp.float32(len(labels)),
        }
        return sums, {NETWORK: updates.get("batch_stats", {})}

    def predict(variables, frozen, images, keys):
        inputs, valid = view(images, keys, frozen)
        logits, _ = run(model, variables[NETWORK], inputs)
        return fuse(logits[:, :, 0], valid)

    return Objective({NETWORK: model}, {NETWORK: input_size}, loss, predict)


def run(model, variables, inputs: jax.Array, **kwargs):
    """Run a network on inputs [b, T, P, P, 3]: logits [b, T, heads, N], updates."""
    flat = inputs.reshape(-1, *inputs.shape[2:])
    result = model.apply(variables, flat, **kwargs)
    (logits, _), updates = result if kwargs.get("mutable") else (result, {})
    shape = (*inputs.shape[:2], -1, logits.shape[-1])
    return logits.astype(jnp.float32).reshape(shape), updates


def fuse(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """Sum logits [B, T, N] over the inputs that exist, mask [B, T]: [B, N]."""
    return (logits * valid[..., None]).sum(1)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Sum the cross-entropies of a network's heads (2020, Sec. 3.2: there are six).

    Args:
      logits: [B, T, heads, N].
      labels: [B] int32.
      label_smoothing: share of the target that is spread over all classes.

    Returns:
      [B, T], of each input.
    """
    wanted = jnp.broadcast_to(labels[:, None, None], logits.shape[:-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    if label_smoothing:
        uniform = -jax.nn.log_softmax(logits).mean(-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return losses.sum(-1)


def keep_statistics(freeze: str) -> Callable:
    """Return the interceptor that runs frozen BatchNorms as in inference."""

    def intercept(call, args, kwargs, context):
        module = context.module
        norm = isinstance(module, nn.BatchNorm) and context.method_name == "__call__"
        if norm and optimizers.frozen(freeze, "/".join((*module.path, "scale"))):
            # Flax takes it from the constructor or from the call, not from both.
            object.__setattr__(module, "use_running_average", None)
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    return intercept
