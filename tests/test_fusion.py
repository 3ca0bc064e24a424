"""Weights of sources, fitted by likelihood."""

import numpy as np
import pytest
from scipy import special

from anchornet_jax.inference import fusion, results

SOURCES = ("glance", "localizer", "patch", "patch")


def made(n=4000, seed=0):
    """Draw labels from the softmax of a weighted sum; return plain sums and labels."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(0, 2, (n, 4, 5))
    weighted = 0.5 * parts[:, 0] + 1.5 * parts[:, 1] + 0.25 * parts[:, 2:].sum(1)
    share = special.softmax(weighted, axis=1).cumsum(1)
    label = (rng.random((n, 1)) > share).sum(1)
    return parts.cumsum(1), label


def test_weights_of_the_drawn_labels_are_found():
    weights = fusion.fit(*made(), SOURCES)
    np.testing.assert_allclose(weights[-1], [0.5, 1.5, 0.25], atol=0.06)
    assert weights[0][1:] == [0, 0] and weights[1][2] == 0  # not seen yet
    assert np.shape(weights) == (4, 3)


def test_answers_become_probabilities():
    """On images that were not fitted to, and where plain sums are far too sure."""
    weights = np.array(fusion.fit(*made(), SOURCES))
    logits, label = made(seed=1)
    added = np.diff(logits, axis=1, prepend=0)
    sums = np.stack([added[:, 0], added[:, 1], added[:, 2:].sum(1)], 1)
    errors = []
    for own in (np.ones(3), weights[-1]):
        sure = special.softmax(np.einsum("s,nsc->nc", own, sums), axis=1)
        right = sure.argmax(1) == label
        (found,) = results.reliability(sure.max(1)[:, None], right[:, None])
        errors.append(found.error)
    assert errors[0] > 0.1 and errors[1] < 0.03


def test_reliability_by_hand():
    sure = np.array([[0.5], [0.52], [0.98], [1.0]])
    right = np.array([[True], [False], [True], [True]])
    (found,) = results.reliability(sure, right)
    np.testing.assert_allclose(found.confidence, [0.51, 0.99])
    assert found.accuracy == [0.5, 1.0] and found.share == [0.5, 0.5]
    assert found.error == pytest.approx(0.5 * 0.01 + 0.5 * 0.01)
    assert results.Reliability.from_json(found.to_json()) == found


def test_sources_must_fit():
    logits, label = made(8)
    with pytest.raises(ValueError, match="`sources` is .*; `logits` has 4 exits"):
        fusion.fit(logits, label, SOURCES[:3])
