"""Does early exit save time? The engine on the exit pattern of a published table.

    python benchmarks/early_exit.py
    python benchmarks/early_exit.py --network resnet10 --images 64 --batch 8  # try it

Needs jax and flax alone. The networks have random parameters; who leaves where is drawn
with the shares of the published ImageNet table (DenseNet-201, five budgets), so every
image does just the work that it would do there. In one process, in turn: all T steps for
every image in a plain loop of jitted batches, as public codes evaluate; the same through
the engine; the engine at each budget; and the same backbone on the full image. Images
are on the device already unless `--images-from host`.

Speed-ups are over the faster of the two that run all steps. Every image's class is
compared with the plain loop's at the same exit. Prints a table and writes
results/early_exit.json beside this file; `rows` of another device or type stay in it.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax import models
from anchornet_jax.inference import engine
from anchornet_jax.methods import anchornet, views
from anchornet_jax.models import Network, multiply_adds
from anchornet_jax.runtime import files

RESULTS = pathlib.Path(__file__).parent / "results" / "early_exit.json"
INPUTS, CLASSES = 5, 1000
# Shares of images that leave after 1 ... 5 inputs, as thresholds fitted to five budgets
# let them leave on the published per-image results of the authors' DenseNet-201.
SHARES = {
    "0.95 G": [0.820, 0.172, 0.008, 0.0, 0.0],
    "1.10 G": [0.698, 0.237, 0.064, 0.001, 0.0],
    "1.30 G": [0.573, 0.272, 0.134, 0.012, 0.009],
    "1.50 G": [0.509, 0.252, 0.151, 0.047, 0.041],
    "1.75 G": [0.406, 0.284, 0.150, 0.054, 0.106],
}
PLAIN, ENGINE, FULL = "all steps, plain loop", "all steps, engine", "full image"


class Drawn:
    """A stopping rule that leaves at exits drawn beforehand, whatever the confidence.

    The engine asks about images in the order in which it collects them, so the draw is
    made per question: at exit t with the probability that whoever got there leaves.
    """

    steps = INPUTS - 1

    def __init__(self, shares, seed=0):
        """Take the shares [E] of images that leave at each exit."""
        going = 1 - np.concatenate([[0], np.cumsum(shares)[:-1]])
        self._leave = np.divide(
            shares, going, out=np.ones(len(shares)), where=going > 0
        )
        self._leave[-1] = 1.0
        self._random = np.random.default_rng(seed)

    def leaves(self, step, confidence):
        """Return who leaves [b] at `step`."""
        return self._random.random(len(confidence)) < self._leave[step]


def network(name: str, size: int, seed: int, dtype: str) -> Network:
    """Return a network with random parameters."""
    model = models.create(name, CLASSES, dtype=dtype)
    images = jnp.zeros((1, size, size, 3))
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    return Network(model, variables, {})


class Contest:
    """One backbone, the images, and the ways to run it."""

    def __init__(self, name, dtype, options):
        """Compile everything."""
        localizer = network("anchornet", options.size, 0, dtype)
        backbone = network(name, localizer.model.field.size, 1, dtype)
        self.method = anchornet.Sequence(localizer, backbone, backbone, INPUTS, 0.3)
        self.size, self.batch = options.size, options.batch
        shape = (options.images, self.size, self.size, 3)
        self.images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        if options.images_from == "device":
            self.images = jax.device_put(self.images)
        self.rules = {ENGINE: Drawn([0, 0, 0, 0, 1.0])}
        self.rules |= {name: Drawn(shares) for name, shares in SHARES.items()}
        self.engine = engine.Classifier(
            self.method,
            self.rules[ENGINE],
            image_size=self.size,
            batch_size=options.batch,
            devices=jax.local_devices()[:1],
        )
        self.table_step = jax.jit(
            anchornet.make_table_step(self.method, random=False, seed=0)
        )
        self.full_step = jax.jit(
            lambda v, batch: backbone.model.apply(v, views.normalise(batch["image"]))[
                0
            ].argmax(-1)
        )
        self.variables = jax.device_put(self.method.variables())
        self.engine.classify(self.images[: 2 * self.batch])
        self.loop(self.table_step, self.variables, 2)
        self.loop(self.full_step, self.variables["patches"], 2)

    def ways(self) -> dict:
        """Return {name: function to be timed}."""
        loops = {
            PLAIN: (self.table_step, self.variables),
            FULL: (self.full_step, self.variables["patches"]),
        }
        return {
            **{k: functools.partial(self.loop, *v) for k, v in loops.items()},
            **{k: functools.partial(self.run, k) for k in self.rules},
        }

    def loop(self, step, variables, batches=None):
        """Run a jitted step over the images; one batch waits while one runs."""
        starts = range(0, len(self.images), self.batch)[:batches]
        results = []
        for start in starts:
            results.append(
                step(variables, {"image": self.images[start : start + self.batch]})
            )
            if len(results) > 2:
                jax.block_until_ready(results[-3])
        return jax.device_get(results)

    def run(self, key):
        """Run the engine with one of the rules."""
        self.engine.rule = self.rules[key]
        return self.engine.classify(self.images)

    def cost(self, key, result) -> float:
        """Return the mean multiply-adds per image of one way."""
        macs = np.array(self.method.macs(self.size), float)
        if key == FULL:
            return multiply_adds.model_macs(self.method.patches.model, self.size)
        return macs[-1] if key == PLAIN else float(macs[result.exit].mean())


def measure(name: str, dtype: str, options) -> list[dict]:
    """Return the rows of one backbone."""
    contest = Contest(name, dtype, options)
    ways = contest.ways()
    times, results = {key: [] for key in ways}, {}
    for _ in range(options.repeats):
        for key, way in ways.items():
            begun = time.perf_counter()
            results[key] = way()
            times[key].append(time.perf_counter() - begun)
    table = np.concatenate([batch["predicted"] for batch in results[PLAIN]])
    medians = {key: statistics.median(values) for key, values in times.items()}
    cost = {key: contest.cost(key, results[key]) for key in ways}
    everything = min(medians[PLAIN], medians[ENGINE])
    device = jax.local_devices()[0].device_kind
    rows = []
    for key, value in medians.items():
        same = None
        if key in contest.rules:
            chosen = table[np.arange(options.images), results[key].exit]
            same = float((results[key].predicted == chosen).mean())
        rows.append(
            {
                "network": name,
                "device": device,
                "cores": len(os.sched_getaffinity(0)),
                "dtype": dtype,
                "run": key,
                "budget_macs": cost[key],
                "macs_speedup": cost[PLAIN] / cost[key],
                "realised_speedup": everything / value,
                "images_per_second": options.images / value,
                "same_class": same,
            }
        )
    milliseconds = contest.engine.milliseconds()
    print(
        f"{name}, {dtype}: leaving at exit 1 … {INPUTS} costs "
        + ", ".join(f"{ms:.4g}" for ms in milliseconds)
        + " ms per image at full batches",
        flush=True,
    )
    return rows


def show(row) -> None:
    """Print a row."""
    same = row["same_class"]
    print(
        f"{row['network']:12} {row['run']:22}{row['budget_macs'] / 1e9:7.3f} G"
        f"  x{row['macs_speedup']:5.2f} in multiply-adds"
        f"  x{row['realised_speedup']:5.2f} in time"
        f"{100 * row['realised_speedup'] / row['macs_speedup']:6.1f} %"
        f"{row['images_per_second']:10.1f} images/s"
        + ("" if same is None else f"  same class: {100 * same:.2f} %"),
        flush=True,
    )


def write(path: pathlib.Path, rows, options) -> None:
    """Write the rows; keep those of other devices, types and networks."""
    key = ("network", "device", "cores", "dtype", "images_from")
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    names = ("images", "size", "batch", "repeats")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"images_from": options.images_from, "jax": jax.__version__}
    rows = [row | settings for row in rows]
    made = {tuple(row[k] for k in key) for row in rows}
    kept = [row for row in old if tuple(row[k] for k in key) not in made]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"rows": kept + rows})
    print(f"wrote {path}")


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--network", nargs="+", default=["resnet50", "densenet201"], help="names")
    add("--dtype", nargs="+", default=["float32"], help="float32, bfloat16")
    add("--images", type=int, default=1024, help="per run")
    add("--batch", type=int, default=32, help="images of a launch")
    add("--size", type=int, default=224, help="pixels of an image")
    add("--repeats", type=int, default=3, help="medians are taken over")
    add("--images-from", choices=("device", "host"), default="device", help="at start")
    add("--output", type=pathlib.Path, default=RESULTS, help="results are written here")
    options = parser.parse_args()
    rows = []
    for name in options.network:
        for dtype in options.dtype:
            found = measure(name, dtype, options)
            rows += found
            for row in found:
                show(row)
            write(options.output, rows, options)


if __name__ == "__main__":
    main()
