"""A network with several exits: an image that is sure goes no deeper.

Multi-Scale Dense Networks (2018) and Resolution Adaptive Networks (2020): one step for each
exit, which computes what this exit needs and no earlier one did. What later exits read is
the state, so that the pixels are needed no more after the first step.

    method = MultiExit({"network": networks.load("runs/msdnet/network/network")})
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from anchornet_jax.methods import patches, preprocessing
from anchornet_jax.methods.method import Step
from anchornet_jax.models import Network, multiply_adds

ROLE = "network"


@dataclasses.dataclass(frozen=True, eq=False)
class MultiExit:
    """The exits of one network, one after the other.

    Attributes:
      networks: {"network": it}, which runs exit by exit, see `models.multi_exit`.
    """

    networks: dict[str, Network]

    def __post_init__(self):
        model = self.networks[ROLE].model
        if not hasattr(model, "advance"):
            raise ValueError(
                f"`networks.{ROLE}` is a {type(model).__name__}, which has one exit; give "
                "one with several, such as an MSDNet or a RANet"
            )

    @staticmethod
    def roles(**_) -> tuple[str, ...]:
        """Return the roles of its networks."""
        return (ROLE,)

    @property
    def arguments(self) -> dict:
        """Return nothing: the network says where its exits are."""
        return {}

    sources = ()  # answers are no sums

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """Return the way to each exit."""
        return tuple(
            Step(
                f"exit {k + 1}",
                (ROLE,),
                functools.partial(self._run, exit=k),
                reads_pixels=k == 0,
            )
            for k in range(self.networks[ROLE].model.exits)
        )

    def start(self, count: int, image_size: int) -> dict:
        """Return room for every map that goes from one exit to a later one."""
        return {
            name: jnp.zeros((count, *shape.shape[1:]), shape.dtype)
            for _, left in self._trace(image_size)
            for name, shape in left.items()
        }

    def macs(self, image_size: int) -> list[int]:
        """Return what each exit takes on top of the one before."""
        return [macs for macs, _ in self._trace(image_size)]

    def input_sizes(self, image_size: int) -> dict[str, int]:
        """Return the whole image's."""
        return {ROLE: image_size}

    def regions(self, state, image_size: int) -> None:
        """Return None: no part of the image was chosen."""

    @functools.cached_property
    def _traced(self) -> dict:
        """Return what `_trace` has found: a large network takes seconds."""
        return {}

    def _trace(self, image_size):
        """Return of each exit the multiply-adds, and the shapes of what it leaves."""
        if image_size not in self._traced:
            model, variables = self.networks[ROLE][:2]
            shape, found = (1, image_size, image_size, 3), []
            left = jax.ShapeDtypeStruct(shape, jnp.float32)
            for k in range(model.exits):
                trace = jax.make_jaxpr(_advance(model, k), return_shape=True)
                program, (left, _) = trace(variables, left)
                found.append((multiply_adds.count(program.jaxpr), left))
            self._traced[image_size] = found
        return self._traced[image_size]

    def _run(self, variables, pixels, rows, state, t, *, exit):
        model = self.networks[ROLE].model
        if exit:
            carried = {name: state[name] for name in model.carries(exit - 1)}
        else:
            carried = preprocessing.normalise(patches.take(pixels, rows), model)
        left, logits = _advance(model, exit)(variables[ROLE], carried)
        return {**state, **left}, logits.astype(jnp.float32)


def _advance(model, exit):
    """Return the function of variables and what is carried to one exit."""
    return lambda variables, carried: model.apply(
        variables, carried, exit=exit, method="advance"
    )
