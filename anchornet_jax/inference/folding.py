"""BatchNorm folded into the convolution before it: the network as inference runs it.

In inference BatchNorm is a scale and a shift per channel. Where it reads what a
convolution wrote, and nothing else reads that, the scale goes into the kernel and a
bias stays. Such pairs are found by watching a trace, not by name, so that this serves
any Flax network. DenseNet normalises before its convolutions: half of its BatchNorms
stay.

    network = folding.fold(networks.load("runs/demo/glance/network"), 95)
    logits, out = network.model.apply(network.variables, images)
"""

import collections
import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name

from anchornet_jax.models import DTYPES, Network, layers

CONVOLUTIONS = (layers.Conv, nn.Conv)


class Folded:
    """A Flax module whose BatchNorms `norms` only add their bias."""

    def __init__(self, model: nn.Module, norms):
        """Take the module and the paths of the BatchNorms that were folded."""
        self._model, self._norms = model, frozenset(norms)

    def __getattr__(self, name):
        """Give what else the module has, such as AnchorNet's `heatmap`."""
        return getattr(self._model, name)

    def apply(self, variables, *args, **kwargs):
        """Run the module on variables of `fold`, as `flax.linen.Module.apply` does."""
        with nn.intercept_methods(self._shift):
            return self._model.apply(variables, *args, **kwargs)

    def _shift(self, call, args, kwargs, context):
        module = context.module
        if module.path not in self._norms:
            return call(*args, **kwargs)
        bias = module.get_variable("params", "bias").astype(args[0].dtype)
        return args[0] + bias.reshape((1,) * (args[0].ndim - 1) + bias.shape)


def fold(network: Network, image_size: int, dtype: str | None = None) -> Network:
    """Return the network as inference runs it, with the same results to rounding.

    Args:
      network: from `networks.load`, or any Flax module and its variables.
      image_size: pixels, for the trace; the result takes other sizes as well.
      dtype: compute in this type, `bfloat16` say; None for the network's own.

    Raises:
      ValueError: for a type that the network does not offer.
    """
    model = network.model
    if dtype is not None:
        if dtype not in DTYPES or not hasattr(model, "dtype"):
            raise ValueError(
                f"`dtype` is {dtype!r} for {type(model).__name__}; choose one of "
                f"{DTYPES}, and for a network with an attribute `dtype`"
            )
        model = model.clone(dtype=dtype)
    flat = traverse_util.flatten_dict(network.variables)
    pairs = _pairs(model, network.variables, image_size)
    for (norm, epsilon), convolution in pairs.items():
        _move(flat, norm, convolution, epsilon)
    if dtype is not None:  # so that no launch has to convert the kernels
        flat = {
            path: x.astype(dtype) if path[-1] == "kernel" and x.ndim == 4 else x
            for path, x in flat.items()
        }
    return network._replace(
        model=Folded(model, (norm for norm, _ in pairs)),
        variables=traverse_util.unflatten_dict(flat),
    )


def fold_method(method, image_size: int, dtype: str | None = None):
    """Return a method with its networks as inference runs them.

    A network that sees no pixels, of a role that `input_sizes` leaves out, stays as it is.

    Args:
      method: from `methods`.
      image_size: side of the images in pixels.
      dtype: as for `fold`.
    """
    sizes = method.input_sizes(image_size)
    networks = {
        role: fold(network, sizes[role], dtype) if role in sizes else network
        for role, network in method.networks.items()
    }
    return dataclasses.replace(method, networks=networks)


def _move(flat, norm, convolution, epsilon) -> None:
    """Move a BatchNorm's scale into a convolution, in variables by path."""
    mean = flat.pop(("batch_stats", *norm, "mean"))
    variance = flat.pop(("batch_stats", *norm, "var"))
    factor = flat.pop(("params", *norm, "scale"), 1.0) / jnp.sqrt(variance + epsilon)
    for leaf in ("kernel", "bias"):  # channels come last
        path = ("params", *convolution, leaf)
        if path in flat:
            shape = (1,) * (flat[path].ndim - 1) + factor.shape
            flat[path] = flat[path] * factor.reshape(shape)
    bias = ("params", *norm, "bias")
    flat[bias] = flat.get(bias, 0.0) - mean * factor


def _pairs(model, variables, image_size) -> dict:
    """Return {(path, epsilon) of a BatchNorm: path of the convolution before it}."""
    pairs, wrote = {}, {}  # id of what a convolution wrote: its path and the value

    def watch(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and isinstance(module, nn.BatchNorm):
            path, _ = wrote.get(id(args[0]), (None, None))
            if path is not None:
                pairs[module.path, module.epsilon] = path
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(module, CONVOLUTIONS):
            result = checkpoint_name(result, "/".join(module.path))
            wrote[id(result)] = module.path, result
        return result

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with nn.intercept_methods(watch):
        trace = jax.make_jaxpr(lambda v, x: model.apply(v, x))(variables, images).jaxpr
    reads = collections.Counter(
        id(var) for eqn in trace.eqns for var in eqn.invars
    ) + collections.Counter(id(var) for var in trace.outvars)
    alone = {
        eqn.params["name"]
        for eqn in trace.eqns
        if eqn.primitive.name == "name" and reads[id(eqn.outvars[0])] == 1
    }
    return {norm: path for norm, path in pairs.items() if "/".join(path) in alone}
