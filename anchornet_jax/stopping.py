"""Stopping rules: who leaves at which exit, fitted to a budget on calibration images.

A rule decides step by step from the confidences so far (Localizing Semantic Patches,
2022, Sec. 3.4), so a running engine can follow it. Three ways to fit one:

- `geometric`: thresholds that let shares proportional to q, q^2, … leave, as in MSDNet
  (Multi-Scale Dense Networks, 2018, Sec. 4.2), RANet and GFNet.
- `thresholds`: one threshold per exit, fitted for accuracy by optimal stopping.
- `value`: optimal stopping on the whole history of confidences. At each exit a
  regression predicts what going on is worth: the accuracy that it adds, less its cost
  at a price; who expects nothing leaves. Prices from high to low give all budgets.

    (fitted,) = stopping.fit(calibration, [1.1])
    exits.score(test, fitted.rule.exits(test.confidence)).accuracy
"""

import dataclasses
import itertools

import numpy as np

from anchornet_jax import exits
from anchornet_jax.exits import NEVER

ALWAYS = -1.0  # a threshold that every confidence exceeds
PRICES = 60  # points of a path; budgets between two of them blend both rules
HALVINGS = 20  # of a blend at most, until the budget is met to PRECISION
PRECISION = 5e-4
TRIES = 3  # dearer rules aimed at when a rule may spend more


class Rule:
    """When to leave: parameters per exit but the last, which takes everyone left.

    Subclasses say what the parameters mean, and what they are called in JSON.
    """

    name: str
    field: str

    def __init__(self, parameters):
        """Take the parameters, [E - 1, ...], first exit first.

        Raises:
            ValueError: an exit has too many or too few parameters, or some not finite.
        """
        self.parameters = [np.asarray(p, float) for p in parameters]
        for step, found in enumerate(self.parameters):
            if found.shape != self._shape(step) or not np.isfinite(found).all():
                raise ValueError(
                    f"`{self.field}` of exit {step + 1} is {found.tolist()}; give "
                    f"finite numbers of shape {self._shape(step)}"
                )

    @property
    def steps(self) -> int:
        """Return E - 1, the number of exits at which there is something to decide."""
        return len(self.parameters)

    def leaves(self, step: int, confidence: np.ndarray) -> np.ndarray:
        """Return who leaves at an exit, [b] bool.

        Args:
            step: the exit, 0-based.
            confidence: [b, step + 1] at the exits up to this one.

        Raises:
            ValueError: a step that the rule does not have, or a history of other length.
        """
        history = np.asarray(confidence, float)
        if not 0 <= step <= self.steps or history.shape[1:] != (step + 1,):
            raise ValueError(
                f"`step` is {step} and `confidence` has shape {history.shape}; the rule "
                f"has steps 0 to {self.steps}, and `confidence` is [b, step + 1]"
            )
        if step == self.steps:
            return np.ones(len(history), bool)
        return self._leaves(self.parameters[step], history)

    def exits(self, confidence: np.ndarray) -> np.ndarray:
        """Return the exit ([n] int, 0-based) of images with known confidence [n, E]."""
        exit = np.full(len(confidence), self.steps)
        for step in reversed(range(self.steps)):
            exit[self.leaves(step, confidence[:, : step + 1])] = step
        return exit

    def blend(self, other: "Rule", shares) -> "Rule":
        """Return the rule that lies `shares` ([E - 1], per exit) of the way to `other`."""
        mixed = zip(self.parameters, other.parameters, shares)
        return type(self)([a + s * (b - a) for a, b, s in mixed])

    def to_json(self) -> dict:
        """Return plain data from which `from_json` makes the same rule."""
        return {"rule": self.name, self.field: [p.tolist() for p in self.parameters]}


class ThresholdRule(Rule):
    """Leave when the confidence exceeds the exit's threshold (Algorithm 1).

    parameters: E - 1 thresholds.
    """

    name, field = "thresholds", "thresholds"

    def _shape(self, step):
        return ()

    def _leaves(self, threshold, history):
        return history[:, -1] > threshold


class ValueRule(Rule):
    """Leave when going on is worth nothing.

    With d = sqrt(1 - confidence), going on from exit t = 1 … E - 1 is worth
    w_0 + w_1 d_t^2 + w_2 d_1 + … + w_(t+1) d_t. The root resolves confidences near 1,
    where summed logits put most images.

    parameters: E - 1 lists of weights, t + 2 of them at exit t.
    """

    name, field = "value", "weights"

    def _shape(self, step):
        return (step + 3,)

    def _leaves(self, weights, history):
        # Summed term by term: a matrix product may round differently per batch size.
        features = _features(history, range(history.shape[1]))
        return sum(w * f for w, f in zip(weights, features)) <= 0


