"""Which stopping rule generalises? Every rule tried, on images it was not fitted to.

    python benchmarks/stopping_rules.py --table table.npz --cost 0.79 1.64 2.43
    python benchmarks/stopping_rules.py --table densenet201_imagenet_exits.npz --authors

Needs NumPy alone. The table is one that `exit_table.ExitTable.load` reads, such as the
test.npz of an evaluation. Its images are halved at random; each half serves to fit and the
other to score, for several seeds (`fitting.held_out`). Prints held-out accuracy by budget
and rule, averaged over the splits, and writes the averages of both halves to
results/stopping_rules.json beside this file. The rules that the package does not keep are
those below. Where the table has features, rules are fitted to all and to each alone too.
"""

import argparse
import pathlib

import numpy as np

from anchornet_jax.inference import exit_table, fitting, stopping
from anchornet_jax.runtime import files

RESULTS = pathlib.Path(__file__).parent / "results" / "stopping_rules.json"
# Accuracy by mean cost in G of the thresholds that the authors of the 2022 paper set by
# hand on all 50,000 images, with 5 inputs: result/densenet_acc_flops.txt of their code.
AUTHORS = {
    0.83: 0.7076, 0.86: 0.7104, 0.88: 0.7112, 0.93: 0.7155, 0.96: 0.7189, 0.98: 0.7196,
    1.02: 0.7240, 1.05: 0.7246, 1.09: 0.7278, 1.12: 0.7285, 1.15: 0.7289, 1.18: 0.7329,
    1.22: 0.7334, 1.24: 0.7374, 1.27: 0.7380, 1.29: 0.7381, 1.36: 0.7443, 1.39: 0.7452,
    1.42: 0.7451, 1.46: 0.7480, 1.50: 0.7488, 1.54: 0.7488, 1.66: 0.7506, 1.67: 0.7504,
    1.72: 0.7507,
}  # fmt: skip
AUTHORS_COST = [0.79] + [0.79 * t + 0.06 for t in range(2, 6)]
TEMPERATURES = np.geomspace(0.5, 10, 60)
TINY = 1e-6  # keeps log odds finite


def calibrated(table: exit_table.ExitTable):
    """Yield rules with one threshold for all exits, on calibrated confidence.

    Temperature scaling (Guo et al., 2017) of the log odds of the confidence, fitted per
    exit to being right. Each exit's own threshold would undo it: it keeps the order.
    """
    odds = log_odds(table.confidence[:, :-1])
    fitted = [
        min(TEMPERATURES, key=lambda t: log_loss(one / t, right))
        for one, right in zip(odds.T, table.correct.T)
    ]
    shared = np.quantile(odds / fitted, np.linspace(0, 1, 2 * fitting.PRICES))
    yield stopping.ThresholdRule([stopping.ALWAYS] * len(fitted))
    for threshold in shared:
        odds = threshold * np.array(fitted)
        yield stopping.ThresholdRule(1 / (1 + np.exp(-odds)))


def log_odds(confidence: np.ndarray) -> np.ndarray:
    """Return log p / (1 - p)."""
    clipped = confidence.clip(TINY, 1 - TINY)
    return np.log(clipped / (1 - clipped))


def log_loss(odds: np.ndarray, right: np.ndarray) -> float:
    """Return the mean log loss of log odds [n] of being right."""
    return float(np.logaddexp(0, np.where(right, -odds, odds)).mean())


class Quadratic(stopping.ValueRule):
    """A value rule with all products of two doubts as well."""

    name = "quadratic"

    def _shape(self, step):
        return (len(products(np.zeros((1, step + 1)))),)

    def _leaves(self, weights, history, seen):
        return sum(w * f for w, f in zip(weights, products(history))) <= 0


def products(history: np.ndarray) -> list[np.ndarray]:
    """Return a constant, the doubts at the exits so far, and their products."""
    known = np.sqrt(1 - history).T
    pairs = [a * b for i, a in enumerate(known) for b in known[i:]]
    return [np.ones(len(history)), *known, *pairs]


