"""Training steps per second of AnchorNet and of the Stage II networks.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --models resnet10 --batch 4 --seconds 1  # a try

Needs jax, flax and optax alone. AnchorNet is trained on whole images (Stage I), every
other network as the glance, on resized images, and on the patches that a frozen
AnchorNet selects (2022, Sec. 3.5). The images, random bytes, are on the devices already:
this is the speed that the data must keep up with. A training step counts as three
forward passes, as is usual, and the frozen AnchorNet as one. Prints a table and writes
results/throughput.json beside this file.
"""

import argparse
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from anchornet_jax import models
from anchornet_jax.methods import views
from anchornet_jax.models import multiply_adds
from anchornet_jax.runtime import files, parallel
from anchornet_jax.training import objectives, train_step

RESULTS = pathlib.Path(__file__).parent / "results" / "throughput.json"
VIEWS = ("full", "resized", "patches")  # the trainings: Stage I, glance, patches
NUM_CLASSES = 1000
K = 4  # patches per image

# device_kind: dense TFLOP/s (two per multiply-add) in float32 and bfloat16. XLA computes
# float32 in TF32 on these GPUs and in bfloat16 on TPUs unless told otherwise.
PEAKS = {
    # NVIDIA's data sheets of A100, H100, H200, L4 and L40S, without sparsity.
    "NVIDIA A100-SXM4-40GB": (156, 312),
    "NVIDIA A100-SXM4-80GB": (156, 312),
    "NVIDIA A100-PCIE-40GB": (156, 312),
    "NVIDIA A100 80GB PCIe": (156, 312),
    "NVIDIA H100 80GB HBM3": (494.7, 989.4),
    "NVIDIA H100 PCIe": (378, 756),
    "NVIDIA H200": (494.7, 989.4),
    "NVIDIA L4": (60, 121),
    "NVIDIA L40S": (183, 362),
    # Google Cloud's pages of TPU v4, v5e, v5p and v6e, per chip.
    "TPU v4": (275, 275),
    "TPU v5 lite": (197, 197),
    "TPU v5": (459, 459),
    "TPU v6 lite": (918, 918),
}


def peak_macs(kind: str, dtype: str) -> float | None:
    """Return a device's multiply-adds per second at best, None if unknown."""
    return PEAKS[kind][models.DTYPES.index(dtype)] * 1e12 / 2 if kind in PEAKS else None


def stages(names: list[str]) -> list[tuple[str, str]]:
    """Return (network, view) of every training to be measured."""
    return [
        (name, view)
        for name in names
        for view in (("full",) if name == "anchornet" else ("resized", "patches"))
    ]


def step_macs(name: str, view: str, size: int) -> int:
    """Count the multiply-adds of training on one image."""
    localizer = models.create("anchornet", NUM_CLASSES)
    network = models.create(name, NUM_CLASSES)
    if view == "full":
        return 3 * multiply_adds.model_macs(network, size)
    once = 3 * multiply_adds.model_macs(network, localizer.field.size)
    if view == "resized":
        return once
    return K * once + multiply_adds.model_macs(localizer, size)


def steps_per_second(name, view, dtype, devices, options) -> float:
    """Measure one training on some devices for `options.seconds`."""
    localizer = models.create("anchornet", NUM_CLASSES)
    model = models.create(name, NUM_CLASSES, dtype=dtype, axis_name=parallel.AXIS)
    optimizer = optax.sgd(0.1, 0.9)
    size = options.size if view == "full" else localizer.field.size
    seen = views.make(view, localizer, network=model, k=K)
    objective = objectives.classification(model, seen, size)
    state = train_step.create_state(objective, optimizer, 0)
    frozen = None
    if view == "patches":
        frozen = jax.jit(localizer.init)(
            jax.random.key(0), jnp.zeros((1, options.size, options.size, 3))
        )
    step = parallel.train_step(
        train_step.make_train_step(objective, optimizer, 0), devices
    )
    state, frozen = parallel.replicate((state, frozen), devices)
    rng = np.random.default_rng(0)
    shape = (len(devices), options.batch)
    images = rng.integers(0, 256, (*shape, options.size, options.size, 3), np.uint8)
    labels = rng.integers(0, NUM_CLASSES, shape).astype(np.int32)
    batch = parallel.put({"image": images, "label": labels}, devices)
    for _ in range(2):  # compile, and once more
        state, sums = step(state, frozen, batch)
        jax.block_until_ready(sums)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < options.seconds:
        before = sums
        state, sums = step(state, frozen, batch)
        jax.block_until_ready(before)  # one step waits while one runs
        count += 1
    jax.block_until_ready(sums)
    return count / (time.perf_counter() - begun)


def measure(options):
    """Yield a row of results for each training, type and number of devices."""
    kind = jax.local_devices()[0].device_kind
    counts = sorted({2**i for i in range(10)} | {jax.local_device_count()})
    for name, view in stages(options.models):
        if view not in options.views:
            continue
        macs = step_macs(name, view, options.size)
        for dtype in options.dtypes:
            for n in (n for n in counts if n <= jax.local_device_count()):
                devices = jax.local_devices()[:n]
                rate = steps_per_second(name, view, dtype, devices, options)
                images = rate * n * options.batch
                peak = peak_macs(kind, dtype)
                yield {
                    "network": name,
                    "view": view,
                    "dtype": dtype,
                    "devices": n,
                    "steps_per_second": rate,
                    "images_per_second": images,
                    "macs_per_second": images * macs,
                    "share_of_peak": images * macs / (n * peak) if peak else None,
                }


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["anchornet", "resnet50", "densenet201"]
    )
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=VIEWS)
    dtypes = {"choices": models.DTYPES, "default": models.DTYPES}
    parser.add_argument("--dtypes", nargs="+", **dtypes)
    parser.add_argument("--batch", type=int, default=64, help="images per device")
    parser.add_argument("--seconds", type=float, default=10, help="per row")
    parser.add_argument("--size", type=int, default=224, help="pixels of an image")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    print(
        "network, view, dtype, devices: steps/s, images/s, G multiply-adds/s, of peak"
    )
    rows = []
    for row in measure(options):
        rows.append(row)
        share = row["share_of_peak"]
        print(
            f"{row['network']:12} {row['view']:8} {row['dtype']:9}{row['devices']:3}:"
            f"{row['steps_per_second']:9.2f}{row['images_per_second']:10.1f}"
            f"{row['macs_per_second'] / 1e9:11.1f}"
            + (f"{100 * share:7.1f} %" if share else ""),
            flush=True,
        )
    about = {
        "device": jax.local_devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        **{name: value for name, value in vars(options).items() if name != "output"},
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
