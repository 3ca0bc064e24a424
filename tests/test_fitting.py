"""Rules fitted to budgets: met, monotone, and good on images that were not fitted to."""

import time

import numpy as np
import pytest

from anchornet_jax.inference import exit_table, fitting, stopping
from benchmarks import stopping_rules
from tests.test_exit_table import PUBLISHED, table

methods = pytest.mark.parametrize("method", sorted(fitting.METHODS))


def halves(data, seed):
    order = np.random.default_rng(seed).permutation(len(data.confidence))
    return [data.select(part) for part in np.array_split(order, 2)]


def score(test, fitted):
    return exit_table.score(test, fitted.rule.exits(test.confidence))


@methods
def test_budgets_are_met_and_monotone(method):
    data = table(n=4000, digits=9)
    budgets = [1.2, 1.7, 2.2, 3.0]
    fits = fitting.fit(data, budgets, method)
    accuracy = [fit.accuracy for fit in fits]
    assert accuracy == sorted(accuracy)
    for fit in fits:
        assert fit.mean_cost <= fit.budget + 1e-9
        assert not fit.binding or fit.mean_cost > 0.99 * fit.budget
        again = stopping.from_json(fit.rule.to_json())
        found = exit_table.score(data, again.exits(data.confidence))
        assert (found.accuracy, found.mean_cost) == (fit.accuracy, fit.mean_cost)


@methods
@pytest.mark.parametrize("seed", range(3))
def test_no_budget_is_worse_than_a_smaller_one(method, seed):
    """Also where accuracy falls with more exits, and chance decides."""
    rng = np.random.default_rng(seed)
    confidence = rng.random((150, 4))
    data = exit_table.ExitTable(
        confidence, [1, 2, 3, 4], correct=rng.random((150, 4)) < [0.5, 0.7, 0.6, 0.5]
    )
    budgets = rng.permutation(np.linspace(1, 4.5, 30))
    fits = fitting.fit(data, budgets, method)
    assert [fit.budget for fit in fits] == budgets.tolist()
    fits.sort(key=lambda fit: fit.budget)
    assert (np.diff([fit.accuracy for fit in fits]) >= 0).all()
    assert all(fit.mean_cost <= fit.budget + 1e-9 for fit in fits)
    bound = [fit.binding for fit in fits]
    assert bound == sorted(bound, reverse=True)  # never again once it is not


@methods
def test_who_knows_its_errors_spends_on_them_alone(method):
    """The first exit is right on the sure 60 %; the second exit is always right."""
    right = np.arange(1000) % 5 < 3
    noise = np.random.default_rng(0).random(1000) / 10
    confidence = np.stack([0.1 + 0.7 * right + noise, np.full(1000, 0.9)], axis=1)
    data = exit_table.ExitTable(
        confidence, [1, 3], correct=np.stack([right, np.ones(1000)], axis=1)
    )
    just, half, ample = fitting.fit(data, [1.801, 1.401, 2.5], method)
    assert just.accuracy == 1
    assert half.accuracy == pytest.approx(0.8, abs=0.005)
    assert ample.accuracy == 1


def test_thresholds_come_near_the_best_of_all():
    """With two exits one threshold decides; all of them are tried here."""
    data = table(n=20_000, e=2, digits=9)
    calibration, test = halves(data, 0)
    for budget, fitted in zip((1.2, 1.5), fitting.fit(calibration, [1.2, 1.5])):
        tried = [exit_table.apply(test, [t]) for t in np.linspace(0, 1, 201)]
        best = max(o.accuracy for o in tried if o.mean_cost <= budget)
        assert score(test, fitted).accuracy > best - 0.01


