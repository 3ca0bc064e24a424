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
            for maps in self._carried(image_size)[1:]
            for name, shape in maps.items()
        }

    def macs(self, image_size: int) -> list[int]:
        """Return what each exit takes on top of the one before."""
        model, variables = self.networks[ROLE][:2]
        return [
            multiply_adds.macs(_advance(model, k), variables, carried)
            for k, carried in enumerate(self._carried(image_size)[:-1])
        ]

    def input_sizes(self, image_size: int) -> dict[str, int]:
        """Return the whole image's."""
        return {ROLE: image_size}

    def regions(self, state, image_size: int) -> None:
        """Return None: no part of the image was chosen."""

    @functools.cached_property
    def _traced(self) -> dict:
        """Return what `_carried` has found: tracing a large network takes seconds."""
        return {}

    def _carried(self, image_size):
        """Return the shapes of what goes to each exit, and of what the last one leaves."""
        if image_size not in self._traced:
            model, variables = self.networks[ROLE][:2]
            shape = (1, image_size, image_size, 3)
            given = [jax.ShapeDtypeStruct(shape, jnp.float32)]
            for k in range(model.exits):
                left, _ = jax.eval_shape(_advance(model, k), variables, given[-1])
                given.append(left)
            self._traced[image_size] = given
        return self._traced[image_size]

    def _run(self, variables, pixels, rows, state, t, *, exit):
        model = self.networks[ROLE].model
        if exit:
            carried = {name: state[name] for name in model.carries(exit - 1)}
        else:
            carried = preprocessing.normalise(patches.take(pixels, rows))
        left, logits = _advance(model, exit)(variables[ROLE], carried)
        return {**state, **left}, logits.astype(jnp.float32)


def _advance(model, exit):
    """Return the function of variables and what is carried to one exit."""
    return lambda variables, carried: model.apply(
        variables, carried, exit=exit, method="advance"
    )
