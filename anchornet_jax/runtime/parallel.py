"""Data parallelism over devices and hosts: the only module that names pmap.

The state is never stacked: `in_axes=None` hands it to every device whole, and what a
training step returns must be the same on all of them (gradients and sums are reduced
over `AXIS` inside). Moving to another mechanism is a change of this file alone.

Every host runs the same program on its own rows and process 0 alone writes files, which
all hosts must see: a disk they share.
"""

import contextlib
import os
from collections.abc import Callable

import jax
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"  # the mapped axis; BatchNorm shares its statistics over it in training
AUTO = "auto"


def connect(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the hosts of a run; nothing where there is one. Before anything else of JAX.

    Args:
      coordinator: `host:port` of process 0, or `auto`: JAX asks the environment (TPU,
        Slurm, Open MPI, JAX_COORDINATOR_ADDRESS). Where empty, it does so if that
        shows several processes; a TPU that hides them needs `auto`.
      num_processes: of the run, given with an address only.
      process_id: of this one, from 0.

    Raises:
      ValueError: if something is missing or out of range.
    """
    own = (num_processes, process_id)
    if coordinator in ("", AUTO):
        if own != (None, None):
            raise ValueError(
                f"`coordinator` is {coordinator!r}; `num_processes` and `process_id` "
                "need the `host:port` of process 0"
            )
        if coordinator or _several(os.environ):
            jax.distributed.initialize()
        return
    if None in own or not 0 <= process_id < num_processes or ":" not in coordinator:
        raise ValueError(
            f"`coordinator` is {coordinator!r}, `num_processes` {num_processes} and "
            f"`process_id` {process_id}; needed are host:port, the number of "
            "processes, and a number from 0 up to it"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)


def _several(environment) -> bool:
    """Say whether the environment shows that this process is one of several."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return (
        "JAX_COORDINATOR_ADDRESS" in environment
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or any(int(environment.get(name, 1)) > 1 for name in counts)
    )


def train_step(function: Callable, devices=None) -> Callable:
    """Map `function(state, frozen, batch) -> (state, metrics)` over all devices.

    State and metrics must come out equal on all devices. The state's buffers are reused
    for the new one: use it no more. `devices` are some of this host's, to measure them.
    """
    return jax.pmap(
        function,
        AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )


def predict_step(function: Callable) -> Callable:
    """Map `function(frozen, batch) -> tree of [b, ...]` over the devices."""
    return jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=0)


def replicate(tree, devices=None):
    """Put a tree of arrays on every local device; the original stays untouched."""
    return _put(jax.device_get(tree), devices, PartitionSpec())


def put(batch, devices=None):
    """Put arrays [D, b, ...] on the local devices, before a step asks for them."""
    return _put(batch, devices, PartitionSpec(AXIS))


def _put(tree, devices, spec):
    mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, spec))


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


def exchange(value) -> list:
    """Return every host's value, by process; all hosts call it in the same order.

    Args:
      value: nested dicts with arrays, strings, numbers, None; the hosts' arrays may
        have different shapes.
    """
    if jax.process_count() == 1:
        return [value]
    packed = serialization.msgpack_serialize({"value": value})
    sizes = multihost_utils.process_allgather(np.int32(len(packed)))
    rows = multihost_utils.process_allgather(
        np.frombuffer(packed.ljust(max(sizes), b"\0"), np.uint8)
    )
    return [
        serialization.msgpack_restore(row[:size].tobytes())["value"]
        for row, size in zip(rows, sizes)
    ]


def from_first(function: Callable):
    """Call `function` on process 0 alone; all hosts get its value, or its ValueError.

    The value may be what `exchange` takes; the other hosts send nothing.
    """
    if jax.process_count() == 1:
        return function()
    packed = b""
    if jax.process_index() == 0:
        try:
            found = {"value": function(), "error": None}
        except ValueError as problem:
            found = {"value": None, "error": str(problem)}
        packed = serialization.msgpack_serialize(found)
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(packed))))
    row = np.frombuffer(packed.ljust(size, b"\0"), np.uint8)
    row = multihost_utils.broadcast_one_to_all(row)
    found = serialization.msgpack_restore(row.tobytes())
    if found["error"] is not None:
        raise ValueError(found["error"])
    return found["value"]


def together(function: Callable):
    """Call `function` on every host; if it raises ValueError on one, all of them do."""
    if jax.process_count() == 1:
        return function()
    value, problem = None, None
    try:
        value = function()
    except ValueError as error:
        problem = str(error)
    for text in exchange(problem):
        if text is not None:
            raise ValueError(text)
    return value


@contextlib.contextmanager
def first_alone():
    """Run the block on process 0 before the others: they find what it has written."""
    if jax.process_index():
        exchange(None)
    try:
        yield
    finally:
        if jax.process_index() == 0:
            exchange(None)