def fixed(inputs: int, total: int) -> ThresholdRule:
    """Return the rule by which every image leaves after the same number of inputs.

    Raises:
        ValueError: there are not that many inputs among `total`.
    """
    if not 1 <= inputs <= total:
        raise ValueError(f"`inputs` is {inputs}; allowed is 1 to {total}")
    return ThresholdRule([NEVER] * (inputs - 1) + [ALWAYS] * (total - inputs))


def from_json(data: dict) -> Rule:
    """Make the rule that `to_json` described.

    Raises:
        ValueError: `data` describes no rule.
    """
    for kind in (ThresholdRule, ValueRule):
        if data.get("rule") == kind.name and isinstance(data.get(kind.field), list):
            return kind(data[kind.field])
    raise ValueError(f"`data` is {data!r}; it does not come from a rule's `to_json`")


@dataclasses.dataclass(frozen=True)
class Fit:
    """A rule fitted to a budget, and what it reaches on the calibration images.

    binding: False when this budget is left partly unspent, and with it every larger
        one fitted, because nothing dearer is more accurate on the calibration images.
    """

    rule: Rule
    accuracy: float
    mean_cost: float
    budget: float = np.inf
    binding: bool = True


def fit(table: exits.ExitTable, budgets, method: str = "value") -> list[Fit]:
    """Fit to each budget the most accurate rule that costs at most that on average.

    No budget gets a rule that is less accurate on `table` than a smaller budget's.

    Args:
        table: calibration images; never those on which the rules are judged.
        budgets: mean costs per image, in the unit of the table's cost, in any order.
        method: one of `METHODS`.

    Raises:
        ValueError: an unknown method, or a budget below the cheapest exit's cost.
    """
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; choose one of {sorted(METHODS)}")
    for budget in budgets:
        if not budget >= table.cost[0]:  # NaN included
            raise ValueError(
                f"`budgets` holds {budget}; the cheapest exit costs {table.cost[0]:.6g}"
            )
    path = [_try(table, rule) for rule in METHODS[method](table)]
    fits, last = {}, None
    for budget in sorted(set(budgets)):
        fits[budget] = last = _fit(table, path, budget, last)
    used = max((b for b in fits if fits[b].binding), default=0)
    return [dataclasses.replace(fits[b], binding=bool(b <= used)) for b in budgets]


def curve(
    calibration: exits.ExitTable, test: exits.ExitTable, budgets, method: str = "value"
) -> list[dict]:
    """Fit every budget on `calibration` and score it on `test`, in the order given.

    Returns:
        A list of plain dicts {budget, binding, mean_cost, accuracy, shares,
        expected_inputs, calibration_accuracy, calibration_cost, rule}.

    Raises:
        ValueError: as `fit`, or tables whose exits differ in cost.
    """
    if not np.array_equal(calibration.cost, test.cost):
        raise ValueError(
            f"`test` has cost {test.cost.tolist()}, `calibration` "
            f"{calibration.cost.tolist()}; they must be the same"
        )
    points = []
    for fitted in fit(calibration, budgets, method):
        outcome = exits.score(test, fitted.rule.exits(test.confidence))
        points.append(
            {
                "budget": float(fitted.budget),
                "binding": fitted.binding,
                "mean_cost": outcome.mean_cost,
                "accuracy": outcome.accuracy,
                "shares": outcome.shares.tolist(),
                "expected_inputs": outcome.expected_inputs,
                "calibration_accuracy": fitted.accuracy,
                "calibration_cost": fitted.mean_cost,
                "rule": fitted.rule.to_json(),
            }
        )
    return points


def _try(table, rule):
    outcome = exits.score(table, rule.exits(table.confidence))
    return Fit(rule, outcome.accuracy, outcome.mean_cost)


def _fit(table, path, budget, last):
    """Fit one budget, `last` being the next smaller one's fit, or None."""
    found, dearer = path[-1], []
    if binding := budget < found.mean_cost:
        k = next(k for k, point in enumerate(path) if point.mean_cost > budget)
        cheap, dearer = path[k - 1], [point.rule for point in path[k:]]
        found = _meet(table, cheap, dearer[0], budget, np.ones(cheap.rule.steps))
    if last is not None and found.accuracy < last.accuracy:
        found = _spend(table, last, dearer, budget)
        binding = found is not last
    return dataclasses.replace(found, budget=budget, binding=binding)


