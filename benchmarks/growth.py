"""How long one image takes, and how cost grows: with inputs, batch, devices and stream.

    python benchmarks/growth.py
    python benchmarks/growth.py --network resnet10 --images 32 --parts latency  # a try

Needs jax and flax alone. Random weights; who leaves where is drawn as in early_exit.py.

- latency: images one by one, `batch_size=1` and `in_flight=1`, at each of the published
  patterns of exits and through the network on the full image: median and 99th percentile.
- inputs: what an image through all steps costs with 2 … 8 inputs, at full batches.
- batch: images per second at one pattern, batches of 1 … 256.
- devices: images per second on 1, 2, 4 … of the devices there are. On CPU on as many
  virtual ones, which share the cores: a check that all answers are the same, no more.
- stream: images per second and memory of streams of rising length.

Prints tables and writes results/growth.json beside this file.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import early_exit
import jax
import numpy as np

from anchornet_jax.inference import engine, stopping
from anchornet_jax.methods import anchornet, static
from anchornet_jax.methods import method as protocol
from anchornet_jax.runtime import files, memory

RESULTS = pathlib.Path(__file__).parent / "results" / "growth.json"
PATTERN = "1.30 G"  # of early_exit.SHARES, where one is enough


class Networks:
    """The networks, made once for all parts."""

    def __init__(self, options):
        """Draw them."""
        self.size, self.dtype = options.size, options.dtype
        localizer = early_exit.network("anchornet", self.size, 0, self.dtype)
        side = localizer.model.field.size
        backbone = early_exit.network(options.network, side, 1, self.dtype)
        self._members = {"localizer": localizer, "glance": backbone, "patch": backbone}
        self.whole = static.Static({"network": backbone})

    def method(self, inputs: int = early_exit.INPUTS):
        """Return the sequence of a glance and patches."""
        return anchornet.AnchorNet(self._members, inputs)

    def classifier(self, method=None, rule=None, **options) -> engine.Classifier:
        """Return a classifier that has compiled, all steps unless told otherwise."""
        method = method or self.method()
        exits = len(method.steps)
        options = {"devices": jax.local_devices()[:1]} | options
        made = engine.Classifier(
            method,
            stopping.fixed(exits, exits),
            image_size=self.size,
            **options,
        )
        count = len(made.devices) * made.batch_size
        made.classify(np.zeros((count, self.size, self.size, 3), np.uint8))
        made.rule = rule or made.rule
        return made


def drawn(shares=PATTERN) -> early_exit.Drawn:
    """Return the rule that lets images leave with published shares."""
    return early_exit.Drawn(early_exit.SHARES[shares])


def latency(networks: Networks, images, options):
    """Yield the waits for single images."""
    one = {"batch_size": 1, "in_flight": 1}
    sequence = networks.classifier(**one)
    full = networks.classifier(networks.whole, **one)
    ways = {"full image": (full, full.rule)}
    ways |= {name: (sequence, drawn(name)) for name in early_exit.SHARES}
    waits = {name: [] for name in ways}
    for image in images:
        for name, (classifier, rule) in ways.items():  # in turn
            classifier.rule = rule
            begun = time.perf_counter()
            classifier.classify(image[None])
            waits[name].append(1e3 * (time.perf_counter() - begun))
    for name, values in waits.items():
        yield {
            "run": name,
            "median_ms": statistics.median(values),
            "percentile_99_ms": float(np.percentile(values, 99)),
        }


def inputs(networks: Networks, images, options):
    """Yield the cost of all steps, by their number."""
    for count in options.inputs:
        method = networks.method(count)
        made = networks.classifier(method, batch_size=options.batch)
        yield {
            "inputs": count,
            "macs": protocol.costs(method, networks.size)[-1],
            "milliseconds": float(made.milliseconds()[-1]),
        }


def batch(networks: Networks, images, options):
    """Yield the throughput, by the images of a launch."""
    for size in options.batches:
        made = networks.classifier(rule=drawn(), batch_size=size)
        yield {"batch": size, "images_per_second": throughput(made, images)}


def throughput(classifier, images) -> float:
    """Return images per second, the median of three runs."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        classifier.classify(images)
        times.append(time.perf_counter() - begun)
    return len(images) / statistics.median(times)