def learned(rule, features):
    """Return a method that learns what going on is worth from given features."""

    def method(table):
        steps = len(table.cost) - 1
        history = [table.confidence[:, : t + 1] for t in range(steps)]
        designs = [fitting.design(features(known)) for known in history]
        yield rule([[-1] + [0] * (d[0].shape[1] - 1) for d in designs])
        for price in fitting.prices(table):
            keep = fitting.learn(table, designs, price, lambda _, w, g: (w, g > 0))
            yield rule(keep)

    return method


class LastOnly(stopping.ValueRule):
    """A value rule that has forgotten the exits before."""

    name = "last_only"

    def _shape(self, step):
        return (3,)

    def _leaves(self, weights, history, seen):
        return super()._leaves(weights, history[:, -1:], seen)


RULES = {
    **{name: fitting.METHODS[name] for name in ("geometric", "thresholds", "value")},
    "calibrated": calibrated,
    "last only": learned(LastOnly, lambda known: stopping.features(known[:, -1:], [0])),
    "quadratic": learned(Quadratic, products),
}


def rules(table: exit_table.ExitTable) -> dict:
    """Return the rules for a table; those on features where it has any."""
    names = table.feature_names
    alone = {f"+ {name}": fitting.features(name) for name in names}
    return RULES | alone | ({"features": fitting.features(*names)} if names else {})


def score(table: exit_table.ExitTable, budgets, seeds: int) -> dict[str, dict]:
    """Return {accuracy, mean_cost, fitted} by rule, [budgets] each, over the splits.

    `fitted` is the accuracy on the half that a rule was fitted to.
    """
    found = fitting.held_out(table, budgets, rules(table), seeds)
    return {
        name: {
            "accuracy": one.accuracy.round(5).tolist(),
            "mean_cost": one.mean_cost.round(5).tolist(),
            "fitted": one.fitted.round(5).tolist(),
        }
        for name, one in found.items()
    }


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, help=".npz or .csv")
    parser.add_argument("--cost", type=float, nargs="+", help="per exit, cumulative")
    parser.add_argument("--unit", default="", help="of the cost")
    parser.add_argument("--budgets", type=float, nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    parser.add_argument(
        "--authors",
        action="store_true",
        help="the table is the authors': their costs and budgets, and what they reach",
    )
    options = parser.parse_args()
    if options.authors:
        cost, unit = AUTHORS_COST, "G multiply-adds"
        whole = exit_table.ExitTable.load(options.table, cost=np.arange(1.0, 7))
        table = whole.select(exits=5).with_cost(cost, unit)
        budgets = list(AUTHORS)
    else:
        table = exit_table.ExitTable.load(
            options.table, cost=options.cost, unit=options.unit
        )
        budgets = options.budgets or np.geomspace(*table.cost[[0, -1]], 12)[1:].tolist()
    found = score(table, budgets, options.seeds)
    if options.authors:
        found["authors"] = {"accuracy": list(AUTHORS.values())}
    print_table(budgets, found, table.unit)
    about = {
        "images": len(table.confidence),
        "splits": 2 * options.seeds,
        "unit": table.unit,
        "cost": table.cost.tolist(),
        "anytime": table.correct.mean(0).tolist(),
        "budgets": budgets,
        "rules": found,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    print(f"wrote {options.output}")


def print_table(budgets: list[float], found: dict[str, dict], unit: str) -> None:
    """Print accuracy in % by budget and rule, and how far off a budget was at most."""
    print(f"{unit or 'budget':>16}" + "".join(f"{name:>12}" for name in found))
    columns = zip(*(values["accuracy"] for values in found.values()))
    for budget, row in zip(budgets, columns):
        print(f"{budget:16.4g}" + "".join(f"{100 * value:12.2f}" for value in row))
    means = [np.mean(values["accuracy"]) for values in found.values()]
    print(f"{'mean':>16}" + "".join(f"{100 * value:12.2f}" for value in means))
    fitted = [np.mean(values.get("fitted", np.nan)) for values in found.values()]
    print(f"{'on its own half':>16}" + "".join(f"{100 * v:12.2f}" for v in fitted))
    off = [
        np.abs(np.divide(values["mean_cost"], budgets) - 1).max()
        for values in found.values()
        if "mean_cost" in values
    ]
    print(f"{'cost off by, %':>16}" + "".join(f"{100 * v:12.2f}" for v in off))


if __name__ == "__main__":
    main()
