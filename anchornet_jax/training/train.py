"""Training: one loop for every stage of Localizing Semantic Patches (2022), Sec. 3.5.

The stages differ in the network and in the view it is given (`views`), in nothing else;
other papers' trainings differ in their objective (`config.objective`):
Stage I (Eq. 3), the full-image network, the glance network (Eq. 4) and the patch network
(Eq. 5). A run that is stopped at any moment and started again goes on from its last
checkpoint and ends with the same parameters; SIGTERM makes it write one first.
"""

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import metric_writers

from anchornet_jax import models
from anchornet_jax.data import loading
from anchornet_jax.methods import views
from anchornet_jax.models import multiply_adds
from anchornet_jax.runtime import (
    checkpoint,
    console,
    networks,
    parallel,
    preemption,
    pretrained,
    workdir,
)
from anchornet_jax.training import (
    objectives,
    optimizers,
    saccader,
    several,
    train_step,
)

CLASSIFICATION = "classification"
OF_A_NETWORK = {CLASSIFICATION: objectives.classification, **saccader.OBJECTIVES}
OF_A_METHOD = several.OBJECTIVES  # of several of its networks at once
OBJECTIVES = OF_A_NETWORK | OF_A_METHOD  # by `config.objective`
NETWORK = objectives.NETWORK  # the trained network in the run's directory


class Run(NamedTuple):
    """A config made concrete: what the loop needs, checked, nothing written yet."""

    source: loading.Source
    descriptions: dict  # {role: arguments of `models.create`} of what is trained
    objective: objectives.Objective
    frozen: dict | None  # variables of what is there and does not learn
    start: dict  # {role: variables} where training does not start at random
    macs: int  # of an image, as it is classified
    optimizer: optax.GradientTransformation
    steps: int
    save_every: int  # steps
    score: Callable  # the mapped `make_score_step`


def plan(config) -> Run:
    """Check a config and prepare its data.

    Raises:
      ValueError: for what cannot run, before anything is compiled or written.
    """
    parallel.local_batch(config.batch_size)
    images = config.batch_size // jax.device_count()
    if config.accumulate < 1 or images % config.accumulate:
        raise ValueError(
            f"`config.accumulate` is {config.accumulate}; it must divide the {images} "
            "images of a batch that each device has"
        )
    source = loading.prepare(**config.data)
    loading.check_trained_size(source)
    per_epoch = loading.steps_per_epoch(source, config.train_split, config.batch_size)
    source.examples(config.calibration_split)
    steps = max(1, round(config.epochs * per_epoch))
    if config.objective not in OBJECTIVES:
        raise ValueError(
            f"`config.objective` is {config.objective!r}; choose one of "
            f"{sorted(OBJECTIVES)}"
        )
    prepare = several.prepare if config.objective in OF_A_METHOD else _of_a_network
    prepared = prepare(config, source)
    objective = prepared["objective"]
    return Run(
        source,
        **prepared,
        optimizer=optimizers.create(steps, **config.optimizer),
        steps=steps,
        save_every=max(1, round(config.save_every_epochs * per_epoch)),
        score=parallel.predict_step(train_step.make_score_step(objective, config.seed)),
    )


def _of_a_network(config, source) -> dict:
    """Return what `Run` holds of an objective that trains `config.model`."""
    description = {
        "name": config.model,
        "num_classes": len(source.classes),
        "dtype": config.dtype,
    }
    model = models.create(**description, axis_name=parallel.AXIS)
    prepare = _taught if config.teacher else _classified
    objective, frozen = prepare(config, source, model)
    start, (images,) = {}, objective.given[NETWORK]
    if config.init_from:
        start[NETWORK] = _start(config, model, objective.given[NETWORK])
    return {
        "descriptions": {NETWORK: description},
        "objective": objective,
        "frozen": frozen,
        "start": start,
        "macs": multiply_adds.model_macs(model, images.shape[1]),
    }