def devices(networks: Networks, images, options):
    """Yield the throughput by devices, each in a process of its own on CPU.

    Raises:
      RuntimeError: if an answer depends on the devices.
    """
    # A threshold that some pass and others do not: equal answers then mean something.
    made = networks.classifier(batch_size=options.batch)
    made.rule = stopping.fixed(1, early_exit.INPUTS)
    threshold = float(np.median(made.classify(images).confidence))
    virtual = jax.default_backend() == "cpu"
    counts = options.devices or (
        [1, 2, 4] if virtual else [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    )
    wanted = None
    for count in counts:
        if virtual:
            row = _child(count, threshold, options)
        else:
            row = on_devices(count, threshold, networks, images, options)
        answers = row.pop("answers")
        wanted = wanted or answers
        if answers != wanted:
            raise RuntimeError(f"{count} devices give other answers than {counts[0]}")
        yield row | {"virtual": virtual}


def on_devices(count, threshold, networks, images, options) -> dict:
    """Return the throughput on the first devices, and the exit and class of each image."""
    rule = stopping.ThresholdRule([threshold] * (early_exit.INPUTS - 1))
    used = jax.local_devices()[:count]
    made = networks.classifier(rule=rule, batch_size=options.batch, devices=used)
    result = made.classify(images)
    answers = [result.exit.tolist(), result.predicted.tolist()]
    rate = throughput(made, images)
    return {"devices": count, "images_per_second": rate, "answers": answers}


def _child(count, threshold, options) -> dict:
    own = [f"--child={count}", f"--threshold={threshold!r}"]
    names = ("network", "dtype", "images", "batch", "size")
    own += [f"--{name}={getattr(options, name)}" for name in names]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(count)}
    command = [sys.executable, __file__, *own]
    how = {"capture_output": True, "text": True, "env": environment}
    done = subprocess.run(command, check=False, **how)
    if done.returncode:
        raise RuntimeError(f"{count} devices: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def stream(networks: Networks, images, options):
    """Yield throughput and memory, by the length of the stream."""
    made = networks.classifier(rule=drawn(), batch_size=options.batch)
    for length in options.lengths:
        numbers = (number % len(images) for number in range(length))
        begun, most = time.perf_counter(), 0.0
        for _ in made.stream(images[number] for number in numbers):
            most = max(most, memory.resident_mb())
        rate = length / (time.perf_counter() - begun)
        yield {"length": length, "images_per_second": rate, "memory_mb": most}


PARTS = {part.__name__: part for part in (latency, inputs, batch, devices, stream)}


def main() -> None:
    """Print the tables and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, many = parser.add_argument, {"type": int, "nargs": "+"}
    add("--network", default="resnet50", help="glance, patches and full image")
    add("--dtype", default="float32", help="float32, bfloat16")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="to measure")
    add("--images", type=int, default=256, help="different ones; all of most runs")
    add("--batch", type=int, default=16, help="images of a launch, but in `batch`")
    add("--size", type=int, default=224, help="pixels of an image")
    add("--inputs", **many, default=[2, 3, 5, 8], help="of the part of that name")
    add("--batches", **many, default=[1, 4, 16, 64, 256], help="of `batch`")
    add("--devices", **many, help="of that part; by default 1, 2, 4")
    add("--lengths", **many, default=[256, 1024, 4096], help="of `stream`")
    add("--output", type=pathlib.Path, default=RESULTS, help="results are written here")
    add("--child", type=int, help=argparse.SUPPRESS)
    add("--threshold", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    memory.keep()
    networks = Networks(options)
    shape = (options.images, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if options.child:
        found = on_devices(options.child, options.threshold, networks, images, options)
        print(json.dumps(found))
        return
    rows = {}
    for name in options.parts:
        rows[name] = []
        for row in PARTS[name](networks, images, options):
            rows[name].append(row)
            print(f"{name:8}", ", ".join(map(_shown, row.items())), flush=True)
    given = ("network", "dtype", "images", "batch", "size")
    about = {
        "device": jax.local_devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        **{name: getattr(options, name) for name in given},
        **rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    print(f"wrote {options.output}")


def _shown(item) -> str:
    name, value = item
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


if __name__ == "__main__":
    main()
