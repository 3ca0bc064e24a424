"""Milliseconds per image: what early exit saves on the device at hand.

Methods and rules on real images, through the engine with its full batches, on one
device. All are run several times, in a changing order, and the medians are kept; a
network on the whole image is a method like any other and has the same clock.
"""

import statistics
import time
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging

from anchornet_jax.inference import engine, stopping
from anchornet_jax.methods import method as protocol

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


def prepare(
    method: protocol.Method, images: np.ndarray, batch_size: int, rules=()
) -> engine.Classifier:
    """Return a classifier on one device that has compiled its programs.

    Args:
      method: any.
      images: uint8 [B, H, W, 3], of which it takes some.
      batch_size: of the launches.
      rules: that will be measured; the classifier sees what they see.
    """
    seen = dict.fromkeys(name for rule in rules for name in rule.features)
    exits = len(method.steps)
    classifier = engine.Classifier(
        method,
        stopping.fixed(exits, exits),
        image_size=images.shape[1] if images.ndim > 1 else 0,
        batch_size=batch_size,
        features=tuple(seen),
        devices=jax.local_devices()[:1],
    )
    classifier.classify(images[: 2 * batch_size])
    return classifier


def choose_batch_size(
    method: protocol.Method, image_size: int, *, least: int = 8, most: int = 256
) -> int:
    """Choose the images of a launch on the first device, by a short measurement.

    Doubled as long as an image through all steps gets 5 % cheaper. Every size tried is a
    compilation of all steps.

    Args:
      method: any.
      image_size: side of the images in pixels.
      least: the first that is tried.
      most: the largest that is.
    """
    exits, costs = len(method.steps), {}
    size = least
    while size <= most:
        classifier = engine.Classifier(
            method,
            stopping.fixed(exits, exits),
            image_size=image_size,
            batch_size=size,
            in_flight=size,
            devices=jax.local_devices()[:1],
        )
        costs[size] = float(classifier.milliseconds(repeats=3)[-1])
        if costs[size] > 0.95 * costs.get(size // 2, np.inf):
            break
        size *= 2
    best = min(costs, key=costs.get)
    logging.info("batches of %d: %s ms per image", best, costs)
    return best


def fixed(method: protocol.Method) -> list[stopping.Rule]:
    """Return the rules by which all images leave at the first, second … exit."""
    exits = len(method.steps)
    return [stopping.fixed(t, exits) for t in range(1, exits + 1)]


def measure(ways: Mapping, images: np.ndarray) -> dict[object, list[float]]:
    """Measure every rule of every classifier, in milliseconds per image.

    Args:
      ways: {key: (classifier from `prepare`, rules)}.
      images: uint8 [B, H, W, 3], or for methods on the host [B] images of any sizes.

    Returns:
      {key: a time for each of its rules}.
    """
    runs = [(classifier, rule) for classifier, rules in ways.values() for rule in rules]
    times = [[] for _ in runs]
    rng = np.random.default_rng(0)
    for _ in range(REPEATS):
        for place in rng.permutation(len(runs)):  # no two always follow each other
            times[place].append(_seconds(*runs[place], images))
    logging.info("measured %d images in %d ways", len(images), len(runs))
    medians = iter(1e3 * statistics.median(t) / len(images) for t in times)
    return {key: [next(medians) for _ in rules] for key, (_, rules) in ways.items()}


def _seconds(classifier, rule, images) -> float:
    classifier.rule = rule
    begun = time.perf_counter()
    classifier.classify(images)
    return time.perf_counter() - begun
