"""What a step says of every image of a split, gathered from all devices and hosts.

step = parallel.predict_step(lambda variables, batch: {"class": ...})
found = collect.collect(step, variables, source, "test", batch_size=64)
(found["class"] == found["label"]).mean()
"""

from collections.abc import Callable

import numpy as np
from clu import periodic_actions

from anchornet_jax.data import loading
from anchornet_jax.runtime import parallel


def collect(
    step: Callable,
    variables,
    source: loading.Source,
    split: str,
    *,
    batch_size: int,
    limit: int = 0,
    images: int = 0,
) -> dict[str, np.ndarray]:
    """Run a step on a split; return its results without the filling rows.

    Args:
      step: from `parallel.predict_step`.
      variables: its first argument, replicated.
      source: from `loading.prepare`.
      split: a TFDS split.
      batch_size: images of all hosts together.
      limit: so many images are enough, rounded up to whole batches; 0 for all.
      images: how many of its images each host keeps, the first ones.

    Returns:
      The step's arrays [n, ...], `label` [n] and what else `loading.evaluation` tells of an
      image, of all hosts and in the order of the split, and the kept images as `image`.
    """
    results, kept = [], 0
    wanted = min(limit or np.inf, source.examples(split))
    report = periodic_actions.ReportProgress(num_train_steps=wanted, every_secs=10)
    batches = loading.evaluation(source, split, batch_size=batch_size)
    for number, batch in enumerate(batches, 1):
        found = parallel.gather(step(variables, {"image": batch["image"]}))
        rows = parallel.gather(batch)
        mask = rows.pop("mask")
        result = {key: value[mask] for key, value in (rows | found).items()}
        result["image"] = result["image"][: images - kept]
        kept += len(result["image"])
        results.append(result)
        report(min(wanted, number * batch_size))
        if 0 < limit <= number * batch_size:
            break
    return _joined(parallel.exchange(_joined(results)))


def _joined(results):
    return {key: np.concatenate([r[key] for r in results]) for key in results[0]}
