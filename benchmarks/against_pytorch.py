"""JAX against PyTorch on this machine: forward passes and training steps, in turn.

    pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
    python benchmarks/against_pytorch.py
    python benchmarks/against_pytorch.py --networks anchornet --sizes 95 --batch 2  # a try

Needs jax, flax and optax; without PyTorch its half is left out, without torchvision the
three networks of torchvision. PyTorch runs eagerly, in evaluation mode or with SGD, on
channels last, which oneDNN computes on CPU. AnchorNet and EfficientNet-Lite0 are written
here anew, from their papers' tables. In the forward pass our BatchNorms are folded into
the convolutions, as the engine does. Both start from uint8 pixels that are in memory
already, and compute in float32 on as many threads as the process has cores. Weights are
random. A ratio below 1 means that JAX is faster. Prints a table and writes
results/against_pytorch.json beside this file.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import platform

import jax
import jax.numpy as jnp
import numpy as np
import training_step

from anchornet_jax import models
from anchornet_jax.inference import folding
from anchornet_jax.methods import preprocessing
from anchornet_jax.models import Network, anchornet, pixels
from anchornet_jax.runtime import files, memory

RESULTS = pathlib.Path(__file__).parent / "results" / "against_pytorch.json"
INSTALL = (
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
)
CLASSES = 1000
NETWORKS = (
    *("anchornet", "resnet50", "densenet201"),
    *("mobilenet_v3_large", "efficientnet_lite0"),
)
# EfficientNet-Lite0: expansion, kernel, stride, channels, layers.
LITE0 = (
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)),
    *((6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)


def torch_network(name: str):
    """Return PyTorch's network, or None where it is of torchvision, which is missing.

    Raises:
      ImportError: without PyTorch.
    """
    import torch
    from torch import nn

    def conv(before, after, kernel=1, stride=1, groups=1, padding=0, activation=None):
        parts = nn.Conv2d(
            before, after, kernel, stride, padding, groups=groups, bias=False
        )
        return nn.Sequential(
            parts, nn.BatchNorm2d(after), *([activation()] if activation else [])
        )

    class Excite(nn.Module):
        def __init__(self, channels, squeezed):
            super().__init__()
            self.squeeze = nn.Conv2d(channels, squeezed, 1)
            self.excite = nn.Conv2d(squeezed, channels, 1)

        def forward(self, x):
            mean = nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))
            return x * torch.sigmoid(self.excite(mean))

    class Block(nn.Module):
        """Expand, depthwise convolution, project; the residual cut to what is left."""

        def __init__(
            self, before, expanded, after, kernel, stride, *, pad, excite, act
        ):
            super().__init__()
            where = {"kernel": kernel, "stride": stride, "groups": expanded}
            where |= {"padding": kernel // 2 if pad else 0, "activation": act}
            self.layers = nn.Sequential(
                *(
                    [conv(before, expanded, activation=act)]
                    if expanded != before
                    else []
                ),
                conv(expanded, expanded, **where),
                *([Excite(expanded, before // 4)] if excite else []),
                conv(expanded, after),
            )
            self.adds = stride == 1 and before == after

        def forward(self, x):
            y = self.layers(x)
            return y + x[:, :, : y.shape[2], : y.shape[3]] if self.adds else y

    def classifier(channels):
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)
        )

    if name == "anchornet":  # 2022, Table 1
        stem, channels = anchornet.STEM, anchornet.STEM.out
        parts = [conv(3, channels, stem.kernel, stem.stride, activation=nn.SiLU)]
        for row in anchornet.EXTRACTOR:
            expanded = int(row.expansion * channels)
            kind = {"pad": False, "excite": True, "act": nn.SiLU}
            parts.append(
                Block(channels, expanded, row.out, row.kernel, row.stride, **kind)
            )
            channels = row.out
        last = nn.Conv2d(channels, anchornet.FEATURES, 1)
        return nn.Sequential(*parts, last, classifier(anchornet.FEATURES))
    if name == "efficientnet_lite0":
        parts, channels = [conv(3, 32, 3, 2, padding=1, activation=nn.ReLU6)], 32
        for expansion, kernel, stride, after, layers in LITE0:
            for step in (stride, *(layers - 1) * [1]):
                kind = {"pad": True, "excite": False, "act": nn.ReLU6}
                expanded = expansion * channels
                parts.append(Block(channels, expanded, after, kernel, step, **kind))
                channels = after
        return nn.Sequential(
            *parts, conv(channels, 1280, activation=nn.ReLU6), classifier(1280)
        )
    try:
        import torchvision
    except ImportError:
        return None
    return getattr(torchvision.models, name)(num_classes=CLASSES)


def torch_ways(name: str, batch: int, size: int) -> dict:
    """Return {pass: function} of PyTorch, nothing where it or the network is missing."""
    with contextlib.suppress(ImportError):
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        network = torch_network(name)
        if network is None:
            return {}
        last = torch.channels_last
        network = network.to(memory_format=last)
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        images = images.contiguous(memory_format=last)
        labels = torch.zeros(batch, dtype=torch.long)
        mean, std = (
            255 * torch.tensor(values).view(1, 3, 1, 1) for values in pixels.IMAGENET
        )
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)

        def forward():
            network.eval()
            with torch.inference_mode():
                network((images.float() - mean) / std)

        def step():
            network.train()
            optimizer.zero_grad()
            logits = network((images.float() - mean) / std)
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()

        return {"forward": forward, "training step": step}
    return {}


def jax_ways(name: str, batch: int, size: int) -> dict:
    """Return {pass: function} of ours."""
    model = models.create(name, CLASSES)
    variables = jax.jit(model.init)(
        jax.random.key(0), jnp.zeros((1, size, size, 3), jnp.float32)
    )
    found = folding.fold(Network(model, variables, {}), size)
    shape = (batch, size, size, 3)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    @jax.jit
    def run(variables, images):
        return found.model.apply(variables, preprocessing.normalise(images, model))[0]

    return {
        "forward": lambda: run(found.variables, images),
        "training step": training_step.training_step(name, "full", batch, size),
    }


def compare(name: str, size: int, options):
    """Yield a row for each pass: milliseconds of both, and their ratio."""
    ways = {"jax": jax_ways(name, options.batch, size)}
    ways["pytorch"] = torch_ways(name, options.batch, size)
    for what in ("forward", "training step"):
        functions = {who: own[what] for who, own in ways.items() if what in own}
        took = training_step.times_ms(functions, options.repeats)
        ratio = took["jax"] / took["pytorch"] if "pytorch" in took else None
        about = {"network": name, "size": size, "pass": what, "batch": options.batch}
        yield about | {"milliseconds": took, "ratio": ratio}


def versions() -> dict:
    """Return the versions of both and of torchvision, None of what is missing."""
    found = {"jax": jax.__version__, "torch": None, "torchvision": None}
    for name in ("torch", "torchvision"):
        with contextlib.suppress(ImportError):
            found[name] = __import__(name).__version__
    return found


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[95, 224], help="pixels"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    memory.keep()
    found = versions()
    for name in ("torch", "torchvision"):
        if found[name] is None:
            print(f"{name} is missing, and its half left out; to install it: {INSTALL}")
    print("network, pixels, pass: JAX, PyTorch in ms, ratio")
    rows = []
    for name, size in itertools.product(options.networks, options.sizes):
        for row in compare(name, size, options):
            rows.append(row)
            took, ratio = row["milliseconds"], row["ratio"]
            print(
                f"{name:19}{size:4} {row['pass']:14}{took['jax']:9.1f}"
                + ("" if ratio is None else f"{took['pytorch']:9.1f}  x {ratio:.2f}"),
                flush=True,
            )
    about = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": found,
        "repeats": options.repeats,
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
