"""Data parallelism: the only module that names pmap.

The state is never stacked: `in_axes=None` hands it to every device whole, and what a
training step returns must be the same on all of them (gradients and sums are reduced
over `AXIS` inside). Moving to another mechanism is a change of this file alone.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"  # the mapped axis; BatchNorm shares its statistics over it in training


def train_step(function: Callable) -> Callable:
    """Map `function(state, frozen, batch) -> (state, metrics)` over the devices.

    State and metrics must come out equal on all devices. The state's buffers are reused
    for the new one: use it no more.
    """
    return jax.pmap(
        function, AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=0
    )


def predict_step(function: Callable) -> Callable:
    """Map `function(frozen, batch) -> tree of [b, ...]` over the devices."""
    return jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=0)


def replicate(tree):
    """Put a tree of arrays on every local device; the original stays untouched."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(jax.device_get(tree), NamedSharding(mesh, PartitionSpec()))


def local_batch(batch_size: int) -> int:
    """Return this host's share of a global batch.

    Raises:
      ValueError: if the devices do not divide it.
    """
    if batch_size < 1 or batch_size % jax.device_count():
        raise ValueError(
            f"`batch_size` is {batch_size}; it must be a positive multiple of the "
            f"{jax.device_count()} devices"
        )
    return batch_size // jax.process_count()


def shard(batch):
    """Split this host's arrays [B, ...] over its devices: [D, b, ...]."""
    devices = jax.local_device_count()
    return jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)


def gather(tree) -> dict:
    """Fetch a result of `predict_step` and join the devices: NumPy [B, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.device_get(tree))


def image_keys(key: jax.Array, batch: int) -> jax.Array:
    """Derive one key per image from its place in the global batch.

    Inside a mapped step: the keys do not depend on the number of devices.
    """
    places = jax.lax.axis_index(AXIS) * batch + jax.numpy.arange(batch)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
