"""Weights trained with PyTorch, for the networks of `models`.

One rule fits all, since modules here carry their names in the published state dicts, with
numbers joined by `_`: `layer1.0.downsample.1.running_var` becomes
`batch_stats/layer1_0/downsample_1/var`. PyTorch keeps kernels as [out, in, h, w] or
[out, in]; Flax as [h, w, in, out] or [in, out].

    model = models.create("resnet50", num_classes=1000)
    variables = torch_import.import_weights("resnet50-0676ba61.pth", model)
"""

import os
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from anchornet_jax.runtime import checkpoint, torch_files

# Where training programs put the weights, beside an epoch or an optimizer's state.
WRAPPERS = ("net", "model_state_dict", "state_dict")
# What state dicts hold and nobody needs: a count of steps that BatchNorm reads only
# without momentum, and the expansion of AnchorNet's first block, which expands nothing.
UNUSED = re.compile(r".*\.num_batches_tracked|bneck\.0\.(conv1|bn1)\..*")
PARALLEL = "module."  # the prefix that data parallelism leaves
STATISTICS = {"running_mean": "mean", "running_var": "var"}


def import_weights(
    path: str | os.PathLike,
    model: nn.Module,
    *,
    fresh_classifier: bool = False,
    seed: int = 0,
) -> dict:
    """Read a file of PyTorch weights as the variables of a network.

    Args:
      path: see `read`.
      model: from `models.create`.
      fresh_classifier: see `convert`; the fresh one is initialised.
      seed: of a fresh classifier.

    Raises:
      ValueError: if the file cannot be read, or is of another network.
      ImportError: if the library that reads such files is missing.
    """
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    key = jax.random.key(seed)
    template = jax.eval_shape(model.init, key, images)
    variables = convert(read(path), template, fresh_classifier=fresh_classifier)
    flat = traverse_util.flatten_dict(variables, sep="/")
    fresh = [at for at, x in flat.items() if isinstance(x, jax.ShapeDtypeStruct)]

    @jax.jit  # XLA drops the rest of the network, so this compiles at once
    def initial(key):
        initialised = model.init(key, np.zeros(images.shape, images.dtype))
        initialised = traverse_util.flatten_dict(initialised, sep="/")
        return {at: initialised[at] for at in fresh}

    if fresh:
        flat |= jax.device_get(initial(key))
    return traverse_util.unflatten_dict(flat, sep="/")


def convert(
    state: Mapping[str, np.ndarray], template: dict, *, fresh_classifier: bool = False
) -> dict:
    """Turn a state dict into the variables of a network, float32.

    Args:
      state: arrays in PyTorch's layout, by name.
      template: the network's variables, or their shapes from `jax.eval_shape`.
      fresh_classifier: if the class counts differ, do not load the file's classifier;
        keep the freshly initialised one. The classifier is any linear layer that differs
        from the file's in its number of outputs alone.

    Raises:
      ValueError: if names or shapes differ, the message lists both sides; or for values
        that are not finite.
    """
    wanted = traverse_util.flatten_dict(template, sep="/")
    found = {}
    for name, array in state.items():
        at, array = _translate(name, array)
        if at in wanted or not UNUSED.fullmatch(name):
            found[at] = array
    classifier = _classifier(found, wanted)
    if fresh_classifier:
        found |= {at: wanted[at] for at in classifier}
    try:
        checkpoint.match(found, template)
    except ValueError as error:
        hint = "\nAnother number of classes needs `fresh_classifier`."
        hint = hint if classifier and not fresh_classifier else ""
        raise ValueError(f"{error}{hint}") from None
    checkpoint.check_values(
        {at: x for at, x in found.items() if isinstance(x, np.ndarray)}
    )
    return traverse_util.unflatten_dict(found, sep="/")


def _translate(name: str, array) -> tuple[str, np.ndarray]:
    """Return where an entry of a state dict belongs, and its array in Flax's layout."""
    # The published DenseNets are older than their modules' names: norm.1 is norm1 now.
    name = re.sub(r"(?<=denselayer)(\d+\.\w+)\.(?=[12]\.)", r"\1", name)
    *path, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    array = np.asarray(array, np.float32)
    if leaf in STATISTICS:
        return "/".join(("batch_stats", *path, STATISTICS[leaf])), array
    if leaf == "weight":
        leaf = "kernel" if array.ndim > 1 else "scale"
    if leaf == "kernel":
        array = np.moveaxis(array, (0, 1), (-1, -2))
    return "/".join(("params", *path, leaf)), array


def _classifier(found: dict, wanted: dict) -> set[str]:
    """Return the leaves of linear layers that differ in their number of outputs alone."""
    modules = {
        at.removesuffix("kernel")
        for at in found.keys() & wanted.keys()
        if at.endswith("/kernel")
        and found[at].ndim == len(wanted[at].shape) == 2
        and found[at].shape[0] == wanted[at].shape[0]
        and found[at].shape[1] != wanted[at].shape[1]
    }
    return {at for at in wanted if at.rpartition("/")[0] + "/" in modules}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a state dict: arrays in PyTorch's layout, by name.

    Args:
      path: a `.safetensors` file, or one that `torch.save` wrote of a state dict or of a
        dict that holds one under a key of `WRAPPERS`. The prefix `module.`, which data
        parallelism leaves, is dropped.

    Raises:
      ValueError: if there is no such file, or it is damaged or holds something else.
      ImportError: if safetensors is needed and missing.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"`path` is {path!r}; there is no such file")
    load = _load_safetensors if path.endswith(".safetensors") else _load_torch
    return {name.removeprefix(PARALLEL): x for name, x in load(path).items()}


def read_parts(path: str | os.PathLike, keys: Iterable[str]) -> dict[str, dict]:
    """Read those of several state dicts that a file holds, {key: as `read`}.

    Args:
      path: of a file that `torch.save` wrote of a dict; what else is in it does not
        matter.
      keys: that may hold a state dict; one that is not there or is None is left out.

    Raises:
      ValueError: if there is no such file, or it is damaged or holds something else.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"`path` is {path!r}; there is no such file")
    file = torch_files.read(path)
    held = file.content if isinstance(file.content, Mapping) else {}
    parts = {key: held.get(key) for key in keys}
    return {
        key: {
            name.removeprefix(PARALLEL): x
            for name, x in _arrays(file, state, f"{key} of {path}").items()
        }
        for key, state in parts.items()
        if state is not None
    }


def _load_safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        import safetensors.numpy
    except ImportError:
        message = f"{path} is read with safetensors: `pip install safetensors`"
        raise ImportError(message) from None
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _load_torch(path: str) -> dict[str, np.ndarray]:
    file = torch_files.read(path)
    state = file.content
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    return _arrays(file, state, path, f", nor holds one in {WRAPPERS}")


def _arrays(file, state, what: str, more: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of a state dict of a file, float32."""
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(x, torch_files.Tensor)
        for name, x in state.items()
    ):
        has = f"keys {list(state)}" if isinstance(state, Mapping) else type(state)
        raise ValueError(f"{what} is no state dict{more}: {has}")
    with np.errstate(over="ignore"):  # infinity is refused where values are checked
        return {
            name: array.astype(np.float32, copy=False)
            for name, array in file.arrays(state).items()
        }
