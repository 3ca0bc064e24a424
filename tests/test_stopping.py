import pathlib

import numpy as np
import pytest

from anchornet_jax import exits, fitting, stopping

PUBLISHED = (
    pathlib.Path(__file__).parent.parent.parent
    / "shared/data/densenet201_imagenet_exits.npz"
)


def table(n=400, e=4, seed=0, digits=2):
    """Return a table, with ties where digits are few, in which sure images are more often right."""
    rng = np.random.default_rng(seed)
    confidence = np.round(np.sort(rng.random((n, e)), axis=1), digits)
    correct = rng.random((n, e)) < confidence
    return exits.ExitTable(confidence, np.arange(1.0, e + 1), correct=correct)


def algorithm_1(confidence, thresholds):
    """2022, Algorithm 1: the 0-based step after which the loop returns."""
    for step, threshold in enumerate(thresholds):
        if confidence[step] > threshold:
            return step
    return len(thresholds)


@pytest.mark.parametrize("seed", range(5))
def test_apply_equals_algorithm_1(seed):
    data = table(seed=seed)
    thresholds = np.round(np.random.default_rng(seed).random(3), 2)
    outcome = exits.apply(data, thresholds)
    wanted = [algorithm_1(row, thresholds) for row in data.confidence]
    np.testing.assert_array_equal(outcome.exit, wanted)
    rows = np.arange(400)
    assert outcome.accuracy == data.correct[rows, wanted].mean()
    assert outcome.mean_cost == pytest.approx(data.cost[wanted].mean())
    assert outcome.expected_inputs == pytest.approx(1 + np.mean(wanted))
    assert outcome.shares.sum() == pytest.approx(1)


def test_never_is_anytime():
    data = table()
    assert exits.apply(data, [exits.NEVER] * 3).exit.tolist() == [3] * 400
    for t, row in enumerate(exits.anytime(data)):
        thresholds = [exits.NEVER] * t + [stopping.ALWAYS] * (3 - t)
        assert exits.apply(data, thresholds).accuracy == row["accuracy"]


@pytest.mark.parametrize("method", sorted(fitting.METHODS))
def test_budgets_are_met_and_monotone(method):
    data = table(n=4000, digits=9)
    budgets = [1.2, 1.7, 2.2, 3.0]
    fits = fitting.fit(data, budgets, method)
    accuracy = [fit.accuracy for fit in fits]
    assert accuracy == sorted(accuracy)
    for fit in fits:
        assert fit.mean_cost <= fit.budget + 1e-9
        assert not fit.binding or fit.mean_cost > 0.98 * fit.budget
        again = stopping.from_json(fit.rule.to_json())
        found = exits.score(data, again.exits(data.confidence))
        assert found.accuracy == fit.accuracy


def test_step_by_step_equals_all_at_once():
    data = table()
    rule = fitting.fit(data, [2.0], "value")[0].rule
    for i, row in enumerate(data.confidence):
        step = 0
        while not rule.leaves(step, row[None, : step + 1])[0]:
            step += 1
        assert rule.exits(data.confidence)[i] == step


def test_save_and_load(tmp_path):
    data = table()
    data.save(tmp_path / "table.npz")
    loaded = exits.ExitTable.load(tmp_path / "table.npz")
    np.testing.assert_array_equal(loaded.confidence, data.confidence)
    np.testing.assert_array_equal(loaded.correct, data.correct)


def test_bad_input():
    data = table()
    with pytest.raises(ValueError, match="`budgets` holds 0.5; the cheapest exit"):
        fitting.fit(data, [0.5])
    with pytest.raises(ValueError, match="`method` is 'best'; choose one of"):
        fitting.fit(data, [2.0], "best")
    with pytest.raises(ValueError, match="`thresholds`"):
        exits.apply(data, [0.5])
    with pytest.raises(ValueError, match="`thresholds`"):
        exits.apply(data, [0.5, np.nan, 0.5])
    with pytest.raises(ValueError, match="`confidence`"):
        exits.ExitTable(data.confidence + 1, data.cost, correct=data.correct)
    with pytest.raises(ValueError, match="`cost`"):
        exits.ExitTable(data.confidence, data.cost[::-1], correct=data.correct)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published table is not here")
def test_published_table():
    """Fitted on one half, scored on the other: at least what was reported there."""
    found = np.load(PUBLISHED)
    cost = [0.790] + [t * 0.790 + 0.06 for t in range(2, 6)]
    data = exits.ExitTable(
        found["confidence"][:, :5], np.array(cost), correct=found["correct"][:, :5]
    )
    for t, row in enumerate(exits.anytime(data)):
        assert row["accuracy"] == found["correct"][:, t].mean()
    half = np.random.default_rng(0).permutation(25_000) < 12_500
    calibration, test = data.select(half), data.select(~half)
    # Accuracy at G of the authors' own grid, facts on their implementation.
    for budget, accuracy in [(0.93, 0.7155), (1.15, 0.7289), (1.36, 0.7443)]:
        rule = fitting.fit(calibration, [budget])[0].rule
        outcome = exits.score(test, rule.exits(test.confidence))
        assert outcome.mean_cost == pytest.approx(budget, rel=0.01)
        assert outcome.accuracy > accuracy
