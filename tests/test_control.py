"""Budgets that hold: streams that are harder or easier than the calibration images."""

import numpy as np
import pytest

from anchornet_jax.inference import control, exit_table, stopping

COST, BUDGET = np.array([37.0, 96.0, 133.0, 170.0]), 70.0


def table(n, seed, power=1.0):
    """Return images that are the less sure the higher the power."""
    rng = np.random.default_rng(seed)
    ease = rng.beta(2, 1, n) ** power
    noise = rng.normal(0, 0.15, (n, 4)) + np.linspace(0, 0.2, 4)
    confidence = np.clip(ease[:, None] + noise, 0, 1)
    return exit_table.ExitTable(
        confidence, COST, correct=rng.random((n, 4)) < confidence, unit="ms"
    )


@pytest.fixture(scope="module", params=["thresholds", "value"])
def held(request):
    return control.Control(table(1000, 0), BUDGET, request.param)


@pytest.mark.parametrize("images", [1, 16])
@pytest.mark.parametrize("power", [0.8, 1.4])
def test_a_stream_ends_at_its_budget(held, power, images):
    confidence = table(2000, 1, power).confidence
    alone = COST[held.rule.exits(confidence)].mean()
    assert abs(alone / BUDGET - 1) > 0.08
    exits = held.exits(confidence, under_way=images)
    assert COST[exits].mean() == pytest.approx(BUDGET, rel=0.01)
    np.testing.assert_array_equal(exits, held.exits(confidence, under_way=images))


def test_the_calibration_images_keep_their_rule(held):
    """Nearly: where nothing is to be mended, the rule moves by chance alone."""
    data = table(1000, 0)
    found, alone = (
        held.exits(data.confidence, under_way=16),
        held.rule.exits(data.confidence),
    )
    assert (found == alone).mean() > 0.9
    one, other = (exit_table.score(data, exits) for exits in (found, alone))
    assert one.accuracy > other.accuracy - 0.015


def steps_of(course, confidence, numbers, order):
    """Let images leave at their exits, reported in another order; return the exits."""
    exits = np.zeros(len(numbers), int)
    for step in range(4):
        leaves = course.leaves(step, numbers, confidence[numbers, : step + 1])
        exits[leaves & (exits == 0)] = step + 1
    for place in order(len(numbers)):
        course.left(numbers[place : place + 1], exits[place : place + 1] - 1)
    return exits - 1


@pytest.mark.parametrize("begun", [0, 50])
def test_the_order_of_leaving_decides_nothing(held, begun):
    """Nor does it where a stream goes on after images that are known."""
    confidence = table(300, 2, 1.4).confidence
    wanted = held.exits(confidence, under_way=16)
    course = held.begin(16, wanted[:begun])
    order = np.random.default_rng(0).permutation
    assert course.opens(16) and not course.opens(32)
    found = [
        steps_of(course, confidence[begun:], numbers, order)
        for numbers in np.array_split(np.arange(300 - begun), 37)
    ]
    np.testing.assert_array_equal(np.concatenate(found), wanted[begun:])


def test_it_stays_within_its_range(held):
    """Images that are never sure do not cost more than the dearest rule of the path."""
    sure = np.full((500, 4), 0.999)
    assert COST[held.exits(sure)].mean() < BUDGET
    course = held.begin(10)
    for start in range(0, 300, 10):
        numbers = np.arange(start, start + 10)
        cost = course.place(start).cost
        assert BUDGET / control.RANGE <= cost <= BUDGET * control.RANGE
        course.leaves(0, numbers, np.zeros((10, 1)))
        course.left(numbers, np.full(10, 3))
    assert cost == held.at(0).cost  # as cheap as it may be
    dearest = held.at(np.inf)
    assert dearest.cost <= BUDGET * control.RANGE
    assert dearest.rule.steps == held.steps == 3


def test_costs_of_the_path_are_met(held):
    data = table(1000, 0)
    for cost in np.linspace(40, 135, 20):
        place = held.at(cost)
        found = exit_table.score(data, place.rule.exits(data.confidence)).mean_cost
        assert found == pytest.approx(place.cost, rel=0.02)


def test_nothing_to_decide():
    data = table(50, 0).select(exits=1)
    held = control.Control(data, 40.0)
    assert held.exits(data.confidence).tolist() == 50 * [0] and held.steps == 0


def test_a_budget_that_cannot_be_met():
    with pytest.raises(ValueError, match=r"holds .*the cheapest exit costs 37 ms"):
        control.Control(table(50, 0), 30)
    with pytest.raises(ValueError, match="`budget` is inf; allowed are finite numbers"):
        control.Control(table(50, 0), np.inf)


def test_a_budget_that_cannot_be_spent():
    data = table(200, 0)
    held = control.Control(data, 1e9)
    assert COST[held.exits(data.confidence)].mean() <= COST[-1]


def test_constant():
    """A rule on its own is a stream's rule as well, and waits for nobody."""
    rule = stopping.ThresholdRule([0.5])
    course = rule.begin(16)
    assert course.opens(10**6)
    found = course.leaves(0, np.arange(2), np.array([[0.4], [0.6]]))
    assert found.tolist() == [False, True]
