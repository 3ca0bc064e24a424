"""Cost against image size: AnchorNet's sequence, the whole image, and AnchorNet in tiles.

    python benchmarks/image_size.py
    python benchmarks/image_size.py --network resnet10 --sizes 224 300 --repeats 1  # a try

Needs jax and flax alone, and matplotlib for the figure. One image at a time, random
pixels and weights, float32. The sequence is the glance, the localisation coarse to fine
(methods/large.py) and all patches, through the engine; the time includes making the halved
copies of the image. Zooms are as many as the size needs to reach full resolution. The whole
image goes through the network at once, up to `--largest` pixels, and through AnchorNet in
tiles (methods/tiles.py), which is localisation at full resolution everywhere. Peak memory
is that of a process of its own for each row, everything included.

Prints a table and writes results/image_size.json, and image_size.png and .svg, beside it.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax import models
from anchornet_jax.inference import engine, folding, stopping
from anchornet_jax.methods import large, preprocessing, tiles
from anchornet_jax.models import Network, multiply_adds
from anchornet_jax.runtime import files, memory

RESULTS = pathlib.Path(__file__).parent / "results" / "image_size.json"
SIZES = (224, 512, 1024, 2048, 4096, 8192)
WAYS = ("sequence", "whole image", "tiles")
LABELS = {
    "sequence": "glance, AnchorNet coarse to fine, {} patches",
    "whole image": "the whole image",
    "tiles": "AnchorNet alone, the whole image in tiles",
}
NUM_CLASSES = 1000


def network(name: str, size: int) -> Network:
    """Return a network with random weights."""
    model = models.create(name, NUM_CLASSES)
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        if path[-1].key != "kernel":  # of BatchNorm and the classifier
            return np.full(shape.shape, path[-1].key in ("scale", "var"), np.float32)
        spread = math.sqrt(2 / math.prod(shape.shape[:-1]))
        return spread * rng.standard_normal(shape.shape, np.float32)

    return Network(model, jax.tree.map_with_path(leaf, shapes), {})


def zooms(size: int) -> int:
    """Return how many levels after the first show a square image pixel for pixel."""
    own = large.LargeAnchorNet
    field = models.MODELS["anchornet"][0].field
    shared = (field.size - field.stride) / own.view
    side = math.isqrt(own.views)  # of the grid of views
    scale = size / (side - (side - 1) * shared) / own.view
    return max(0, math.ceil(math.log(scale) / math.log(own.view / field.size) - 1e-9))


def sequence(size: int, options):
    """Return the function that classifies an image step by step, and its cost."""
    localizer = network("anchornet", 224)
    other = network(options.network, localizer.model.field.size)
    members = {"localizer": localizer, "glance": other, "patch": other}
    inputs = 1 + options.patches
    method = large.LargeAnchorNet(members, inputs=inputs, zooms=zooms(size))
    exits = len(method.steps)
    classifier = engine.Classifier(
        method,
        stopping.fixed(exits, exits),
        image_size=size,
        batch_size=1,
        in_flight=1,
        devices=jax.local_devices()[:1],
    )
    return lambda image: classifier.classify([image]), sum(method.macs())


def whole(size: int, options):
    """Return the function that runs the network on the whole image, and its cost."""
    found = folding.fold(network(options.network, 224), 224)

    @jax.jit
    def run(variables, image):
        pixels = preprocessing.normalise(image[None], found.model)
        return found.model.apply(variables, pixels)[0].argmax(-1)

    macs = multiply_adds.model_macs(models.create(options.network, NUM_CLASSES), size)
    return lambda image: np.asarray(run(found.variables, image)), macs


def tiled(size: int, options):
    """Return the function that localises at full resolution in tiles, and its cost."""
    found = folding.fold(network("anchornet", 224), 224)
    macs = multiply_adds.model_macs(models.create("anchornet", NUM_CLASSES), size)
    return lambda image: tiles.localize(found.model, found.variables, image), macs


def row(way: str, size: int, options) -> dict:
    """Measure one way at one size, in this process."""
    memory.keep()
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    run, macs = dict(zip(WAYS, (sequence, whole, tiled)))[way](size, options)
    times = []
    for _ in range(options.repeats + 1):
        begun = time.perf_counter()
        run(image)
        times.append(1e3 * (time.perf_counter() - begun))
    return {
        "way": way,
        "size": size,
        "milliseconds": statistics.median(times[1:]),  # the first compiles
        "macs": macs,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def measure(options):
    """Yield a row for each size and way, each of a process of its own.

    What one process has compiled, the others load.
    """
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": compiled}
        for size, way in itertools.product(options.sizes, options.ways):
            if way == "whole image" and size > options.largest:
                continue
            own = [f"--row={way}", f"--sizes={size}", f"--network={options.network}"]
            own += [f"--patches={options.patches}", f"--repeats={options.repeats}"]
            command = [sys.executable, __file__, *own]
            how = {"capture_output": True, "text": True, "env": environment}
            done = subprocess.run(command, check=False, **how)
            if done.returncode:
                raise RuntimeError(f"{way} at {size} pixels: {done.stderr[-2000:]}")
            yield json.loads(done.stdout.splitlines()[-1])


def speedups(rows: list[dict]) -> dict[int, float]:
    """Return by size how many times the sequence is as fast as the whole image."""
    took = {(row["way"], row["size"]): row["milliseconds"] for row in rows}
    sizes = sorted({row["size"] for row in rows})
    return {
        size: took["whole image", size] / took["sequence", size]
        for size in sizes
        if {("whole image", size), ("sequence", size)} <= took.keys()
    }


def draw(about: dict):
    """Draw time, multiply-adds and memory against the size, all axes logarithmic."""
    from matplotlib.figure import Figure

    from anchornet_jax.figures import plots

    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    kinds = {"milliseconds": ("ms per image", 1), "macs": ("G multiply-adds", 1e9)}
    kinds["peak_bytes"] = ("GB at most, in all", 1e9)
    looks = ("budgeted", "reference", "RANet")
    for axes, (key, (label, unit)) in zip(figure.subplots(1, 3), kinds.items()):
        for way, look in zip(WAYS, looks):
            rows = [row for row in about["rows"] if row["way"] == way]
            style = {**plots.STYLES[look], "linestyle": "-"}
            name = LABELS[way].format(about["patches"])
            values = [row[key] / unit for row in rows]
            axes.plot([row["size"] for row in rows], values, label=name, **style)
        axes.set(
            xscale="log", yscale="log", xlabel="side of the image, px", ylabel=label
        )
        axes.set_xticks(about["sizes"], [str(size) for size in about["sizes"]])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def main() -> None:
    """Print the table, write the results and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--patches", type=int, default=4)
    parser.add_argument("--largest", type=int, default=2048, help="of whole images, px")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument(
        "--row", choices=WAYS, help="measure this alone, in this process"
    )
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(row(options.row, options.sizes[0], options)))
        return
    print("way, pixels: milliseconds, G multiply-adds, peak GB")
    rows = []
    for found in measure(options):
        rows.append(found)
        print(
            f"{found['way']:12}{found['size']:6}:{found['milliseconds']:10.1f}"
            f"{found['macs'] / 1e9:10.2f}{found['peak_bytes'] / 1e9:8.2f}",
            flush=True,
        )
        write(options, rows)  # what is measured stays if the next row fails
    for size, ratio in speedups(rows).items():
        print(f"{size} pixels: {ratio:.1f} times as fast as the whole image")
    print(f"wrote {options.output}")


def write(options, rows: list[dict]) -> None:
    """Write the results, and the figure where there is matplotlib."""
    about = {
        "device": jax.local_devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "network": options.network,
        "sizes": list(options.sizes),
        "patches": options.patches,
        "repeats": options.repeats,
        "speedup": {str(size): ratio for size, ratio in speedups(rows).items()},
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    with contextlib.suppress(ImportError):  # matplotlib
        figure = draw(about)
        from anchornet_jax.figures import plots

        plots.save(figure, options.output.with_suffix(""))


if __name__ == "__main__":
    main()
