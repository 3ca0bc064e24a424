"""What one step does: learning from a batch, predicting, and the state it changes.

The same steps serve every objective, on any number of devices.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from anchornet_jax.runtime import parallel
from anchornet_jax.training.objectives import Objective


@flax.struct.dataclass
class TrainState:
    """All that training changes; it depends on nothing else but the seed.

    `params` and `batch_stats` are {role: tree}.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState

    def variables(self) -> dict:
        """Return {role: variables} as `flax.linen.Module.apply` takes them."""
        return {
            role: {"params": params, "batch_stats": self.batch_stats[role]}
            for role, params in self.params.items()
        }


def make_train_step(objective: Objective, optimizer, seed: int, accumulate: int = 1):
    """Return the step to be mapped by `parallel.train_step`.

    Its metrics are sums over all devices: `loss` and `correct` of `count` inputs and
    `images` images. The gradient is that of the mean over inputs, so it does not depend
    on the number of devices, nor on `accumulate`: so many micro-batches one after the
    other, which divide a device's images. BatchNorm normalises each micro-batch by
    itself and updates its statistics with each, as accumulation in PyTorch does.

    Raises:
      ValueError: if the objective needs a batch whole.
    """
    if accumulate > 1 and objective.whole_batch:
        raise ValueError(
            f"`accumulate` is {accumulate}; allowed is 1: {objective.whole_batch}"
        )

    def step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = parallel.image_keys(key, len(batch["image"]))

        def loss(params, batch_stats, images, labels, keys):
            variables = state.replace(params=params, batch_stats=batch_stats)
            sums, batch_stats = objective.loss(
                variables.variables(), frozen, images, labels, keys
            )
            return sums["loss"], (sums, batch_stats)

        def add(totals, part):
            *totals, batch_stats = totals
            grads, (sums, batch_stats) = jax.grad(loss, has_aux=True)(
                state.params, batch_stats, *part
            )
            return (*jax.tree.map(jnp.add, totals, [grads, sums]), batch_stats), None

        parts = jax.tree.map(
            lambda a: a.reshape(accumulate, -1, *a.shape[1:]),
            (batch["image"], batch["label"], keys),
        )
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        sums = dict.fromkeys(("loss", "count", "correct", "images"), jnp.float32(0))
        totals = (zeros, sums, state.batch_stats)
        if accumulate == 1:  # XLA on CPU convolves many times slower inside a loop
            (grads, sums, batch_stats), _ = add(
                totals, jax.tree.map(lambda a: a[0], parts)
            )
        else:
            (grads, sums, batch_stats), _ = jax.lax.scan(add, totals, parts)
        grads, sums = jax.lax.psum((grads, sums), parallel.AXIS)
        grads = jax.tree.map(lambda g: g / sums["count"], grads)
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, changes),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, sums

    return step


def make_settle_step(objective: Objective, seed: int):
    """Return the step that brings BatchNorm's statistics up to date, to be mapped.

    Running statistics are those of parameters some steps ago. Where most of an image is
    one colour, a channel's mean moves with the parameters by much of its small deviation
    at every step, and what was just learned is lost in evaluation. The same on batches
    without learning ends with the statistics of the parameters as they are (Wu and
    Johnson, Rethinking "Batch" in BatchNorm, 2021, Sec. 3).
    """

    def step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = parallel.image_keys(key, len(batch["image"]))
        _, batch_stats = objective.loss(
            state.variables(), frozen, batch["image"], batch["label"], keys
        )
        return state.replace(batch_stats=batch_stats), {}

    return step


def make_score_step(objective: Objective, seed: int):
    """Return `score((variables, frozen), batch) -> {"score": [b]}`, to be mapped.

    The batch is `image` and `label`; the score is the objective's, or 1 where it is right.
    """

    def score(networks, batch):
        variables, frozen = networks
        images, labels = batch["image"], batch["label"]
        keys = parallel.image_keys(jax.random.key(seed), len(images))
        if objective.score:
            found = objective.score(variables, frozen, images, labels, keys)
        else:
            logits = objective.predict(variables, frozen, images, keys)
            found = logits.argmax(-1) == labels
        return {"score": found.astype(jnp.float32)}

    return score


def mean_score(score, networks, batches) -> float:
    """Return the mean score over batches of `loading.evaluation`, such as the accuracy.

    Args:
      score: `make_score_step`, mapped.
      networks: its first argument.
      batches: this host's; every image counts once.
    """
    total = count = 0
    for batch in batches:
        result = score(networks, {name: batch[name] for name in ("image", "label")})
        mask = batch["mask"].reshape(-1)
        total += float(parallel.gather(result)["score"][mask].sum(dtype=np.float64))
        count += int(mask.sum())
    total, count = np.sum(parallel.exchange(np.array([total, count])), axis=0)
    return float(total / count)


def shapes(model, given: tuple[jax.ShapeDtypeStruct, ...]) -> dict:
    """Return a network's variables as `jax.ShapeDtypeStruct`s: nothing is computed.

    Args:
      model: any.
      given: as of `objectives.Objective`.
    """
    return jax.eval_shape(model.init, jax.random.key(0), *given)


def create_state(objective: Objective, optimizer, seed: int, variables=None):
    """Return the first state: random, or of `variables` {role: …} where they are given.

    The first role is drawn from the seed, others from keys derived from it.
    """
    given, found = dict(variables or {}), {}
    for number, (role, model) in enumerate(objective.trained.items()):
        if role not in given:
            key = jax.random.key(seed)
            key = jax.random.fold_in(key, number) if number else key
            zeros = (jnp.zeros(x.shape, x.dtype) for x in objective.given[role])
            given[role] = jax.jit(model.init)(key, *zeros)
        found[role] = given[role]
    params = {role: own["params"] for role, own in found.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={role: own.get("batch_stats", {}) for role, own in found.items()},
        opt_state=optimizer.init(params),
    )
