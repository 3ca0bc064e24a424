"""Objectives: what is trained, and what its loss is.

The loop and the step serve every objective (`train`, `train_step`); an objective says
which networks learn, what they lose on a batch, and how they classify. `classification`
is that of both papers: cross-entropy on a view of the image (2022, Sec. 3.5; 2020,
Sec. 3.2). `taught` is the project's own, for a localiser with little data: a classifier
that has seen the world shows it where things are.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from anchornet_jax.methods import localize, preprocessing
from anchornet_jax.models import attribution
from anchornet_jax.training import optimizers

NETWORK = "network"  # the role of the one network that a classification trains


class Objective(NamedTuple):
    """What a training step minimises.

    Attributes:
      trained: {role: module} of the networks that learn.
      given: {role: what its module is called with, for one image, as shapes}.
      loss: `loss(variables, frozen, images, labels, keys) -> (sums, batch_stats)` with
        `variables` {role: variables}, `frozen` what the objective reads besides, uint8
        images [b, H, W, 3], labels [b] and one random key per image. `sums` are over the
        batch: `loss`, which is differentiated, `count` that it is divided by, `correct`
        of `images`. `batch_stats` {role: …} are the new ones.
      predict: `predict(variables, frozen, images, keys) -> logits [b, N]`.
      whole_batch: why a batch may not be taken in parts, empty where it may.
      score: `score(variables, frozen, images, labels, keys) -> [b]`, 0 to 1: of what the
        best state has most on the calibration split. None: whether `predict` is right.
      score_name: for the log, after a percentage.
    """

    trained: dict[str, nn.Module]
    given: dict[str, tuple[jax.ShapeDtypeStruct, ...]]
    loss: Callable
    predict: Callable
    whole_batch: str = ""
    score: Callable | None = None
    score_name: str = "right"


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
                _still(variables[NETWORK], freeze),
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

    return Objective({NETWORK: model}, {NETWORK: image(input_size)}, loss, predict)


def taught(
    model: nn.Module,
    teacher: nn.Module,
    input_size: int,
    *,
    classes: float = 0.5,
    places: float = 0.3,
    sharpness: float = 2.0,
    label_smoothing: float = 0.0,
    freeze: str = "",
) -> Objective:
    """Return the objective of a localiser that learns from a classifier where to look.

    Not of the papers. From a few thousand images AnchorNet learns their background by
    heart; a fine-tuned full-image network says what is in an image (distillation, Hinton
    et al., 2015) and, by its class activation map (Zhou et al., 2016), where. The loss of
    an image is (1 - `classes`) times the cross-entropy to its label, `classes` times that
    to the teacher's classes, and `places` times two cross-entropies over the locations
    of the grid, from `teacher_places` to the softmax of the pupil's evidence for the true
    class, and to that of its evidence for any (`localize.agnostic_map`).

    Such a pupil often names the wrong class in the right place, so the best state is not
    the one that classifies best: it is scored by the teacher's evidence where its own, for
    any class, is strongest, as a share of the teacher's strongest.

    Args:
      model: the pupil, an AnchorNet of one patch size; it sees the whole image.
      teacher: any network that averages its last map; `frozen` are its variables. It sees
        the same pixels as the pupil, augmentation included, and never learns.
      input_size: side of the images in pixels.
      classes: share of the target that are the teacher's classes.
      places: weight of either cross-entropy over locations.
      sharpness: factor of the teacher's evidence before its softmax.
      label_smoothing: of the label's share, see `classification`.
      freeze: as of `classification`.

    Raises:
      ValueError: for a share outside [0, 1], a negative weight, or a pupil that does not
        localise with patches of one size.
    """
    if not 0 <= classes <= 1 or places < 0 or sharpness < 0:
        raise ValueError(
            f"`classes` is {classes}, `places` {places} and `sharpness` {sharpness}; "
            "allowed are 0 to 1, and 0 or more"
        )
    if len(getattr(model, "fields", ())) != 1:
        raise ValueError(
            f"`model` is {type(model).__name__}; a teacher needs a pupil that localises "
            "with patches of one size, such as anchornet"
        )
    keep = keep_statistics(freeze)

    def loss(variables, frozen, images, labels, keys):
        with nn.intercept_methods(keep):
            (_, out), updates = model.apply(
                _still(variables[NETWORK], freeze),
                preprocessing.normalise(images, model),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": keys[0]},
            )
        (evidence,) = model.evidence(variables[NETWORK], out)  # [b, G, G, N]
        logits = evidence.mean((1, 2))
        known, where = teach(teacher, frozen, images, labels, model.field, sharpness)
        losses = (1 - classes) * cross_entropy(
            logits[:, None, None], labels, label_smoothing
        )[:, 0] + classes * optax.softmax_cross_entropy(logits, known)
        own = jnp.take_along_axis(evidence, labels[:, None, None, None], -1)[..., 0]
        for maps in (own, jax.nn.logsumexp(evidence, -1)):
            found = maps.reshape(len(maps), -1)
            losses += places * optax.softmax_cross_entropy(found, where)
        found = totals(losses, logits, labels)
        return found, {NETWORK: updates.get("batch_stats", {})}

    def predict(variables, frozen, images, keys):
        pixels = preprocessing.normalise(images, model)
        return model.apply(variables[NETWORK], pixels)[0]

    def score(variables, frozen, images, labels, keys):
        pixels = preprocessing.normalise(images, model)
        _, out = model.apply(variables[NETWORK], pixels)
        (evidence,) = model.evidence(variables[NETWORK], out)
        found = jax.nn.logsumexp(evidence, -1).reshape(len(images), -1).argmax(-1)
        _, where = teach(teacher, frozen, images, labels, model.field, sharpness)
        there = jnp.take_along_axis(where, found[:, None], -1)[:, 0]
        return there / where.max(-1)

    return Objective(
        {NETWORK: model},
        {NETWORK: image(input_size)},
        loss,
        predict,
        score=score,
        score_name="agreement with the teacher",
    )


def teach(teacher, variables, images, labels, field, sharpness: float):
    """Return what a teacher says of images [b, H, W, 3] with these labels [b].

    Returns:
      Its classes [b, N] as probabilities, and its evidence for the true class as a
      distribution over the lattice [b, G G] of a pupil's patches, `field`.
    """
    pixels = preprocessing.normalise(images, teacher)
    logits, out = teacher.apply(variables, pixels)
    maps = attribution.class_map(variables, out["features"], labels)
    means = localize.window_means(maps, field, images.shape[1])  # [b, G, G]
    means = means.reshape(len(means), -1)
    means = jax.nn.standardize(means, axis=-1)
    return jax.nn.softmax(logits), jax.nn.softmax(sharpness * means)


def image(size: int) -> tuple[jax.ShapeDtypeStruct]:
    """Return what a network that sees images of this side in pixels is called with."""
    return (jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),)


def totals(losses: jax.Array, logits: jax.Array, labels: jax.Array) -> dict:
    """Return the `sums` of an objective, of each image's loss [b] and logits [b, N]."""
    right = logits.argmax(-1) == labels
    return {
        "loss": losses.sum(),
        "count": jnp.float32(len(labels)),
        "correct": right.sum(dtype=jnp.float32),
        "images": jnp.float32(len(labels)),
    }


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


def _still(variables, freeze: str):
    """Return variables of which the frozen parameters have no gradient.

    They would not change anyway; but what comes before all that learns need not be
    differentiated, which is most of the work where the first blocks are frozen.
    """

    def still(path, leaf):
        names = "/".join(key.key for key in path)
        return jax.lax.stop_gradient(leaf) if optimizers.frozen(freeze, names) else leaf

    params = jax.tree.map_with_path(still, variables["params"])
    return {**variables, "params": params}


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