def _taught(config, source, model) -> tuple[objectives.Objective, dict]:
    """Return the objective of a pupil, and its teacher's variables."""
    if config.objective != CLASSIFICATION:
        raise ValueError(
            f"`config.objective` is {config.objective!r}; with `config.teacher` allowed "
            f"is {CLASSIFICATION!r}"
        )
    if config.view.name != "full" or config.mixup:
        raise ValueError(
            f"`config.teacher` is {config.teacher!r}, with the view "
            f"{config.view.name!r} and `mixup` {config.mixup}; allowed are 'full' and 0"
        )
    teacher, variables, about = networks.load(config.teacher)
    classes = about.get("classes", source.classes)
    if classes != source.classes or teacher.num_classes != len(source.classes):
        raise ValueError(
            f"`config.teacher` is {config.teacher!r}, which was trained for "
            f"{teacher.num_classes} classes, named {classes[:3]} …; the data has "
            f"{len(source.classes)}, named {source.classes[:3]} …"
        )
    objective = objectives.taught(
        model,
        teacher,
        source.image_size,
        **config.teaching,
        label_smoothing=config.label_smoothing,
        freeze=config.optimizer.freeze,
    )
    return objective, variables


def _classified(config, source, model) -> tuple[objectives.Objective, dict | None]:
    """Return the config's objective, and the localiser's variables, if any."""
    if config.localizer:
        localizer, frozen, _ = networks.load(config.localizer)
    elif config.view.name == "patches":
        raise ValueError(
            "`config.localizer` is empty; the view `patches` needs the directory of a "
            "trained AnchorNet"
        )
    else:
        localizer, frozen = models.create("anchornet", len(source.classes)), None
    view = views.make(
        localizer=localizer, network=model, heatmap=config.heatmap, **config.view
    )
    images = jax.ShapeDtypeStruct((1, *2 * [source.image_size], 3), jnp.uint8)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    inputs, _ = jax.eval_shape(view, images, keys, frozen)
    objective = OF_A_NETWORK[config.objective](
        model,
        view,
        inputs.shape[2],
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        freeze=config.optimizer.freeze,
    )
    return objective, frozen


def train(config, directory) -> dict:
    """Train as the config says; resume what `directory` holds.

    Writes TensorBoard summaries, `checkpoints/` and, at the end, `network/`, or of the
    networks of a method each role's: the best state on the calibration split, to be
    loaded by `networks.load`.

    Returns:
      `accuracy` on the calibration split, `macs` of an image as it is classified in
      training, `parameters` of all that learns, `steps`, and by role the directory of
      each network, such as `network`.

    Raises:
      ValueError: for a config that cannot run, before anything is compiled or written.
      FloatingPointError: if the loss is not finite; it names the step.
      preemption.Preempted: after SIGTERM, once the state is saved.
    """
    run = plan(config)
    state = train_step.create_state(
        run.objective, run.optimizer, config.seed, run.start
    )
    directory = workdir.claim(directory, config.to_dict())
    result = {
        "macs": run.macs,
        "parameters": multiply_adds.parameters({"params": state.params}),
        "steps": run.steps,
        **{role: str(directory / role) for role in run.descriptions},
    }
    logging.info(
        "%s: %d parameters, %.1f M multiply-adds for an image",
        ", ".join(one["name"] for one in run.descriptions.values()),
        result["parameters"],
        result["macs"] / 1e6,
    )
    with (
        checkpoint.Checkpoints(directory / "checkpoints") as checkpoints,
        contextlib.closing(_writer(directory)) as writer,
        preemption.watch() as asked_to_stop,
    ):
        report = _reporter(directory.name, run, config)
        state, scores = _loop(
            run, config, state, checkpoints, writer, report, asked_to_stop
        )
        step, best = checkpoints.restore_best(state)
    result["accuracy"] = scores.get(step) or _evaluate(run, config, best)
    for role, variables in best.variables().items():
        networks.save(
            directory / role,
            run.descriptions[role],
            variables,
            classes=run.source.classes,
            config=config.to_dict(),
            step=step,
            accuracy=result["accuracy"],
        )
    return result


def _start(config, model, given) -> dict:
    """Return the variables that the config starts from."""
    if pretrained.named(config.init_from):
        return pretrained.load(config.init_from, config.model, model, config.seed)
    loaded, _ = checkpoint.load_variables(config.init_from)
    return checkpoint.match(loaded, train_step.shapes(model, given))


def _writer(directory):
    """Return what writes TensorBoard's summaries, on process 0 alone."""
    if jax.process_index():
        return metric_writers.MultiWriter([])
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(directory)))


