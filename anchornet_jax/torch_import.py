"""Weights trained with PyTorch, for the networks of `models`.

One rule fits all, since the modules here carry the names that they have in the published
state dicts, with numbers joined by `_`: `layer1.0.downsample.1.running_var` is found at
`batch_stats/layer1_0/downsample_1/var`. PyTorch stores the kernels of convolutions as
[out, in, h, w] and of linear layers as [out, in]; Flax as [h, w, in, out], [in, out].

    model = models.create("resnet50", num_classes=1000)
    variables = torch_import.import_weights("resnet50-0676ba61.pth", model)
"""

import os
import pickle
import re

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from anchornet_jax import checkpoint

# Keys under which training programs put the weights beside an epoch or an optimizer.
WRAPPERS = ("net", "model_state_dict", "state_dict")
# What state dicts hold and no network here needs: a counter that only a momentum of None
# would use, and the authors' AnchorNet's expansion of a block that expands nothing.
UNUSED = re.compile(r".*\.num_batches_tracked|bneck\.0\.(conv1|bn1)\..*")
STATISTICS = {"running_mean": "mean", "running_var": "var"}


def import_weights(
    path: str | os.PathLike,
    model: nn.Module,
    *,
    fresh_classifier: bool = False,
    seed: int = 0,
) -> dict:
    """Read a file of PyTorch weights as the variables of `model`.

    Args:
      path: see `read`.
      model: from `models.create`.
      fresh_classifier: initialise the classifier, from `seed`, if only the number of
        its classes differs from the file's.
      seed: of the fresh classifier.

    Raises:
      ValueError: if the file cannot be read or is of another network.
      ImportError: if the library that reads such files is missing.
    """
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    template = jax.eval_shape(model.init, jax.random.key(seed), images)
    variables = convert(read(path), template, fresh_classifier=fresh_classifier)
    missing = [
        path
        for path, leaf in traverse_util.flatten_dict(variables).items()
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]

    @jax.jit  # compiles what makes these few leaves, not the network
    def initial(key):
        fresh = traverse_util.flatten_dict(model.init(key, np.zeros(images.shape)))
        return {path: fresh[path] for path in missing}

    if missing:
        fresh = jax.device_get(initial(jax.random.key(seed)))
        flat = traverse_util.flatten_dict(variables) | fresh
        variables = traverse_util.unflatten_dict(flat)
    return variables


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a state dict: its names and its arrays, in PyTorch's layout.

    Args:
      path: a `.safetensors` file, or anything that `torch.save` wrote: a state dict, or
        a dict that holds one under a key of `WRAPPERS`. A prefix `module.`, left by
        PyTorch's data parallelism, is dropped.

    Raises:
      ValueError: if the file is damaged, or holds something else.
      ImportError: if safetensors or torch is needed and missing.
    """
    path = os.fspath(path)
    load = _load_safetensors if path.endswith(".safetensors") else _load_torch
    state = load(path)
    return {name.removeprefix("module."): array for name, array in state.items()}


def convert(
    state: dict[str, np.ndarray], template: dict, *, fresh_classifier: bool = False
) -> dict:
    """Turn a state dict into the variables of a network.

    Args:
      state: names and arrays in PyTorch's layout.
      template: the network's variables or, by `jax.eval_shape`, their shapes.
      fresh_classifier: take the classifier from `template` if it has other numbers of
        classes. The classifier is what differs: a linear layer, alike but for its
        number of outputs.

    Returns:
      NumPy arrays in the structure and with the dtypes of `template`.

    Raises:
      ValueError: if the names or shapes differ; the message lists both sides.
    """
    wanted = traverse_util.flatten_dict(template)
    found = {}
    for name, array in state.items():
        target, array = _translate(name, array)
        if target in wanted or not UNUSED.fullmatch(name):
            found[target] = array
    classifier = _other_classes(found, wanted)
    if fresh_classifier:
        found |= {target: wanted[target] for target in classifier}
    try:
        checkpoint.match(traverse_util.unflatten_dict(found), template)
    except ValueError as error:
        hint = "" if fresh_classifier or not classifier else _hint(classifier)
        raise ValueError(f"{error}{hint}") from None
    kept = set() if not fresh_classifier else classifier
    return traverse_util.unflatten_dict(
        {
            target: leaf if target in kept else found[target].astype(leaf.dtype)
            for target, leaf in wanted.items()
        }
    )
