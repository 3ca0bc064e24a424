"""Milliseconds per image: what early exit saves on the device at hand.

The rules of a budgeted curve, on real images, through the engine (`inference`) with its
full batches; beside them every image with the same number of inputs, and one network on
the full image, which is given what the engine has: one device, variables that are there
already, BatchNorm folded. All are run several times, in a changing order, and the medians
are kept.
"""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from anchornet_jax.inference import engine, folding, stopping
from anchornet_jax.methods import anchornet, views

REPEATS = 3


def check(images: int, batch_size: int) -> None:
    """Refuse a config's `timing` that cannot be.

    Raises:
      ValueError: for fewer images than a batch has, unless there are none.
    """
    if batch_size < 1 or 0 != images < batch_size:
        raise ValueError(
            f"`config.timing.images` is {images} and `batch_size` {batch_size}; allowed "
            "are 0 images, or a batch of 1 or more at least"
        )


def measure(
    method: anchornet.Sequence, images: np.ndarray, batch_size: int, rules: list, full
) -> tuple[list[float], list[float], float | None, list[float]]:
    """Measure every rule and every number of inputs, in milliseconds per image.

    Args:
      method: the networks.
      images: uint8 [B, H, W, 3].
      batch_size: images of a launch.
      rules: of the budgets.
      full: the network that sees the full image, or None.

    Returns:
      A time for each rule, for each of 1 ... T inputs, for the full image, and what
      leaving at each exit costs at full batches, `Classifier.milliseconds`.
    """
    fixed = [stopping.fixed(t, method.inputs) for t in range(1, method.inputs + 1)]
    classifier = engine.Classifier(
        method,
        fixed[-1],
        image_size=images.shape[1],
        batch_size=batch_size,
        devices=jax.local_devices()[:1],
    )

    def run(rule):
        classifier.rule = rule
        classifier.classify(images)

    ways = [lambda rule=rule: run(rule) for rule in (*rules, *fixed)]
    if full is not None:
        ways.append(_full_image(full, images, batch_size))
    for way in ways[len(rules) :]:
        way()  # compiles
    times = [[] for _ in ways]
    rng = np.random.default_rng(0)
    for _ in range(REPEATS):
        for place in rng.permutation(len(ways)):  # no two always follow each other
            times[place].append(_seconds(ways[place]))
    per_image = [1e3 * statistics.median(taken) / len(images) for taken in times]
    whole = None if full is None else per_image.pop()
    logging.info("measured %d images at %d budgets", len(images), len(rules))
    cost = classifier.milliseconds().tolist()
    return per_image[: len(rules)], per_image[len(rules) :], whole, cost


def _seconds(function: Callable) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _full_image(network, images, batch_size) -> Callable:
    """Return a function that classifies the images whole, one batch after the other."""
    network = folding.fold(network, images.shape[1])
    variables = jax.device_put(network.variables)

    @jax.jit
    def predict(variables, batch):
        logits, _ = network.model.apply(variables, views.normalise(batch))
        return logits.argmax(-1)

    def run():
        found = [
            predict(variables, images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
        jax.block_until_ready(found)

    return run
