"""Optimisers and schedules of the papers, and what is left as it is.

Localizing Semantic Patches (2022), Sec. 4.1: SGD with momentum. Adam and AdamW are there
for policies and for networks of one's own.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("cosine", "step", "restarts")


def _sgd(rate, momentum, nesterov, weight_decay):
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(rate, momentum, nesterov=nesterov),
    )


def _adam(rate, momentum, nesterov, weight_decay):
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.adam(rate, momentum, nesterov=nesterov),
    )


def _adamw(rate, momentum, nesterov, weight_decay):
    return optax.adamw(rate, momentum, weight_decay=weight_decay, nesterov=nesterov)


OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}


def create(
    steps: int,
    *,
    learning_rate: float,
    schedule: str,
    warmup: float,
    boundaries: tuple[float, ...],
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    name: str = "sgd",
    freeze: str = "",
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Return an optimiser of parameters {role: tree}.

    Args:
      steps: of the whole run.
      learning_rate: its highest value.
      schedule: `cosine` falls to 0, `step` is divided by 10 at each boundary, `restarts`
        falls to 0 along a cosine and starts again at each boundary (SGDR, 2017).
      warmup: share of the steps in which the rate rises from 0.
      boundaries: as shares of the run: 30 of 100 epochs is 0.3.
      momentum: of SGD; of Adam the decay of the first moment.
      nesterov: as the authors have it in Stage I, not in Stage II.
      weight_decay: on every parameter, as the authors apply it; `adamw` keeps it out of
        the moments.
      name: a key of `OPTIMIZERS`.
      freeze: a regular expression; parameters whose path begins with a match, such as
        `conv1|layer[123]_`, stay as they are, and so does their BatchNorm.
      rates: {role: factor} of the learning rate; 1 for a role that is not named.

    Raises:
      ValueError: for an unknown name or schedule, a share outside [0, 1], or a pattern
        that is no regular expression; at the first state, for a role that does not
        learn, or a pattern that leaves all or no parameters to learn.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"`name` is {name!r}; choose one of {sorted(OPTIMIZERS)}")
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` is {schedule!r}; choose one of {SCHEDULES}")
    if not all(0 <= share <= 1 for share in (warmup, *boundaries)):
        raise ValueError(
            f"`warmup` is {warmup} and `boundaries` are {boundaries}; all are shares "
            "of the run, from 0 to 1"
        )
    frozen(freeze, "")  # raises for a bad pattern

    def one(factor):
        rate = _schedule(schedule, steps, factor * learning_rate, warmup, boundaries)
        return OPTIMIZERS[name](rate, momentum, nesterov, weight_decay)

    if not freeze and not rates:
        return one(1.0)
    groups = {"frozen": optax.set_to_zero()}
    groups |= {f"at {x:g}": one(x) for x in {1.0, *(rates or {}).values()}}
    return optax.multi_transform(
        groups, lambda tree: _labels(tree, freeze, rates or {})
    )


def frozen(freeze: str, path: str) -> bool:
    """Say whether a parameter's path, such as `layer1_0/conv1/kernel`, is frozen.

    Raises:
      ValueError: if the pattern is no regular expression.
    """
    try:
        return bool(freeze) and re.match(freeze, path) is not None
    except re.error as error:
        raise ValueError(f"`freeze` is {freeze!r}: {error}") from None


def _labels(params, freeze, rates):
    """Name the group of each parameter.

    Raises:
      ValueError: if nothing, or everything, is frozen by the pattern, or a rate is of a
        role that is not there.
    """
    if unknown := sorted(set(rates) - set(params)):
        raise ValueError(
            f"`rates` names {', '.join(unknown)}; what learns are {', '.join(params)}"
        )

    def label(path, _):
        role, *rest = (key.key for key in path)
        if frozen(freeze, "/".join(rest)):
            return "frozen"
        return f"at {rates.get(role, 1.0):g}"

    labels = jax.tree.map_with_path(label, params)
    kinds = [leaf == "frozen" for leaf in jax.tree.leaves(labels)]
    if freeze and (all(kinds) or not any(kinds)):
        (tree, *_) = params.values()
        raise ValueError(
            f"`freeze` is {freeze!r}, which matches {'all' if all(kinds) else 'no'} "
            f"parameters; their paths begin with {sorted(tree)}"
        )
    return labels


def _schedule(schedule, steps, rate, warmup, boundaries):
    rising = int(warmup * steps)
    if schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, rate, rising, steps)
    places = sorted({int(share * steps) for share in boundaries})
    if schedule == "step":
        fall = optax.piecewise_constant_schedule(rate, dict.fromkeys(places, 0.1))
    else:
        starts = [0, *(place for place in places if 0 < place < steps)]
        lengths = [end - begin for begin, end in zip(starts, [*starts[1:], steps])]
        parts = [optax.cosine_decay_schedule(rate, length) for length in lengths]
        fall = optax.join_schedules(parts, starts[1:])
    if not warmup:
        return fall
    rise = optax.linear_schedule(0.0, rate, rising)
    return lambda step: jnp.minimum(rise(step), fall(step))
