"""Rules of leaving: what they decide, step by step and as data."""

import json

import numpy as np
import pytest

from anchornet_jax.inference import exit_table, stopping

RULES = [
    stopping.ThresholdRule([0.4, 0.6, 0.7]),
    stopping.ValueRule(
        [[-0.6, 0, 0.7], [-0.4, 0.1, 0.5, -0.2], [-0.5, 0, 0.1, 0.1, 0.6]]
    ),
]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def confidences(n=300, e=4):
    return np.sort(np.random.default_rng(0).random((n, e)), axis=1)


@rules
def test_step_by_step_equals_all_at_once(rule):
    confidence = confidences()
    exit = rule.exits(confidence)
    assert set(exit) == {0, 1, 2, 3}
    for row, found in zip(confidence, exit):
        step = 0
        while not rule.leaves(step, row[None, : step + 1])[0]:
            step += 1
        assert found == step


@rules
def test_a_batch_decides_nothing(rule):
    """Not by rounding either: the engine asks in batches of any size."""
    known = confidences(1001)[:, :3]
    alone = [rule.leaves(2, row[None])[0] for row in known]
    np.testing.assert_array_equal(rule.leaves(2, known), alone)
    np.testing.assert_array_equal(rule.leaves(2, known[:7]), alone[:7])


def test_value_rule_computes_what_it_says():
    """w_0 + w_1 d_2^2 + w_2 d_1 + w_3 d_2 with d = sqrt(1 - confidence)."""
    rule = stopping.ValueRule([[1, 0, 0], [-0.5, 1, 2, -1]])
    for d_1, d_2 in [(0.5, 0.5), (0.1, 0.2), (0.2, 0.9), (0.8, 0.1)]:
        worth = -0.5 + d_2**2 + 2 * d_1 - d_2
        (leaves,) = rule.leaves(1, [[1 - d_1**2, 1 - d_2**2]])
        assert leaves == (worth <= 0)


def test_threshold_rule_is_algorithm_1():
    confidence = confidences()
    data = exit_table.ExitTable(confidence, [1, 2, 3, 4], correct=confidence > 0.5)
    wanted = exit_table.apply(data, [0.4, 0.6, 0.7]).exit
    np.testing.assert_array_equal(RULES[0].exits(confidence), wanted)


@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_fixed(inputs):
    confidence = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [0.1, 0.2, 0.5, 1]])
    rule = stopping.fixed(inputs, 4)
    assert rule.exits(confidence).tolist() == [inputs - 1] * 3


@pytest.mark.parametrize("inputs", [0, 5])
def test_fixed_refuses(inputs):
    with pytest.raises(ValueError, match=f"`inputs` is {inputs}; allowed is 1 to 4"):
        stopping.fixed(inputs, 4)


@rules
def test_blend(rule):
    other = type(rule)([p + 1 for p in rule.parameters])
    mixed = rule.blend(other, [0, 0.5, 1]).parameters
    for found, start, share in zip(mixed, rule.parameters, [0, 0.5, 1]):
        np.testing.assert_allclose(found, start + share)


@rules
def test_json_round_trip(rule):
    again = stopping.from_json(json.loads(json.dumps(rule.to_json())))
    assert type(again) is type(rule)
    np.testing.assert_array_equal(again.exits(confidences()), rule.exits(confidences()))


@pytest.mark.parametrize(
    "data",
    [{}, {"rule": "best"}, {"rule": "value", "thresholds": [1]}]
    + [{"rule": "thresholds", "thresholds": 0.5}],
)
def test_from_json_refuses(data):
    with pytest.raises(ValueError, match="`data` is .*; it does not come from"):
        stopping.from_json(data)


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (stopping.ThresholdRule, [0.5, np.nan], "`thresholds` of exit 2 is nan"),
        (stopping.ThresholdRule, [[0.5]], r"`thresholds` of exit 1 is \[0.5\]"),
        (stopping.ValueRule, [[1, 2]], r"`weights` of exit 1 is .* shape \(3,\)"),
        (stopping.ValueRule, [[1, 2, 3]] * 2, "`weights` of exit 2 is"),
        (stopping.ValueRule, [[1, 2, np.inf]], "`weights` of exit 1 is"),
    ],
)
def test_wrong_parameters(kind, parameters, message):
    with pytest.raises(ValueError, match=message):
        kind(parameters)


@rules
@pytest.mark.parametrize(("step", "known"), [(-1, 1), (4, 5), (1, 1), (1, 3)])
def test_wrong_step(rule, step, known):
    with pytest.raises(ValueError, match=f"`step` is {step} and `confidence` has"):
        rule.leaves(step, np.full((2, known), 0.5))
