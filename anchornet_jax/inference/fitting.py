"""Stopping rules fitted to a budget, on calibration images.

Four ways to fit one:

- `geometric`: thresholds that let shares proportional to q, q^2, … leave, as in MSDNet
  (Multi-Scale Dense Networks, 2018, Sec. 4.2), RANet and GFNet.
- `thresholds`: one threshold per exit, fitted for accuracy by optimal stopping.
- `value`: optimal stopping on the whole history of confidences. At each exit a
  regression predicts what going on is worth: the accuracy that it adds, less its cost
  at a price; who expects nothing leaves. Prices from high to low give all budgets.
- `features`: the same, which also sees the features of the step that the table has.

    (fitted,) = fitting.fit(calibration, [1.1])
    exit_table.score(test, fitted.rule.exits(test.confidence)).accuracy

Budgets are in the unit of the table's cost; `table.with_cost(cost, "ms")` makes them
milliseconds.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from anchornet_jax.inference import exit_table, stopping
from anchornet_jax.inference.results import Point

PRICES = 60  # points of a path; budgets between two of them blend both rules
HALVINGS = 20  # of a blend at most, until the budget is met to PRECISION
PRECISION = 5e-4
TRIES = 8  # dearer rules aimed at when a rule may spend more


@dataclasses.dataclass(frozen=True)
class Fit:
    """A rule fitted to a budget, and what it reaches on the calibration images.

    binding: Whether the rule spends its budget. False if a cheaper rule is already the
        most accurate; larger budgets then get that rule too. A budget above the last
        exit's cost never binds.
    budget, mean_cost: per image, in the unit of the table's cost.
    """

    rule: stopping.Rule
    accuracy: float
    mean_cost: float
    budget: float = np.inf
    binding: bool = True


def fit(table: exit_table.ExitTable, budgets, method="value") -> list[Fit]:
    """Fit to each budget the most accurate rule that costs at most that on average.

    No budget gets a rule that is less accurate on `table` than a smaller budget's.

    Args:
        table: calibration images; never those on which the rules are judged.
        budgets: mean costs per image, in the unit of the table's cost, in any order.
        method: one of `METHODS`, or a function from a table to rules, cheapest first.

    Raises:
        ValueError: an unknown method, or a budget below the cheapest exit's cost.
    """
    if not callable(method) and method not in METHODS:
        raise ValueError(f"`method` is {method!r}; choose one of {sorted(METHODS)}")
    for budget in budgets:
        if not budget >= table.cost[0]:  # NaN included
            raise ValueError(
                f"`budgets` holds {budget}; the cheapest exit costs "
                f"{table.cost[0]:.6g} {table.unit}".rstrip()
            )
    rules = (method if callable(method) else METHODS[method])(table)
    path = [_try(table, rule) for rule in rules]
    fits, last = {}, None
    for budget in sorted(set(budgets)):
        fits[budget] = last = _fit(table, path, budget, last)
    used = max((b for b in fits if fits[b].binding), default=0)
    return [dataclasses.replace(fits[b], binding=bool(b <= used)) for b in budgets]


def curve(
    calibration: exit_table.ExitTable,
    test: exit_table.ExitTable,
    budgets,
    method="value",
) -> list[Point]:
    """Fit every budget on `calibration` and score it on `test`, in the order given.

    Returns:
        A point for each.

    Raises:
        ValueError: as `fit`, or tables whose exits differ in cost or its unit.
    """
    costs = [(table.cost.tolist(), table.unit) for table in (calibration, test)]
    if costs[0] != costs[1]:
        raise ValueError(
            f"`test` has cost {costs[1]}, `calibration` {costs[0]}; they must be the same"
        )
    points = []
    for fitted in fit(calibration, budgets, method):
        outcome = exit_table.score(test, fitted.rule.exits(test.confidence, test.seen))
        points.append(
            Point(
                accuracy=outcome.accuracy,
                cost=outcome.mean_cost,
                exits=outcome.shares.tolist(),
                unit=test.unit,
                budget=float(fitted.budget),
                binding=fitted.binding,
                calibration_accuracy=fitted.accuracy,
                calibration_cost=fitted.mean_cost,
                rule=fitted.rule.to_json(),
            )
        )
    return points


def _try(table, rule):
    outcome = exit_table.score(table, rule.exits(table.confidence, table.seen))
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
    accurate than the path at this budget. Among rules that cost more and lose no
    accuracy, take the least accurate: the best one would overfit the calibration images.
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
    yield stopping.ThresholdRule([stopping.ALWAYS] * steps)
    for q in np.geomspace(1e-3, 10, 2 * PRICES):
        shares = q ** np.arange(steps + 1)
        counts = len(table.confidence) * shares / shares.sum()
        stays, thresholds = np.ones(len(table.confidence), bool), []
        for confidence, count in zip(table.confidence.T, counts[:-1]):
            ranked = np.sort(confidence[stays])[::-1]
            count = round(count)
            thresholds.append(
                float(ranked[count]) if count < len(ranked) else stopping.ALWAYS
            )
            stays &= confidence <= thresholds[-1]
        yield stopping.ThresholdRule(thresholds)
    yield stopping.ThresholdRule([exit_table.NEVER] * steps)


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
        theta = confidence[order[last, step]] if total[last] > 0 else stopping.ALWAYS
        return theta, confidence <= theta

    yield stopping.ThresholdRule([stopping.ALWAYS] * steps)
    designs = [
        design(stopping.features(table.confidence[:, : t + 1], [t]))
        for t in range(steps)
    ]
    for price in prices(table):
        yield stopping.ThresholdRule(learn(table, designs, price, threshold))


def _values(table):
    """Return value rules learned at falling prices."""
    return _learned(table, (), stopping.ValueRule)


def features(*names: str) -> Callable:
    """Return the method that fits rules which see these features of a table."""
    make = lambda weights: stopping.FeatureRule(weights, names)
    return lambda table: _learned(table, names, make)


def _learned(table, names, make):
    """Return rules on the confidences so far and the step's features, by price."""
    if missing := set(names) - set(table.feature_names):
        raise ValueError(
            f"`features` holds {', '.join(sorted(missing))}; the table has "
            f"{', '.join(table.feature_names) or 'none'}"
        )
    designs = []
    for t in range(len(table.cost) - 1):
        known = stopping.features(table.confidence[:, : t + 1], range(t + 1))
        designs.append(design([*known, *(table.seen[name][:, t] for name in names)]))
    yield make([[-1] + [0] * (columns.shape[1] - 1) for columns, _ in designs])
    for price in prices(table):
        yield make(learn(table, designs, price, lambda _, w, gain: (w, gain > 0)))


