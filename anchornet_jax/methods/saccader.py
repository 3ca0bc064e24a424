"""Saccader's sequence: one glimpse after another at cells that it chooses.

Saccader (Elsayed et al., 2019), Sec. 3: the answer is the mean of the logits at the cells
visited so far. The first step runs the network on the image; the others read its maps, and
never visit a cell twice.

    method = Saccader({"network": networks.load("runs/saccader/joint/network")})
"""

import dataclasses

import jax
import jax.numpy as jnp

from anchornet_jax.methods import patches, preprocessing
from anchornet_jax.methods.method import Regions, Step
from anchornet_jax.models import Network, multiply_adds, saccader

ROLE = "network"


@dataclasses.dataclass(frozen=True, eq=False)
class Saccader:
    """Glimpses of one network, an exit after each.

    Attributes:
      networks: {"network": it}, a `models.saccader.Saccader`.
      glimpses: T.
    """

    networks: dict[str, Network]
    glimpses: int = 6

    def __post_init__(self):
        model = self.networks[ROLE].model
        if not hasattr(model, "glimpses"):
            raise ValueError(
                f"`networks.{ROLE}` is a {type(model).__name__}, which takes no glimpses; "
                "give a Saccader"
            )
        if self.glimpses < 1:
            raise ValueError(f"`glimpses` is {self.glimpses}; allowed is 1 or more")

    @staticmethod
    def roles(**_) -> tuple[str, ...]:
        """Return the roles of its networks."""
        return (ROLE,)

    @property
    def arguments(self) -> dict:
        """Return what makes the same method of the same network."""
        return {"glimpses": self.glimpses}

    sources = ()  # answers are no sums

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the network with the first glimpse, and the other glimpses."""
        first = Step("represent", (ROLE,), self._represent)
        glimpse = Step("glimpse", (ROLE,), self._glimpse, reads_pixels=False)
        return (first, *(self.glimpses - 1) * (glimpse,))

    def start(self, count: int, image_size: int) -> dict:
        """Return room for the network's maps: nothing is visited.

        Raises:
          ValueError: if the image has fewer cells than there are glimpses.
        """
        model = self.networks[ROLE].model
        rows, columns = model.field.grid(image_size, image_size)
        if rows * columns < self.glimpses:
            raise ValueError(
                f"`glimpses` is {self.glimpses}; at {image_size} pixels there are "
                f"{rows * columns} cells"
            )
        maps = (count, rows, columns, model.channels)
        return {
            "what": jnp.zeros(maps, model.dtype),
            "mixed": jnp.zeros(maps, model.dtype),
            "visited": jnp.zeros((count, rows * columns), bool),
            "total": jnp.zeros((count, model.num_classes), jnp.float32),
            "cells": jnp.full((count, self.glimpses), -1, jnp.int32),
            "heatmap": jnp.zeros((count, rows, columns), jnp.float32),
        }

    def macs(self, image_size: int) -> list[int]:
        """Return the multiply-adds of each step: class logits of visited cells alone."""
        variables = {ROLE: self.networks[ROLE].variables}
        images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
        state = jax.eval_shape(lambda: self.start(1, image_size))
        place = jax.ShapeDtypeStruct((1,), jnp.int32)

        def count(run):
            answer = lambda variables, images, state, t: run(
                variables, images, None, state, t
            )
            return multiply_adds.macs(answer, variables, images, state, place)

        first, *others = (count(step.run) for step in self.steps[:2])
        return [first, *(self.glimpses - 1) * others]

    def input_sizes(self, image_size: int) -> dict[str, int]:
        """Return the whole image's."""
        return {ROLE: image_size}

    def regions(self, state, image_size: int) -> Regions:
        """Return what the visited cells see, and what each cell was worth at first."""
        size, stride = self.networks[ROLE].model.field
        rows, columns = state["heatmap"].shape[1:]
        cells = state["cells"]
        corners = jnp.stack([cells // columns, cells % columns], -1) * stride
        boxes = jnp.concatenate([corners, corners + size], -1)
        first = (size - stride) / 2
        extent = [first, first, first + rows * stride, first + columns * stride]
        return Regions(
            jnp.where(cells[..., None] >= 0, boxes, -1).astype(jnp.int32),
            state["heatmap"],
            jnp.broadcast_to(jnp.array([extent], jnp.float32), (cells.shape[0], 4)),
        )

    def _represent(self, variables, pixels, rows, state, t):
        model = self.networks[ROLE].model
        images = preprocessing.normalise(patches.take(pixels, rows), model)
        out = model.apply(variables[ROLE], images, method="maps")
        maps = {"what": out["extracted"], "mixed": out["mixed"]}
        maps = {name: x.astype(model.dtype) for name, x in maps.items()}
        scores = saccader.locate(
            variables[ROLE]["params"]["cell"], maps["mixed"], state["visited"]
        )
        heatmap = jax.nn.softmax(scores).reshape(state["heatmap"].shape)
        state = {**state, **maps, "heatmap": heatmap}
        return self._visit(variables, state, t, scores)

    def _glimpse(self, variables, pixels, rows, state, t):
        cell = variables[ROLE]["params"]["cell"]
        scores = saccader.locate(cell, state["mixed"], state["visited"])
        return self._visit(variables, state, t, scores)

    def _visit(self, variables, state, t, scores):
        """Visit the best cell; answer by the mean over those visited so far."""
        classifier = variables[ROLE]["params"]["representation"]["fc"]
        cells = saccader.best(t, scores).astype(jnp.int32)
        total = state["total"] + saccader.answer(classifier, state["what"], cells)
        place = jnp.arange(t.shape[0]), t
        state = {
            **state,
            "visited": saccader.mark(state["visited"], cells),
            "total": total,
            "cells": state["cells"].at[place].set(cells),
        }
        return state, total / (t + 1)[:, None].astype(jnp.float32)
