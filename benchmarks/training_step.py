"""Time of training steps beside their parts, and of what was replaced.

    python benchmarks/training_step.py

Needs jax, flax and optax alone. AnchorNet sees whole images, the ResNets what the glance
and the patches are, 95 pixels; each is also run with XLA's own gradient of dense kernels.
Prints a table and writes results/training_step.json
beside this file. Alternatives are run in turn within one process, so read the ratios;
the times depend on the machine, which the JSON file names.
"""

import argparse
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.methods import preprocessing, views
from anchornet_jax.models import layers
from anchornet_jax.models.anchornet import EXTRACTOR, AnchorNet
from anchornet_jax.runtime import files, parallel
from anchornet_jax.training import objectives, train_step

RESULTS = pathlib.Path(__file__).parent / "results" / "training_step.json"


def times_ms(functions: dict, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each function, run in turn after a warm-up."""
    for function in functions.values():
        jax.block_until_ready(function())
    measured = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            begun = time.perf_counter()
            jax.block_until_ready(function())
            measured[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in measured.items()}


NETWORKS = {"anchornet": "full", "resnet50": "resized", "resnet10": "resized"}


def networks(batch: int, size: int) -> dict:
    """Return the training steps, with our gradient of dense kernels and with XLA's."""
    functions, ours = {}, layers.MANY_IMAGES
    for name, view in NETWORKS.items():
        for form, many in (("ours", ours), ("native", batch + 1)):
            layers.MANY_IMAGES = many  # read when the step is traced, here
            run = training_step(name, view, batch, size)
            jax.block_until_ready(run())
            functions[f"{name}, training step, {form}"] = run
    layers.MANY_IMAGES = ours
    return functions


def training_step(name: str, view: str, batch: int, size: int):
    """Return the function that takes one training step on random images."""
    model = models.create(name, 1000, axis_name=parallel.AXIS)
    localizer = AnchorNet(1000)
    optimizer = optax.sgd(0.1, 0.9)
    seen = views.make(view, localizer, network=model)
    side = size if view == "full" else localizer.field.size
    objective = objectives.classification(model, seen, side)
    state = train_step.create_state(objective, optimizer, 0)
    step = jax.jit(
        jax.vmap(
            train_step.make_train_step(objective, optimizer, 0),
            in_axes=(None, None, 0),
            out_axes=None,
            axis_name=parallel.AXIS,
        )
    )
    shape = (1, batch, size, size, 3)
    images = jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8)
    data = {"image": images, "label": jnp.zeros((1, batch), jnp.int32)}
    return lambda: step(state, None, data)


def inference(batch: int, size: int) -> dict:
    """Return the forward pass of AnchorNet."""
    model = AnchorNet(1000)
    images = jnp.zeros((batch, size, size, 3), jnp.uint8)
    variables = jax.jit(model.init)(
        jax.random.key(0), preprocessing.normalise(images[:1])
    )
    forward = jax.jit(lambda v, x: model.apply(v, preprocessing.normalise(x))[0])
    return {"anchornet, inference": lambda: forward(variables, images)}


def dense(batch: int, size: int) -> dict:
    """Return the gradients of dense kernels on large maps, ours and XLA's."""
    functions = {}
    for side, channels, features, stride in (
        (size, 3, 16, 2),  # AnchorNet's first
        (size // 4, 64, 64, 1),  # a ResNet on the full image
        (24, 64, 64, 1),  # and on a patch
        (24, 128, 32, 1),  # DenseNet
    ):
        x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
        kernel = jnp.ones((3, 3, channels, features))

        def native(x, kernel, stride):
            return layers.native_convolution(
                x, kernel, stride=stride, padding=1, groups=1
            )

        def ours(x, kernel, stride):
            return layers.dense(x, kernel, stride, 1)

        for name, form in (("ours", ours), ("native", native)):
            gradient = jax.jit(
                jax.grad(lambda k, x, f=form, s=stride: (f(x, k, s) ** 2).sum())
            )
            label = (
                f"kernel of {side}x{side}x{channels} to {features} /{stride}, {name}"
            )
            functions[label] = lambda g=gradient, x=x, k=kernel: g(k, x)
    return functions


def depthwise(batch: int, size: int) -> dict:
    """Return each depthwise layer's gradient, as it is and as XLA's convolution."""
    functions = {}
    field = models.anchornet.STEM
    side, channels = (size - field.kernel) // field.stride + 1, field.out
    for i, row in enumerate(EXTRACTOR):
        expanded = int(row.expansion * channels)
        x = jax.random.normal(jax.random.key(i), (batch, side, side, expanded))
        kernel = jnp.ones((row.kernel, row.kernel, 1, expanded))

        def native(x, kernel, stride, padding):
            return layers.native_convolution(
                x, kernel, stride=stride, padding=padding, groups=x.shape[-1]
            )

        for name, form in (("ours", layers.depthwise), ("native", native)):
            gradient = jax.jit(
                jax.grad(
                    lambda x, k, f=form, s=row.stride: (f(x, k, s, 0) ** 2).sum(),
                    argnums=(0, 1),
                )
            )
            label = f"depthwise {side}x{side}x{expanded} /{row.stride}, {name}"
            functions[label] = lambda g=gradient, x=x, k=kernel: g(x, k)
        side, channels = (side - row.kernel) // row.stride + 1, row.out
    return functions


def others(batch: int, size: int) -> dict:
    """Return the gradients of swish and of max pooling, ours and the library's."""
    side = size // 2
    x = jax.random.normal(jax.random.key(0), (batch, side, side, 16))

    def gradient(function):
        compiled = jax.jit(jax.grad(lambda x: (function(x) ** 2).sum()))
        return lambda: compiled(x)

    def pool(x):
        return nn.max_pool(nn.relu(x), (3, 3), (2, 2), [(1, 1), (1, 1)])

    return {
        f"swish {side}x{side}x16, ours": gradient(layers.swish),
        f"swish {side}x{side}x16, native": gradient(nn.swish),
        f"max pool {side}x{side}x16, ours": gradient(
            lambda x: layers.max_pool(nn.relu(x), 3, 2, 1)
        ),
        f"max pool {side}x{side}x16, native": gradient(pool),
    }


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    rows = {}
    for part in (networks, inference, dense, depthwise, others):
        found = times_ms(part(options.batch, options.size), options.repeats)
        for name, value in found.items():
            print(f"{name:45} {value:9.1f} ms", flush=True)
        rows |= found
    about = {
        "device": str(jax.devices()[0].device_kind),
        "processor": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        **{name: value for name, value in vars(options).items() if name != "output"},
        "milliseconds": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