METHODS = {
    "geometric": _geometric,
    "thresholds": _thresholds,
    "value": _values,
    "features": lambda table: features(*table.feature_names)(table),
}


def best(tables: Mapping, budgets, method="value", seeds: int = 1):
    """Return the key of the table on which fitted rules are the most accurate.

    By the mean over the budgets on held-out halves, all images being in every table; of
    equals the first.

    Args:
        tables: of the same images, whose cheapest exits cost the same.
        budgets: as of `fit`.
        method: as of `fit`.
        seeds: as of `held_out`.
    """
    reached = {
        key: held_out(table, budgets, {"": method}, seeds)[""].accuracy.mean()
        for key, table in tables.items()
    }
    return max(reached, key=reached.get)


def like(rule: stopping.Rule) -> str | Callable:
    """Return the method that fits rules of the kind of this one."""
    return features(*rule.features) if rule.features else rule.name


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What rules reach on the half that they were fitted to, and on the other.

    fitted, accuracy: [budgets] on the one and on the other, means over all splits.
    mean_cost: [budgets] on the other.
    spread: [budgets] of `accuracy`, its standard deviation over the splits.
    """

    fitted: np.ndarray
    accuracy: np.ndarray
    mean_cost: np.ndarray
    spread: np.ndarray


def held_out(
    table: exit_table.ExitTable, budgets, methods: Mapping[str, str | Callable], seeds=1
) -> dict[str, HeldOut]:
    """Compare methods on images that their rules were not fitted to.

    The images are halved at random, `seeds` times; each half serves to fit, and the other
    to score. All methods have the same halves.

    Args:
        table: of all images.
        budgets: as of `fit`.
        methods: by the name under which they are returned, each as of `fit`.
        seeds: how often they are halved.
    """
    found = {name: [] for name in methods}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(table.confidence))
        halves = [table.select(part) for part in np.array_split(order, 2)]
        for calibration, test in (halves, halves[::-1]):
            for name, method in methods.items():
                points = curve(calibration, test, budgets, method)
                found[name].append(
                    [(p.calibration_accuracy, p.accuracy, p.cost) for p in points]
                )
    return {
        name: HeldOut(*np.mean(splits, axis=0).T, np.std(splits, axis=0)[:, 1])
        for name, splits in found.items()
    }


def learn(table: exit_table.ExitTable, designs: list, price: float, decide) -> list:
    """Learn one decision per exit, backwards from the last (Longstaff-Schwartz 2001).

    `value` [n] is what each image really earns from the next exit on, correctness less
    price times cost; its regression on the features is what going on is worth.

    Args:
        table: n calibration images, E exits.
        designs: of the exits but the last, from `design`.
        price: of one unit of cost, in accuracy.
        decide: takes an exit, its weights and what they predict [n]; returns the
            decision and who goes on [n].
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


def design(features: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return features as columns [n, F], and what solves least squares on them."""
    columns = np.stack(features, axis=1)
    return columns, np.linalg.pinv(columns)


def prices(table: exit_table.ExitTable) -> np.ndarray:
    """Return prices from one at which nothing can be worth its cost down to zero."""
    dear = 1 / np.diff(table.cost).min(initial=table.cost[-1])
    cheap = 1e-3 / table.cost[-1]
    return np.append(np.geomspace(dear, cheap, PRICES), 0)