def test_value_uses_the_history():
    """What the second exit's confidence is worth depends on the first's."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 20_000))
    # Sure at first: the third exit repairs every error of the second, else none.
    wrong = rng.random(20_000) < 0.5
    repaired = ~wrong | (first > 0.5)
    data = exit_table.ExitTable(
        np.stack([first / 2, second / 2, np.ones(20_000)], axis=1),
        [1, 1.01, 2],
        correct=np.stack([np.zeros(20_000), ~wrong, repaired], axis=1),
    )
    calibration, test = halves(data, 0)
    found = {
        name: score(test, fitting.fit(calibration, [1.5], name)[0]).accuracy
        for name in fitting.METHODS
    }
    assert found["value"] > 0.74  # of 0.75
    assert found["thresholds"] < 0.66


@methods
def test_the_unit_changes_nothing(method):
    data = table(n=1000, digits=9)
    scaled = data.with_cost(1024 * data.cost, "ms")  # a power of two: no rounding
    one = fitting.fit(data, [1.5, 2.5], method)
    other = fitting.fit(scaled, [1.5 * 1024, 2.5 * 1024], method)
    for a, b in zip(one, other):
        assert b.accuracy == a.accuracy
        assert b.mean_cost == 1024 * a.mean_cost


@methods
def test_budgets_in_milliseconds(method):
    """With other costs of the exits another rule, and its budget is met in them."""
    data = table(n=4000, digits=9).with_cost([0.2, 1.0, 1.1, 1.2], "ms")
    (point,) = fitting.curve(data, data, [0.7], method)
    assert (point.unit, point.budget, point.binding) == ("ms", 0.7, True)
    assert point.cost == pytest.approx(0.7, rel=0.01)
    assert point.cost == pytest.approx(np.dot(point.exits, data.cost))
    outcome = exit_table.score(
        data, stopping.from_json(point.rule).exits(data.confidence)
    )
    assert (point.accuracy, point.cost) == (outcome.accuracy, outcome.mean_cost)
    assert point.calibration_accuracy == point.accuracy  # the same images
    assert point.calibration_cost == point.cost
    assert point.steps == pytest.approx(outcome.expected_inputs)


@methods
def test_budgets_beyond_the_last_exit_do_not_bind(method):
    data = table(n=4000, digits=9)
    fits = fitting.fit(data, [4.0001, 1.5, 100, np.inf], method)
    assert [fit.binding for fit in fits] == [False, True, False, False]
    assert fits[0].accuracy == fits[2].accuracy == fits[3].accuracy


@methods
@pytest.mark.parametrize("budget", [0.99, 0, -1, np.nan])
def test_a_budget_that_cannot_be_met_names_the_cheapest(method, budget):
    data = table()
    with pytest.raises(ValueError, match="holds .*; the cheapest exit costs 1$"):
        fitting.fit(data, [2, budget], method)
    with pytest.raises(ValueError, match="the cheapest exit costs 1.5 ms$"):
        fitting.fit(data.with_cost([1.5, 2, 3, 4], "ms"), [budget], method)


@methods
@pytest.mark.parametrize(
    "data",
    [
        table(n=1),
        table(e=1),
        exit_table.ExitTable(
            np.full((50, 3), 0.5), [1, 2, 3], correct=np.ones((50, 3))
        ),
        exit_table.ExitTable(np.ones((50, 3)), [1, 2, 3], correct=np.zeros((50, 3))),
        exit_table.ExitTable(np.zeros((2, 3)), [1, 2, 3], correct=np.eye(2, 3)),
    ],
    ids=["one image", "one exit", "always right", "never right", "no confidence"],
)
def test_tables_that_teach_nothing(method, data):
    cheapest, *_, last = fitting.fit(data, [data.cost[0], 1.5, 2.5, 9], method)
    assert cheapest.mean_cost == data.cost[0]
    assert cheapest.accuracy == data.correct[:, 0].mean()
    assert not last.binding
    assert last.accuracy >= cheapest.accuracy


def test_a_method_of_ones_own():
    def first_or_last(data):
        yield stopping.fixed(1, 4)
        yield stopping.fixed(4, 4)

    data = table()
    (fitted,) = fitting.fit(data, [4], first_or_last)
    assert fitted.accuracy == data.correct[:, 3].mean()


def test_bad_arguments():
    data = table()
    with pytest.raises(ValueError, match="`method` is 'best'; choose one of"):
        fitting.fit(data, [2.0], "best")
    for other in (data.with_cost([1, 2, 3, 5], ""), data.with_cost(data.cost, "ms")):
        with pytest.raises(ValueError, match="`test` has cost .*; they must be"):
            fitting.curve(data, other, [2.0])


def published():
    cost = stopping_rules.AUTHORS_COST
    if not PUBLISHED.exists():
        pytest.skip("the published table is not here")
    return (
        exit_table.ExitTable.load(PUBLISHED, cost=np.arange(1.0, 7))
        .select(exits=5)
        .with_cost(cost, "G")
    )


def test_the_published_table_beats_the_hand_made_grid():
    """Fitted on one half of the rows, scored on the other, both ways, three times."""
    data, authors = published(), stopping_rules.AUTHORS
    accuracy, cost = [], []
    for seed in range(3):
        both = halves(data, seed)
        for calibration, test in (both, both[::-1]):
            points = fitting.curve(calibration, test, list(authors))
            accuracy.append([point.accuracy for point in points])
            cost.append([point.cost for point in points])
            met = [p.calibration_cost / p.budget for p in points if p.binding]
            assert len(met) > 20
            np.testing.assert_allclose(met, 1, atol=0.01)
    np.testing.assert_allclose(np.mean(cost, 0), list(authors), rtol=0.01)
    gain = np.mean(accuracy, 0) - list(authors.values())
    middle = [0.9 <= budget <= 1.4 for budget in authors]
    assert gain.min() > -0.001
    assert gain[middle].mean() > 0.006


def test_speed():
    """39 budgets on 25,000 rows: under ten seconds, of this process's own time."""
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.random((25_000, 5)), axis=1)
    data = exit_table.ExitTable(
        confidence, np.arange(1.0, 6), correct=rng.random((25_000, 5)) < confidence
    )
    begun = time.process_time()
    assert len(fitting.fit(data, np.linspace(1, 5, 39))) == 39
    assert time.process_time() - begun < 10
