"""Learned fusion: what each source's evidence is worth, at each exit.

Summed logits make a better answer than any of them, but not a probability: the networks
were trained one by one, each to be sure by itself, so the sum of five is far too sure.
Here each source's sum (the glance, the localiser, all patches so far) gets a weight at
each exit, fitted by likelihood on the calibration images; with one source that is
temperature scaling (Guo et al., On Calibration of Modern Neural Networks, 2017). It goes
beyond both papers, which add up.

    weights = fusion.fit(logits, label, method.sources)
    method = dataclasses.replace(method, weights=weights)
"""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

PULL = 1e-3  # towards a weight of 1, which decides where the images do not


def fit(
    logits: np.ndarray, label: np.ndarray, sources: Sequence[str]
) -> list[list[float]]:
    """Return the weights [T][S] under which the labels are most likely, exit by exit.

    Args:
      logits: [n, T, N] plain sums after each of T exits, of calibration images.
      label: [n] int.
      sources: [T] names; the step before exit t adds the logits of source `sources[t]`.

    Raises:
      ValueError: for sources that are not one for each exit.
    """
    logits, label = np.asarray(logits, float), np.asarray(label)
    if len(sources) != logits.shape[1]:
        raise ValueError(
            f"`sources` is {tuple(sources)}; `logits` has {logits.shape[1]} exits"
        )
    names = list(dict.fromkeys(sources))
    added = np.diff(logits, axis=1, prepend=0.0)
    sums, weights = np.zeros((len(logits), len(names), logits.shape[2])), []
    for t, source in enumerate(sources):
        sums[:, names.index(source)] += added[:, t]
        known = [names.index(name) for name in dict.fromkeys(sources[: t + 1])]
        row = np.zeros(len(names))
        row[known] = _most_likely(sums[:, known], label)
        weights.append(row.tolist())
    return weights


def _most_likely(sums: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Minimise the convex negative log-likelihood of weighted sums [n, S, N]."""
    right = np.take_along_axis(sums, label[:, None, None], 2)[:, :, 0]  # [n, S]

    def loss(weights):
        mixed = np.einsum("s,nsc->nc", weights, sums)
        own = special.logsumexp(mixed, axis=1) - right @ weights
        expected = np.einsum("nc,nsc->ns", special.softmax(mixed, axis=1), sums)
        pull = weights - 1
        gradient = (expected - right).mean(0) + PULL * pull
        return own.mean() + PULL / 2 * pull @ pull, gradient

    found = optimize.minimize(loss, np.ones(sums.shape[1]), jac=True, method="BFGS")
    return found.x