def _reporter(name: str, run: Run, config) -> Callable:
    """Return `report(step, sums)`, which says now and then how far training is."""
    recent, left = [], None

    def report(step, sums):
        nonlocal left
        left = left or console.reporter(run.steps, step - 1)
        recent.append(sums)
        seconds = left(step)
        if seconds is None:
            return
        known = jax.device_get(recent[: max(1, len(recent) - 2)])  # the others run
        del recent[: len(known)]
        total = jax.tree.map(lambda *values: np.sum(values), *known)
        rate = config.batch_size * (run.steps - step) / max(seconds, 1e-9)
        logging.info(
            "%s: step %d of %d, loss %.3f, accuracy %.1f %%, %.0f images/s, %s left",
            *(name, step, run.steps, total["loss"] / total["count"]),
            *(100 * total["correct"] / total["images"], rate),
            console.remaining(seconds),
        )

    return report


def _loop(run, config, state, checkpoints, writer, report, asked_to_stop):
    """Train to the last step; return the last state, on the host, and {step: score}."""
    step_fn = parallel.train_step(
        train_step.make_train_step(
            run.objective, run.optimizer, config.seed, config.accumulate
        )
    )
    start, state = checkpoints.restore(state) or (0, state)
    if start:
        logging.info("resumed at step %d of %d", start, run.steps)
    state, frozen = parallel.replicate((state, run.frozen))
    batches = loading.training(
        run.source,
        config.train_split,
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=start,
    )
    settle = _settler(run, config)
    scores, begun = {}, time.monotonic()
    pending = []  # sums of the steps since the last log, on the device
    for step in range(start + 1, run.steps + 1):
        state, sums = step_fn(state, frozen, next(batches))
        if step == start + 1:
            jax.block_until_ready(sums)
            seconds = time.monotonic() - begun
            logging.info("step %d of %d, compiled in %.0f s", step, run.steps, seconds)
        pending.append(sums)
        if len(pending) > 2:  # or steps, and their batches, would queue up unseen
            jax.block_until_ready(pending[-3])
        report(step, sums)
        stop = asked_to_stop(step)
        save = step % run.save_every == 0 or step == run.steps
        if save or stop or step % config.log_every_steps == 0:
            _log(writer, step, jax.device_get(pending))
            pending = []
        if save:
            state = settle(step, state, frozen)
            scores[step] = _evaluate(run, config, state)
            writer.write_scalars(step, {"calibration_score": scores[step]})
            logging.info(
                "step %d of %d: %.1f %% %s on the calibration split",
                *(step, run.steps, 100 * scores[step], run.objective.score_name),
            )
            checkpoints.save(step, state, metric=scores[step])
        if stop:
            if not save:  # no score: such a state is never the best
                checkpoints.save(step, state)
            checkpoints.wait()
            raise preemption.Preempted(
                f"stopped by SIGTERM; saved step {step} of {run.steps}, the same "
                "command goes on from there"
            )
    return jax.device_get(state), scores


def _settler(run, config) -> Callable:
    """Return `settle(step, state, frozen)`, with statistics as of the parameters now."""
    mapped = parallel.train_step(
        train_step.make_settle_step(run.objective, config.seed)
    )

    def settle(step, state, frozen):
        if not config.settle_batches:
            return state
        batches = loading.training(
            run.source,
            config.train_split,
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=step,
        )
        for batch in itertools.islice(batches, config.settle_batches):
            state, _ = mapped(state, frozen, batch)
            jax.block_until_ready(state.step)
        return state

    return settle


def _log(writer, step, sums) -> None:
    """Write means over the last steps; refuse to go on from a loss that is no number."""
    for at, values in enumerate(sums, step - len(sums) + 1):
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss is {values['loss']} at step {at}; no state from there on was "
                "saved. Try a lower `config.optimizer.learning_rate` or more `warmup`."
            )
    total = jax.tree.map(lambda *values: np.sum(values), *sums)
    writer.write_scalars(
        step,
        {
            "loss": total["loss"] / total["count"],
            "accuracy": total["correct"] / total["images"],
        },
    )


def _evaluate(run, config, state) -> float:
    """Return the mean score of a state on the calibration split, see `Objective`."""
    networks = parallel.replicate((state.variables(), run.frozen))
    batches = loading.evaluation(
        run.source,
        config.calibration_split,
        batch_size=config.batch_size // config.accumulate,  # what fits a device
    )
    return train_step.mean_score(run.score, networks, batches)
