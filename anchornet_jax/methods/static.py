"""One network, one step, one exit: the reference that early exit is compared with.

It runs through the same engine and by the same clock as every other method.

    method = Static({"network": networks.load("runs/demo/full_image/network")})
"""

import dataclasses

import jax.numpy as jnp

from anchornet_jax.methods import patches, preprocessing
from anchornet_jax.methods.method import Step
from anchornet_jax.models import Network, multiply_adds

ROLE = "network"


@dataclasses.dataclass(frozen=True, eq=False)
class Static:
    """A network that sees the whole image.

    Attributes:
      networks: {"network": it}.
      input_size: side in pixels that images are resized to; 0: as they are.
    """

    networks: dict[str, Network]
    input_size: int = 0

    def __post_init__(self):
        if self.input_size < 0 or self.input_size == 1:
            raise ValueError(
                f"`input_size` is {self.input_size}; allowed are 0 (as the images are) "
                "and 2 or more pixels"
            )

    @staticmethod
    def roles(**_) -> tuple[str, ...]:
        """Return the roles of its networks."""
        return (ROLE,)

    @property
    def arguments(self) -> dict:
        """Return what makes the same method of the same network."""
        return {"input_size": self.input_size}

    sources = ()  # answers are no sums

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the one step."""
        return (Step("whole image", (ROLE,), self._run),)

    def start(self, count: int, image_size: int) -> dict:
        """Return nothing: there is no later step."""
        return {}

    def macs(self, image_size: int) -> list[int]:
        """Return the multiply-adds of the network."""
        size = self.input_sizes(image_size)[ROLE]
        return [multiply_adds.model_macs(self.networks[ROLE].model, size)]

    def input_sizes(self, image_size: int) -> dict[str, int]:
        """Return what the network sees."""
        return {ROLE: self.input_size or image_size}

    def regions(self, state, image_size: int) -> None:
        """Return None: no part of the image was chosen."""

    def _run(self, variables, pixels, rows, state, t):
        model = self.networks[ROLE].model
        images = patches.take(pixels, rows)
        if self.input_size:
            images = patches.resize(images, self.input_size)
        images = preprocessing.normalise(images, model)
        logits, _ = model.apply(variables[ROLE], images)
        return state, logits.astype(jnp.float32)