def _spend(table, last, dearer, budget):
    """Let a fit spend up to a larger budget, at all exits or at one, doing no harm.

    Where accuracy hardly rises with cost, a smaller budget's rule may by chance be more
    accurate than the path at this budget. Of the ways to spend more that lose nothing,
    the least accurate is taken: the best would be chance again, and harder to follow.
    If there is none the fit stays as it is.
    """
    towards = dearer[:: len(dearer) // TRIES + 1]
    directions = [np.ones(last.rule.steps), *np.eye(last.rule.steps)]
    tries = [
        _meet(table, last, rule, budget, direction)
        for rule, direction in itertools.product(towards, directions)
    ]
    spent = [t for t in tries if t.mean_cost > (1 - 10 * PRECISION) * budget]
    fair = [t for t in spent if t.accuracy >= last.accuracy]
    return min(fair, key=lambda t: t.accuracy, default=last)


def _meet(table, cheap, dear, budget, direction):
    """Move a fit within the budget towards a dearer rule until the budget is met.

    direction: [E - 1] how fast each exit's parameters move.
    """
    best, share, low, high = cheap, 1.0, 0.0, 1.0
    for _ in range(HALVINGS):
        found = _try(table, cheap.rule.blend(dear, share * direction))
        if found.mean_cost > budget:
            high = share
        else:
            best, low = found, share
            if share == 1 or found.mean_cost > (1 - PRECISION) * budget:
                break
        share = (low + high) / 2
    return best


def _geometric(table):
    """Return rules that let shares proportional to q^t leave at exit t, q rising.

    MSDNet 2018, Sec. 4.2; GFNet takes q from 0.05 to 1.95.
    """
    steps = len(table.cost) - 1
    yield ThresholdRule([ALWAYS] * steps)
    for q in np.geomspace(1e-3, 10, 2 * PRICES):
        shares = q ** np.arange(steps + 1)
        counts = len(table.confidence) * shares / shares.sum()
        stays, thresholds = np.ones(len(table.confidence), bool), []
        for confidence, count in zip(table.confidence.T, counts[:-1]):
            ranked = np.sort(confidence[stays])[::-1]
            count = round(count)
            thresholds.append(float(ranked[count]) if count < len(ranked) else ALWAYS)
            stays &= confidence <= thresholds[-1]
        yield ThresholdRule(thresholds)
    yield ThresholdRule([NEVER] * steps)


def _thresholds(table):
    """Return threshold rules learned at falling prices.

    An exit's threshold is the one below which going on adds most, summed over what the
    regression on that exit's own confidence predicts.
    """
    steps = len(table.cost) - 1
    order = np.argsort(table.confidence, axis=0)  # [n, E]

    def threshold(step, _, gain):
        confidence = table.confidence[:, step]
        total = np.cumsum(gain[order[:, step]])
        last = total.argmax()
        theta = confidence[order[last, step]] if total[last] > 0 else ALWAYS
        return theta, confidence <= theta

    yield ThresholdRule([ALWAYS] * steps)
    designs = [_design(table.confidence[:, : t + 1], [t]) for t in range(steps)]
    for price in _prices(table):
        yield ThresholdRule(_learn(table, designs, price, threshold))


def _values(table):
    """Return value rules learned at falling prices."""
    steps = len(table.cost) - 1
    yield ValueRule([[-1] + [0] * (t + 2) for t in range(steps)])
    history = [table.confidence[:, : t + 1] for t in range(steps)]
    designs = [_design(known, range(t + 1)) for t, known in enumerate(history)]
    for price in _prices(table):
        yield ValueRule(_learn(table, designs, price, lambda _, w, gain: (w, gain > 0)))


METHODS = {"geometric": _geometric, "thresholds": _thresholds, "value": _values}


def _learn(table, designs, price, decide):
    """Learn one decision per exit, backwards from the last (Longstaff-Schwartz 2001).

    `value` [n] is what each image really earns from the next exit on, correctness less
    price times cost; its regression on the features is what going on is worth.
    """
    earns = table.correct - price * table.cost  # [n, E]
    value, learned = earns[:, -1], []
    for step in reversed(range(len(designs))):
        features, solve = designs[step]
        weights = solve @ (value - earns[:, step])
        decision, goes_on = decide(step, weights, features @ weights)
        value = np.where(goes_on, value, earns[:, step])
        learned.insert(0, decision)
    return learned


def _design(confidence, past):
    features = np.stack(_features(confidence, past), axis=1)
    return features, np.linalg.pinv(features)


def _features(confidence, past):
    doubt = np.sqrt(np.maximum(1 - confidence, 0))
    constant = np.ones(len(doubt))
    return [constant, doubt[:, -1] ** 2, *(doubt[:, t] for t in past)]


def _prices(table):
    """Return prices from one at which nothing can be worth its cost down to zero."""
    dear = 1 / np.diff(table.cost).min(initial=table.cost[-1])
    cheap = 1e-3 / table.cost[-1]
    return np.append(np.geomspace(dear, cheap, PRICES), 0)
