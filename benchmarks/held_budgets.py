"""Does a stream end at its budget? Streams that are harder or easier than calibration.

    python benchmarks/held_budgets.py --table table.npz --cost 0.79 1.64 2.43
    python benchmarks/held_budgets.py --table densenet201_imagenet_exits.npz --exits 5 \
        --cost 0.79 1.64 2.43 3.22 4.01 4.8

Needs NumPy alone. One half of a table's images, drawn at random, is for calibration. The
streams are drawn from the other, with chances that fall with the confidence at the first
exit, so that they are harder; or that rise with it. For each, the cost of the rule that was
fitted to the budget and of the same under control (`control`), and how accurate control is
beside the fixed rule of the path that would have cost this stream as much. Writes
results/held_budgets.json beside this file.
"""

import argparse
import pathlib

import numpy as np

from anchornet_jax.inference import control, exit_table
from anchornet_jax.runtime import files

RESULTS = pathlib.Path(__file__).parent / "results" / "held_budgets.json"
TRIES = 25  # fixed rules of a path
HARDNESS = (-1.0, 0.0, 1.0, 2.0)  # logarithm of the chances per unit of confidence


def drawn(table: exit_table.ExitTable, hardness: float, images: int, rng):
    """Return the table of a stream of so many images."""
    chances = np.exp(-hardness * table.confidence[:, 0])
    rows = rng.choice(len(chances), images, False, chances / chances.sum())
    return table.select(rows)


def hindsight(
    held: control.Control, stream: exit_table.ExitTable, cost: float
) -> float:
    """Return the accuracy of the path's fixed rules where they cost the stream as much."""
    tried = [
        exit_table.score(
            stream, held.at(aim).rule.exits(stream.confidence, stream.seen)
        )
        for aim in np.linspace(held.at(0).cost, held.at(np.inf).cost, TRIES)
    ]
    tried.sort(key=lambda one: one.mean_cost)
    costs, accuracy = zip(*((one.mean_cost, one.accuracy) for one in tried))
    return float(np.interp(cost, costs, accuracy))


def run(table, budget: float, images: int, seeds: int, under_way: int) -> list[dict]:
    """Return a row for each hardness, over `seeds` halvings and streams."""
    rows = []
    for hardness in HARDNESS:
        found = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            halves = np.array_split(rng.permutation(len(table.confidence)), 2)
            calibration, other = (table.select(half) for half in halves)
            held = control.Control(calibration, budget)
            stream = drawn(other, hardness, images, rng)
            seen = stream.confidence, stream.seen
            fixed = exit_table.score(stream, held.rule.exits(*seen))
            exits = held.exits(*seen, under_way=under_way)
            moved = exit_table.score(stream, exits)
            gain = moved.accuracy - hindsight(held, stream, moved.mean_cost)
            found.append((fixed.mean_cost, moved.mean_cost, gain))
        fixed, moved, gain = np.transpose(found)
        rows.append(
            {
                "hardness": hardness,
                "fixed_off": float((fixed / budget - 1).mean()),
                "held_off_most": float(np.abs(moved / budget - 1).max()),
                "held_off": float((moved / budget - 1).mean()),
                "accuracy_over_hindsight": float(gain.mean()),
            }
        )
    return rows


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, help=".npz or .csv")
    parser.add_argument("--cost", type=float, nargs="+", help="per exit, cumulative")
    parser.add_argument("--budget", type=float, help="mean cost; default: the middle")
    parser.add_argument("--images", type=int, default=2000, help="of a stream")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--under-way", type=int, default=256, help="in the engine")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--exits", type=int, help="the first ones alone")
    options = parser.parse_args()
    table = exit_table.ExitTable.load(options.table, cost=options.cost)
    table = table.select(exits=options.exits)
    budget = options.budget or float(np.sqrt(table.cost[0] * table.cost[-1]))
    rows = run(table, budget, options.images, options.seeds, options.under_way)
    print(f"budget {budget:.4g} {table.unit}, {options.images} images")
    print(
        f"{'hardness':>10}{'rule, %':>10}{'held, %':>10}{'at most':>10}{'points':>10}"
    )
    for row in rows:
        shares = [row[k] for k in ("fixed_off", "held_off", "held_off_most")]
        shares.append(row["accuracy_over_hindsight"])
        numbers = "".join(f"{100 * share:10.2f}" for share in shares)
        print(f"{row['hardness']:10.1f}{numbers}")
    about = {
        "budget": budget,
        "cost": table.cost.tolist(),
        "images": options.images,
        "seeds": options.seeds,
        "under_way": options.under_way,
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
