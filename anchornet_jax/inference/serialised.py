"""The steps of the sequential classifier as programs that need no code of the models.

2022, Algorithm 1, traced once by jax.export for all platforms and any batch size. The
variables are an argument: stored once, and a step is some tens of kilobytes.

    traced = steps.serialise(method, image_size=224)  # name: bytes
    run = steps.deserialise(traced, method.variables(), {})
    logits = run.glance(images)
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export as jax_export

from anchornet_jax.methods import anchornet

PLATFORMS = ("cpu", "cuda", "tpu")
STEPS = {  # step: the network whose variables are its first argument
    "glance": "glance",
    "localize": "anchornet",
    "patch": "patches",
    "decide": None,
}


class Steps(NamedTuple):
    """The steps as they were traced; images are uint8 [B, H, W, 3].

    Attributes:
      glance: images to logits [B, N].
      localize: images to corners [B, K, 2] int32, valid [B, K] bool, heatmap [B, G, G]
        and branch [B] int32.
      patch: images, corners [B, 2], one patch each, and branch to logits [B, N].
      decide: logits [B, T, N] of each input and valid [B, T] to confidence [B, T] and
        class [B, T] int32, after 1 … T inputs; any T.
      metadata: all that metadata.json says of the export.
    """

    glance: Callable
    localize: Callable
    patch: Callable
    decide: Callable
    metadata: dict


def serialise(method: anchornet.Sequence, image_size: int) -> dict[str, bytes]:
    """Trace the steps for all platforms, with free B and T; return them by name.

    Args:
      method: the networks; their weights do not become part of the steps.
      image_size: side of the square images in pixels.
    """
    b, t = jax_export.symbolic_shape("b, t")
    shape = jax.ShapeDtypeStruct
    images = shape((b, image_size, image_size, 3), jnp.uint8)
    variables = jax.tree.map(lambda x: shape(x.shape, x.dtype), method.variables())
    classes = len(method.classes)

    def glance(own, images):
        return anchornet.glance_logits(method, {"glance": own}, images)

    def localize(own, images):
        found = anchornet.localize(method, {"anchornet": own}, images)
        return found.corners, found.valid, found.heatmap, found.branch

    def patch(own, images, corners, branch):
        logits = anchornet.patch_logits(
            method, {"patches": own}, images, corners[:, None], branch
        )
        return logits[:, 0]

    def decide(logits, valid):
        return anchornet.decide(logits, valid, method.fuse)

    inputs = {
        glance: (variables["glance"], images),
        localize: (variables["anchornet"], images),
        patch: (
            variables["patches"],
            images,
            shape((b, 2), jnp.int32),
            shape((b,), jnp.int32),
        ),
        decide: (shape((b, t, classes), jnp.float32), shape((b, t), bool)),
    }
    return {
        step.__name__: bytes(
            jax_export.export(jax.jit(step), platforms=PLATFORMS)(*of).serialize()
        )
        for step, of in inputs.items()
    }


def convention() -> int:
    """Return the version of jax.export's calling convention that `serialise` writes."""
    return jax.config.jax_export_calling_convention_version


def check(version: int) -> None:
    """Refuse steps of a calling convention that this JAX cannot run.

    Raises:
      ValueError: it says what to do.
    """
    low = jax_export.minimum_supported_calling_convention_version
    high = jax_export.maximum_supported_calling_convention_version
    if not low <= version <= high:
        raise ValueError(
            f"its steps follow convention {version} of jax.export, and JAX "
            f"{jax.__version__} can run {low} to {high}; "
            f"please {'update JAX' if version > high else 'export again'}, or use "
            "`export.load`"
        )


def deserialise(traced: dict[str, bytes], variables: dict, metadata: dict) -> Steps:
    """Make the steps callable, with their variables on the device."""
    run = {}
    for name, network in STEPS.items():
        run[name] = jax.jit(jax_export.deserialize(bytearray(traced[name])).call)
        if network:
            own = jax.device_put(variables[network])
            run[name] = functools.partial(run[name], own)
    return Steps(**run, metadata=metadata)
