"""Networks alone, forward: images per second, and how far AnchorNet is from its floor.

    python benchmarks/networks.py
    python benchmarks/networks.py --networks anchornet --batches 2 --seconds 0.2  # a try

Needs jax and flax alone. BatchNorm is folded, as in the engine; the images, random uint8
pixels, are on the device. AnchorNet sees whole images, the others the glance's size.

No program can run faster than the device moves what it must, and multiplies what it must.
By arithmetic: twice the multiply-adds over the device's peak. By bytes: the maps, written
once and read once by whoever needs them, where nothing stands between two convolutions
but what can be done in passing, and the pixels. Both need numbers of the device, which
are of data sheets (`PEAKS` of throughput.py and `BYTES` here); where they are unknown
there is no floor. Prints a table and writes results/networks.json beside this file.
"""

import argparse
import itertools
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import throughput
from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.inference import folding
from anchornet_jax.methods import preprocessing
from anchornet_jax.models import Network, multiply_adds
from anchornet_jax.runtime import files, memory

RESULTS = pathlib.Path(__file__).parent / "results" / "networks.json"
CLASSES = 1000
# TB/s between a device and its memory: data sheets of NVIDIA, pages of Google Cloud.
BYTES = {
    "NVIDIA A100-SXM4-40GB": 1.555,
    "NVIDIA A100-SXM4-80GB": 2.039,
    "NVIDIA A100-PCIE-40GB": 1.555,
    "NVIDIA A100 80GB PCIe": 1.935,
    "NVIDIA H100 80GB HBM3": 3.35,
    "NVIDIA H100 PCIe": 2.0,
    "NVIDIA H200": 4.8,
    "NVIDIA L4": 0.3,
    "NVIDIA L40S": 0.864,
    "TPU v4": 1.228,
    "TPU v5 lite": 0.819,
    "TPU v5": 2.765,
    "TPU v6 lite": 1.64,
}


def values(model, size: int) -> int:
    """Count the values of the maps that the convolutions of a network write."""
    found = []

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        called = context.method_name == "__call__"
        if called and isinstance(context.module, folding.CONVOLUTIONS):
            found.append(result.size)
        return result

    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    return sum(found)


def floors(kind: str, dtype: str, macs: int, count: int, size: int) -> dict:
    """Return the least microseconds per image by arithmetic and by bytes, or None."""
    peak = throughput.peak_macs(kind, dtype)
    moved = 2 * count * jnp.dtype(dtype).itemsize + 3 * size**2
    speed = BYTES.get(kind)
    return {
        "floor_arithmetic_us": 1e6 * macs / peak if peak else None,
        "floor_bytes_us": moved / speed / 1e6 if speed else None,
    }


def measure(name: str, dtype: str, batch: int, options) -> dict:
    """Return the row of one network, type and batch."""
    side = models.create("anchornet", CLASSES).field.size
    size = options.size if name == "anchornet" else side
    model = models.create(name, CLASSES, dtype=dtype)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    found = folding.fold(Network(model, variables, {}), size, dtype)
    shape = (batch, size, size, 3)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    @jax.jit
    def run(variables, images):
        return found.model.apply(variables, preprocessing.normalise(images, model))[0]

    def once():
        return run(found.variables, images)

    jax.block_until_ready(once())
    count, begun, before = 0, time.perf_counter(), once()
    while time.perf_counter() - begun < options.seconds:
        now = once()
        jax.block_until_ready(before)  # one waits while one runs
        before, count = now, count + 1
    jax.block_until_ready(before)
    rate = (count + 1) * batch / (time.perf_counter() - begun)
    macs = multiply_adds.model_macs(models.create(name, CLASSES), size)
    kind = jax.local_devices()[0].device_kind
    return {
        "network": name,
        "dtype": dtype,
        "batch": batch,
        "size": size,
        "images_per_second": rate,
        "us_per_image": 1e6 / rate,
        "macs": macs,
        **floors(kind, dtype, macs, values(model, size), size),
    }


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = ["anchornet", "resnet50", "densenet201"]
    names += ["mobilenet_v3_large", "efficientnet_lite0", "resnet10"]
    add("--networks", nargs="+", default=names, help="names")
    add("--dtypes", nargs="+", choices=models.DTYPES, default=models.DTYPES)
    add("--batches", type=int, nargs="+", default=[16, 256], help="images of a launch")
    add("--seconds", type=float, default=2, help="of each row")
    add("--size", type=int, default=224, help="pixels, for AnchorNet")
    add("--output", type=pathlib.Path, default=RESULTS, help="results are written here")
    options = parser.parse_args()
    memory.keep()
    rows = []
    print(
        "network, dtype, batch: images/s, us per image, floors by arithmetic and bytes"
    )
    for name, dtype, batch in itertools.product(
        options.networks, options.dtypes, options.batches
    ):
        row = measure(name, dtype, batch, options)
        rows.append(row)
        least = (row["floor_arithmetic_us"], row["floor_bytes_us"])
        print(
            f"{name:19}{dtype:9}{batch:5}:{row['images_per_second']:10.1f}"
            f"{row['us_per_image']:10.2f}"
            + "".join(f"{us:9.3f}" if us else "        –" for us in least),
            flush=True,
        )
    about = {
        "device": jax.local_devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "seconds": options.seconds,
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
