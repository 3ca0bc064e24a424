"""Does early exit save time? The engine on the exit pattern of a published table.

    python benchmarks/early_exit.py --network=resnet50

Needs jax and flax alone. The networks have random parameters; who leaves where is drawn
with the shares of the published ImageNet table (DenseNet-201, five budgets), so every
image does just the work that it would do there. In one process, in turn: the engine at
each budget, the engine with all steps for every image, and the same backbone on the full
image. Prints a table and writes results/early_exit.json beside this file: `rows` of
network, device, budget_macs, macs_speedup, realised_speedup and images_per_second.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax import flops, inference, models, sequence, views
from anchornet_jax.models import Network

RESULTS = pathlib.Path(__file__).parent / "results" / "early_exit.json"
SIZE, INPUTS, CLASSES = 224, 5, 1000
# Shares of images that leave after 1 ... 5 inputs, as thresholds fitted to five budgets
# let them leave on the published per-image results of the authors' DenseNet-201.
SHARES = {
    "0.95 G": [0.820, 0.172, 0.008, 0.0, 0.0],
    "1.10 G": [0.698, 0.237, 0.064, 0.001, 0.0],
    "1.30 G": [0.573, 0.272, 0.134, 0.012, 0.009],
    "1.50 G": [0.509, 0.252, 0.151, 0.047, 0.041],
    "1.75 G": [0.406, 0.284, 0.150, 0.054, 0.106],
}


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


def network(name: str, size: int, seed: int) -> Network:
    """Return a network with random parameters."""
    model = models.create(name, CLASSES)
    images = jnp.zeros((1, size, size, 3))
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    return Network(model, variables, {"classes": list(range(CLASSES))})


def method(name: str) -> sequence.Sequence:
    """Return the method with two copies of a backbone."""
    anchornet = network("anchornet", SIZE, 0)
    patch = anchornet.model.field.size
    backbone = network(name, patch, 1)
    return sequence.Sequence(anchornet, backbone, backbone, INPUTS, 0.3)


def seconds(function) -> float:
    """Return the wall time of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def measure(name: str, options) -> list[dict]:
    """Return the rows of one backbone."""
    parts = method(name)
    images = np.random.default_rng(0).integers(
        0, 256, (options.images, SIZE, SIZE, 3), np.uint8
    )
    everyone = Drawn([0, 0, 0, 0, 1.0])
    engine = inference.Classifier(
        parts, everyone, image_size=SIZE, batch_size=options.batch
    )
    full = jax.jit(
        lambda v, x: parts.patches.model.apply(v, views.normalise(x))[0].argmax(-1)
    )

    def whole_images():
        for start in range(0, len(images), options.batch):
            full(parts.patches.variables, images[start : start + options.batch])
        jax.block_until_ready(full(parts.patches.variables, images[: options.batch]))

    macs = np.array(parts.macs(SIZE), float)
    rules = {"all steps": everyone, **{k: Drawn(v) for k, v in SHARES.items()}}
    counts = {}

    def run(key):
        engine.rule = rules[key]
        exits = [result.exit for result in engine.classify(images)]
        counts[key] = np.bincount(exits, minlength=INPUTS) / len(exits)

    engine.classify(images[: 2 * options.batch])  # compiles
    whole_images()
    times = {key: [] for key in (*rules, "full image")}
    for _ in range(options.repeats):
        for key in rules:
            times[key].append(seconds(lambda key=key: run(key)))
        times["full image"].append(seconds(whole_images))
    medians = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for key, value in medians.items():
        if key == "full image":
            cost = flops.model_macs(parts.patches.model, SIZE)
        else:
            cost = float(counts[key] @ macs)
        rows.append(
            {
                "network": name,
                "device": jax.devices()[0].device_kind,
                "run": key,
                "budget_macs": cost,
                "macs_speedup": macs[-1] / cost,
                "realised_speedup": medians["all steps"] / value,
                "images_per_second": len(images) / value,
            }
        )
    return rows


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["resnet50", "densenet201"])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for name in options.network:
        for row in measure(name, options):
            rows.append(row)
            print(
                f"{row['network']:12} {row['run']:12} {row['budget_macs'] / 1e9:6.3f} G"
                f"  x{row['macs_speedup']:5.2f} in multiply-adds"
                f"  x{row['realised_speedup']:5.2f} in time"
                f"  {row['images_per_second']:8.1f} images/s",
                flush=True,
            )
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"jax": jax.__version__, "options": vars(options), "rows": rows}
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
