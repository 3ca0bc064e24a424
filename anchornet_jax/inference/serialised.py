"""The steps of a method as programs that need no code of the models.

Each distinct step is traced once by jax.export for all platforms and any batch size. The
variables are an argument: stored once, and a step is some tens of kilobytes.

    traced = serialise(method, image_size=224)  # name: bytes
    steps = deserialise(traced, variables, describe(method), {})
    state, logits = steps.run[0](images)
    state, logits = steps.run[1](images, state)  # and so on
    seen = steps.observe(state, logits)  # {feature: [B]}, what rules may see of a step
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export as jax_export

from anchornet_jax.methods import method as protocol

PLATFORMS = ("cpu", "cuda", "tpu")
OBSERVE = "observe.features.jaxexport"  # no step's file has two points in its name


class Steps(NamedTuple):
    """The steps as they were traced; images are uint8 [B, H, W, 3].

    Attributes:
      run: for each place in the method a function of images and, but for the first, the
        state that the one before returned; it returns the state, and logits [B, N] of
        the answer so far.
      metadata: all that metadata.json says of the export.
      observe: a function of the state and logits after a step, which returns {feature:
        [B]}; None of an older export.
    """

    run: tuple[Callable, ...]
    metadata: dict
    observe: Callable | None = None

    def logits(self, images) -> jax.Array:
        """Return logits [B, T, N] of all exits."""
        state, answer = self.run[0](images)
        answers = [answer]
        for step in self.run[1:]:
            state, answer = step(images, state)
            answers.append(answer)
        return jnp.stack(answers, 1)


def describe(method: protocol.Method) -> list[dict]:
    """Return name, file, roles and places of each distinct step, as JSON holds them.

    None of a method on the host: its steps need code that cuts images.
    """
    steps = () if protocol.on_host(method) else method.steps
    return [
        {
            "name": step.name,
            "file": f"{step.name.replace(' ', '_')}.jaxexport",
            "roles": list(step.roles),
            "places": [t for t, other in enumerate(steps) if other == step],
        }
        for step in protocol.distinct(steps)
    ]


def serialise(method: protocol.Method, image_size: int) -> dict[str, bytes]:
    """Trace the distinct steps for all platforms, with free batch; return them by file.

    Args:
      method: its networks' weights do not become part of the steps.
      image_size: side of the square images in pixels.

    Returns:
      The steps; of a method on the host none, see `describe`.
    """
    if protocol.on_host(method):
        return {}
    (b,) = jax_export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((b, image_size, image_size, 3), jnp.uint8)
    places = jax.ShapeDtypeStruct((b,), jnp.int32)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), protocol.variables(method)
    )
    state = jax.eval_shape(lambda x: method.start(x.shape[0], image_size), images)
    traced = {}
    for step, about in zip(protocol.distinct(method.steps), describe(method)):
        own = {role: shapes[role] for role in step.roles}
        if step == method.steps[0]:
            run, given = _first(method, step, image_size), (own, images)
        else:
            run, given = _later(step), (own, images, state, places)
        exported = jax_export.export(jax.jit(run), platforms=PLATFORMS)(*given)
        traced[about["file"]] = bytes(exported.serialize())
    answer = jax.ShapeDtypeStruct((b, len(protocol.classes(method))), jnp.float32)
    observe = jax.jit(functools.partial(protocol.observe, method))
    exported = jax_export.export(observe, platforms=PLATFORMS)(state, answer)
    return traced | {OBSERVE: bytes(exported.serialize())}


def _first(method, step, image_size):
    def run(variables, images):
        count = images.shape[0]
        state = method.start(count, image_size)
        return step.run(variables, images, None, state, jnp.zeros(count, jnp.int32))

    return run


def _later(step):
    def run(variables, images, state, places):
        return step.run(variables, images, None, state, places)

    return run


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


def deserialise(
    traced: dict[str, bytes], variables: dict, steps: list[dict], metadata: dict
) -> Steps:
    """Make the steps callable, with their variables on the device.

    Args:
      traced: from `serialise`.
      variables: of the networks by role.
      steps: from `describe`.
      metadata: to be kept beside them; `features` are the names of what is observed.
    """
    device = jax.device_put(variables)
    run = {}
    for about in steps:
        program = jax.jit(jax_export.deserialize(bytearray(traced[about["file"]])).call)
        own = {role: device[role] for role in about["roles"]}
        for place in about["places"]:
            call = functools.partial(_call, program, own, place)
            run[place] = functools.partial(program, own) if place == 0 else call
    observe = None
    if OBSERVE in traced:
        seen = jax.jit(jax_export.deserialize(bytearray(traced[OBSERVE])).call)
        observe = functools.partial(_observe, seen, metadata.get("features", ()))
    return Steps(tuple(run[place] for place in sorted(run)), metadata, observe)


def _observe(program, names, state, logits):
    found = program(state, logits)
    return {name: found[:, k] for k, name in enumerate(names)}


def _call(program, variables, place, images, state):
    return program(variables, images, state, jnp.full(len(images), place, jnp.int32))
