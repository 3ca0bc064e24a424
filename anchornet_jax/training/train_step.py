"""What one step does: the state, the optimiser, learning from a batch, predicting.

Localizing Semantic Patches (2022), Sec. 3.5 and 4.1. The same steps serve every stage:
the network and the view it is given are arguments.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from anchornet_jax.runtime import parallel

SCHEDULES = ("cosine", "step")


@flax.struct.dataclass
class TrainState:
    """All that training changes; it depends on nothing else but the seed."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState


def create_optimizer(
    steps: int,
    *,
    learning_rate: float,
    schedule: str,
    warmup: float,
    boundaries: tuple[float, ...],
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Return SGD as both papers use it (2022, Sec. 4.1).

    Args:
      steps: of the whole run.
      learning_rate: its highest value.
      schedule: `cosine` falls to 0, `step` is divided by 10 at each boundary.
      warmup: share of the steps in which the rate rises from 0.
      boundaries: of `step`, as shares of the run: 30 of 100 epochs is 0.3.
      momentum: of SGD.
      nesterov: as the authors have it in Stage I, not in Stage II.
      weight_decay: on every parameter, as the authors apply it.

    Raises:
      ValueError: for an unknown schedule or a share outside [0, 1].
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` is {schedule!r}; choose one of {SCHEDULES}")
    if not all(0 <= share <= 1 for share in (warmup, *boundaries)):
        raise ValueError(
            f"`warmup` is {warmup} and `boundaries` are {boundaries}; all are shares "
            "of the run, from 0 to 1"
        )
    if schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, int(warmup * steps), steps
        )
    else:
        rise = optax.linear_schedule(0.0, learning_rate, int(warmup * steps))
        drops = {int(share * steps): 0.1 for share in boundaries}
        fall = optax.piecewise_constant_schedule(learning_rate, drops)
        rate = (lambda step: jnp.minimum(rise(step), fall(step))) if warmup else fall
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(rate, momentum, nesterov=nesterov),
    )


def fuse(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """Sum logits [B, T, N] over the inputs that exist, mask [B, T]: [B, N]."""
    return (logits * valid[..., None]).sum(1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum the cross-entropies of a network's heads (2020, Sec. 3.2: there are six).

    Args:
      logits: [B, T, heads, N].
      labels: [B] int32.

    Returns:
      [B, T], of each input.
    """
    wanted = jnp.broadcast_to(labels[:, None, None], logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).sum(-1)


def _see(view, model, variables, images, keys, frozen, **kwargs):
    """Run a network on a view: logits [b, T, heads, N] float32, mask [b, T], updates."""
    inputs, valid = view(images, keys, frozen)
    flat = inputs.reshape(-1, *inputs.shape[2:])
    result = model.apply(variables, flat, **kwargs)
    (logits, _), updates = result if kwargs.get("mutable") else (result, {})
    shape = (*valid.shape, -1, logits.shape[-1])
    logits = logits.astype(jnp.float32).reshape(shape)
    return logits, valid, updates


def make_train_step(model, view, optimizer, seed: int, accumulate: int = 1):
    """Return the step to be mapped by `parallel.train_step`.

    Its metrics are sums over all devices: `loss` and `correct` of `count` inputs and
    `images` images. The gradient is that of the mean over inputs, so it does not depend
    on the number of devices, nor on `accumulate`: so many micro-batches one after the
    other, which divide a device's images. BatchNorm normalises each micro-batch by
    itself and updates its statistics with each, as accumulation in PyTorch does.
    """

    def step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = parallel.image_keys(key, len(batch["image"]))

        def loss(params, batch_stats, images, labels, keys):
            logits, valid, updates = _see(
                view,
                model,
                {"params": params, "batch_stats": batch_stats},
                images,
                keys,
                frozen,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": keys[0]},
            )
            losses = cross_entropy(logits, labels)
            right = fuse(logits.mean(2), valid).argmax(-1) == labels
            sums = {
                "loss": (losses * valid).sum(),
                "count": valid.sum(dtype=jnp.float32),
                "correct": right.sum(dtype=jnp.float32),
                "images": jnp.float32(len(labels)),
            }
            return sums["loss"], (sums, updates.get("batch_stats", {}))

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


def make_predict_step(model, view, seed: int):
    """Return `predict((variables, frozen), batch) -> {"logits": [b, N]}`, to be mapped.

    The logits of an image's inputs are summed, as in sequential inference.
    """

    def predict(networks, batch):
        variables, frozen = networks
        keys = parallel.image_keys(jax.random.key(seed), len(batch["image"]))
        logits, valid, _ = _see(view, model, variables, batch["image"], keys, frozen)
        return {"logits": fuse(logits[:, :, 0], valid)}

    return predict


def accuracy(predict, networks, batches) -> float:
    """Return the top-1 accuracy over batches of `loading.evaluation`.

    Args:
      predict: `make_predict_step`, mapped.
      networks: its first argument.
      batches: this host's; every image counts once.
    """
    correct = count = 0
    for batch in batches:
        result = predict(networks, {"image": batch["image"]})
        label, mask = (batch[name].reshape(-1) for name in ("label", "mask"))
        right = parallel.gather(result)["logits"].argmax(-1) == label
        correct += int((right & mask).sum())
        count += int(mask.sum())
    correct, count = np.sum(parallel.exchange(np.array([correct, count])), axis=0)
    return float(correct / count)


def shapes(model, image_size: int) -> dict:
    """Return a network's variables as `jax.ShapeDtypeStruct`s: nothing is computed."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def create_state(model, optimizer, image_size: int, seed: int, variables=None):
    """Return the first state: random, or of `variables` with the model's `shapes`."""
    if variables is None:
        images = jnp.zeros((1, image_size, image_size, 3))
        variables = jax.jit(model.init)(jax.random.key(seed), images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
    )
