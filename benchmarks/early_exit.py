"""Does early exit save time? The engine on the exit pattern of a published table.

    python benchmarks/early_exit.py
    python benchmarks/early_exit.py --network resnet10 --images 64 --batch 8  # try it

Needs jax and flax alone. The networks have random parameters; who leaves where is drawn
with the shares of the published ImageNet table (DenseNet-201, five budgets), so every
image does just the work that it would do there. In one process, in turn:

- all T steps for every image, in a plain loop of jitted batches, as public codes
  evaluate, and through the engine;
- the backbone on the full image, through the engine;
- at each budget the engine, whose batches stay full;
- at each budget, batches that run until their slowest image leaves (compute padding);
- at each budget, batches from which finished images are dropped at an exit where that
  pays by a table measured beforehand, and which never refill (shrink only, the rule of
  BatchCond, TCAD 2024).

Images are on the device already unless `--images-from host`. Speed-ups are over the
faster of the two that run all steps. The classes of the engine are compared with the
plain loop's at the same exit. The networks of the demo are those of resnet10.

Where the engine's time goes:

- networks: its launches, each as long as the bare step of a full batch takes;
- moving: what the same launches take longer with slots, gathered and scattered;
- waiting: the rest of the time, in which the device does nothing, as far as it and the
  host do not share cores;
- host: the processor time of the thread that decides, most of it beside the device;
- empty: the share of the rows of its launches that had no image, at the end of a stream
  above all. The steady state is what the second half of the images takes longer than the
  first half alone, so the drain is not in it.

Without `--batch` it is doubled as long as that pays. Prints what it does and a table, and
writes results/early_exit.json beside this file; `rows` of another device or type stay.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax import models
from anchornet_jax.inference import engine, folding, stopping, timing
from anchornet_jax.methods import anchornet, static
from anchornet_jax.methods import method as protocol
from anchornet_jax.models import Network
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
GOLDEN = (5**0.5 - 1) / 2
PLAIN, ENGINE, FULL = "all steps, plain loop", "all steps, engine", "full image"
PADDING, SHRINK = "compute padding", "shrink only"


class Drawn:
    """A stopping rule that lets given shares leave, whatever the confidence.

    At exit t every image asked about leaves with the probability that whoever got there
    leaves, by the fractions of multiples of the golden ratio in place of random numbers:
    the shares come out over any number of images, and each stream draws the same.
    """

    steps, features = INPUTS - 1, ()

    def __init__(self, shares):
        """Take the shares [E] of images that leave at each exit."""
        going = 1 - np.concatenate([[0], np.cumsum(shares)[:-1]])
        self._leave = np.divide(
            shares, going, out=np.ones(len(shares)), where=going > 0
        )
        self._leave[-1] = 1.0

    def begin(self, *_):
        """Begin a stream."""
        self._asked = [0] * INPUTS
        return stopping.Constant(self)

    def leaves(self, step, confidence, seen=None):
        """Return who leaves [b] at `step`."""
        turns = self._asked[step] + np.arange(len(confidence))
        self._asked[step] += len(confidence)
        return turns * GOLDEN % 1 < self._leave[step]


def network(name: str, size: int, seed: int, dtype: str) -> Network:
    """Return a network with random parameters."""
    model = models.create(name, CLASSES, dtype=dtype)
    images = jnp.zeros((1, size, size, 3))
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    return Network(model, variables, {})


class Loop:
    """Batches one after the other: nobody joins a batch that has begun."""

    def __init__(self, method, images, batch: int):
        """Compile nothing yet."""
        self._method, self._images, self._batch = method, images, batch
        self._variables = jax.device_put(protocol.variables(method))
        self._programs = {step: self._compiled(step) for step in method.steps}
        self._rows = jax.jit(lambda tree, rows: jax.tree.map(lambda a: a[rows], tree))

    def _compiled(self, step):
        first = step == self._method.steps[0]

        def run(variables, images, state, t):
            if first:
                state = self._method.start(*images.shape[:2])
            state, logits = step.run(variables, images, None, state, t)
            return state, protocol.decide(logits)

        return jax.jit(run)

    def _step(self, t, images, state):
        place = np.full(len(images), t, np.int32)
        run = self._programs[self._method.steps[t]]
        return run(self._variables, images, state, place)

    def run(self, exits, shrink: bool = False) -> np.ndarray:
        """Run until all of a batch have left at their exits [n]; return [n, T] classes.

        Args:
          exits: 0-based, of each image.
          shrink: drop those who left where a smaller batch is faster, see `prepare`.
        """
        found, starts = [], range(0, len(self._images), self._batch)
        for start in starts:
            leave = exits[start : start + self._batch]
            found.append(self._run(start, leave, shrink))
            if len(found) > 2:
                jax.block_until_ready(found[-3])
        return [jax.device_get(batch) for batch in found]

    def _run(self, start, leave, shrink):
        images, state = self._images[start : start + self._batch], None
        answers = []
        for t in range(max(leave) + 1):
            going = np.flatnonzero(leave >= t)
            if shrink and (size := self._best[t][len(going)]) < len(images):
                images, state = self._rows((images, state), np.resize(going, size))
                leave = np.append(leave[going], np.full(size - len(going), -1))
            state, decision = self._step(t, images, state)
            answers.append(decision)
        return answers

    def _through(self, size) -> None:
        """Take one batch of `size` through all steps."""
        state = None
        for t in range(len(self._method.steps)):
            state, _ = self._step(t, self._images[:size], state)

    def prepare(self, repeats: int = 3) -> None:
        """Measure every step at the halved batches: the table of what shrinking pays.

        Sets `seconds`, of every step of a full batch. Halved down to a sixteenth; each size is a compilation of every step.
        """
        sizes = [self._batch]
        while sizes[-1] > max(1, self._batch // 16):
            sizes.append(-(-sizes[-1] // 2))
        with futures.ThreadPoolExecutor() as pool:  # compiles them side by side
            list(pool.map(self._through, sizes))
        took = {}
        for size in sizes:
            images, state = self._images[:size], None
            for t in range(len(self._method.steps)):
                times = []
                for _ in range(repeats + 1):
                    begun = time.perf_counter()
                    if t and size < self._batch:  # what dropping rows costs besides
                        everyone = np.arange(size)
                        images, state = self._rows((images, state), everyone)
                    after, _ = jax.block_until_ready(self._step(t, images, state))
                    times.append(time.perf_counter() - begun)
                state, took[t, size] = after, statistics.median(times[1:])
        self.seconds = {t: took[t, self._batch] for t in range(len(self._method.steps))}
        self._best = {
            t: {
                going: min((s for s in sizes if s >= going), key=lambda s: took[t, s])
                for going in range(1, self._batch + 1)
            }
            for t in range(len(self._method.steps))
        }


class Contest:
    """One backbone, the images, and the ways to run it."""

    def __init__(self, name, dtype, options):
        """Compile everything."""
        localizer = network("anchornet", options.size, 0, dtype)
        side = localizer.model.field.size
        backbone = network(name, side, 1, dtype)
        members = {"localizer": localizer, "glance": backbone, "patch": backbone}
        self.method = anchornet.AnchorNet(members, INPUTS)
        self.whole = static.Static({"network": backbone})
        self.size = options.size
        self.batch = options.batch or timing.choose_batch_size(self.method, self.size)
        shape = (options.images, self.size, self.size, 3)
        self.images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        if options.images_from == "device":
            self.images = jax.device_put(self.images)
        self.rules = {ENGINE: Drawn([0, 0, 0, 0, 1.0])}
        self.rules |= {name: Drawn(shares) for name, shares in SHARES.items()}
        self.engine = self._classifier(self.method, self.rules[ENGINE])
        self.full = self._classifier(self.whole, stopping.fixed(1, 1))
        self.plain = Loop(self.method, self.images, self.batch)
        folded = folding.fold_method(self.method, self.size)
        self.loop = Loop(folded, self.images, self.batch)
        self.loop.prepare()
        progress(f"{name}, {dtype}: compiled, batches of {self.batch}")
        self.exits = {name: self.run(name).exit for name in SHARES}  # the same for all
        self.exits[PLAIN] = np.full(options.images, INPUTS - 1)
        self.plain.run(self.exits[PLAIN])

    def _classifier(self, method, rule):
        made = engine.Classifier(
            method,
            rule,
            image_size=self.size,
            batch_size=self.batch,
            devices=jax.local_devices()[:1],
        )
        made.classify(self.images[: 2 * self.batch])
        return made

    def ways(self) -> dict:
        """Return {name: function to be timed}."""
        plain = functools.partial(self.plain.run, self.exits[PLAIN])
        others = {PADDING: False, SHRINK: True}
        return {
            PLAIN: plain,
            FULL: lambda: self.full.classify(self.images),
            **{k: functools.partial(self.run, k) for k in self.rules},
            **{
                f"{k}, {way}": functools.partial(self.loop.run, self.exits[k], shrink)
                for way, shrink in others.items()
                for k in SHARES
            },
        }

    def run(self, key, count: int | None = None):
        """Run the engine with one of the rules, on the first images or all."""
        self.engine.rule = self.rules[key]
        return self.engine.classify(self.images[:count])

    def steady(self, key) -> float:
        """Return the seconds that the second half of the images adds."""
        times = []
        for count in (len(self.images) // 2, None):
            begun = time.perf_counter()
            self.run(key, count)
            times.append(time.perf_counter() - begun)
        return times[1] - times[0]

    def breakdown(self, key) -> dict:
        """Return where one run of the engine spends its time, in seconds; see above."""
        before = self.engine.launched.copy()
        begun, host = time.perf_counter(), time.thread_time()
        result = self.run(key)
        took, host = time.perf_counter() - begun, time.thread_time() - host
        launches = self.engine.launched - before
        steps = self.method.steps
        first = {step.name: t for t, step in reversed(list(enumerate(steps)))}
        bare = sum(n * self.loop.seconds[first[name]] for name, n in launches.items())
        costs = (
            np.diff(self.costs, prepend=0) * self.batch / 1e3
        )  # of a launch, seconds
        whole = sum(n * costs[first[name]] for name, n in launches.items())
        rows = self.batch * launches.total()
        return {
            "networks": bare,
            "moving": whole - bare,
            "waiting": took - whole,
            "host": host,
            "took": took,
            "empty": 1 - float((result.exit + 1).sum()) / rows,
        }

    @functools.cached_property
    def costs(self):
        """Milliseconds of leaving at each exit, per image at full batches."""
        return self.engine.milliseconds()

    def cost(self, key, result) -> float:
        """Return the mean multiply-adds per image that one way needs."""
        macs = np.array(protocol.costs(self.method, self.size), float)
        if key == FULL:
            return protocol.costs(self.whole, self.size)[-1]
        if key in self.rules:
            return float(macs[result.exit].mean())
        exits = self.exits[key] if key in self.exits else self.exits[key.split(",")[0]]
        return float(macs[exits].mean())


def measure(name: str, dtype: str, options) -> list[dict]:
    """Return the rows of one backbone."""
    contest = Contest(name, dtype, options)
    ways = contest.ways()
    times, results = {key: [] for key in ways}, {}
    steady = {key: [] for key in contest.rules}
    for repeat in range(options.repeats):
        for key, way in ways.items():
            begun = time.perf_counter()
            results[key] = way()
            times[key].append(time.perf_counter() - begun)
            progress(f"{name}, run {repeat + 1}: {key}, {times[key][-1]:.2f} s")
        for key, values in steady.items():
            values.append(contest.steady(key))
    table = np.concatenate(
        [np.stack([said for _, said in batch], 1) for batch in results[PLAIN]]
    )  # [n, T] classes
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
        parts = contest.breakdown(key) if key in contest.rules else None
        slope = 2 * statistics.median(steady[key]) if key in steady else 0
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
                "steady_speedup": everything / slope if slope > 0 else None,
                "seconds": parts,
                "batch": contest.batch,
            }
        )
    milliseconds = contest.costs
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
        f"{row['network']:12} {row['run']:24}{row['budget_macs'] / 1e9:7.3f} G"
        f"  x{row['macs_speedup']:5.2f} in multiply-adds"
        f"  x{row['realised_speedup']:5.2f} in time"
        f"{100 * row['realised_speedup'] / row['macs_speedup']:6.1f} %"
        f"{row['images_per_second']:10.1f} images/s"
        + ("" if same is None else f"  same class: {100 * same:.2f} %"),
        flush=True,
    )
    if row["seconds"]:
        parts = dict(row["seconds"])
        took, empty = parts.pop("took"), parts.pop("empty")
        shares = (f"{name} {100 * value / took:.0f} %" for name, value in parts.items())
        steady = row["steady_speedup"]
        print(
            f"{'':13}{', '.join(shares)}; empty rows {100 * empty:.0f} %"
            + (f"; steady state x {steady:.2f}" if steady else ""),
            flush=True,
        )


def progress(text: str) -> None:
    """Say what was done, beside the table."""
    print(text, file=sys.stderr, flush=True)


def write(path: pathlib.Path, rows, options) -> None:
    """Write the rows; keep those of other devices, types, batches and networks."""
    key = ("network", "device", "cores", "dtype", "batch", "images_from")
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    names = ("images", "size", "repeats")
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
    add("--batch", type=int, help="images of a launch; by a measurement where none")
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
