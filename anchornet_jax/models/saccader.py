"""Saccader: a BagNet whose answer is read at a few cells, chosen one after the other.

Saccader: Improving Accuracy of Hard Attention Models for Vision (Elsayed et al., 2019),
Sec. 3. A representation network without padding says what each cell of a grid sees; two
pairs of dilated convolutions on its last map say where to look; the cell ("Saccader
cell") mixes both and gives a cell of the grid at a time, never one that it gave before.

Deviates from the public code in one point: there the BatchNorm of a projected shortcut
normalises the main branch by mistake, here the shortcut. No weights were published.
Counted for 1,000 classes at 224 pixels: 35.5 M parameters, 19.3 G multiply-adds, and 19.5
G with the logits of all 361 cells, of which six are needed. Localizing Multi-scale
Semantic Patches (2020) quotes 33.58 M and 21.6 G.

    model = models.create("saccader", num_classes=1000)
    logits, out = model.apply(variables, images)  # the mean over the visited cells
    rows, columns = jnp.divmod(out["cells"], out["mixed"].shape[2])
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import bagnet, layers, receptive_field

GROUPS = 2  # pairs of convolutions that say where, each half as wide as its input
DILATION = 2  # of the second of a pair


def locate(cell: jax.Array, mixed: jax.Array, visited: jax.Array) -> jax.Array:
    """Return how much each cell of the grid is worth a look (Sec. 3, the cell).

    Args:
      cell: [C, 1], the parameter of the network.
      mixed: [B, G, G, C], what and where.
      visited: [B, G G] bool.

    Returns:
      Logits [B, G G] float32, minus infinity at visited cells.
    """
    flat = mixed.reshape(mixed.shape[0], -1, mixed.shape[-1]).astype(jnp.float32)
    unseen = lambda scores: jnp.where(visited, -jnp.inf, scores)
    weights = (flat @ cell)[..., 0] / flat.shape[-1] ** 0.5
    weights = jax.nn.softmax(unseen(weights))  # [B, L]
    channels = jax.nn.softmax((flat * weights[..., None]).sum(1))  # [B, C]
    return unseen((flat * channels[:, None]).sum(-1))


def walk(
    cell: jax.Array, mixed: jax.Array, glimpses: int, choose: Callable
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yield (logits [B, L], cell [B] int32) of each glimpse.

    Args:
      cell: as for `locate`.
      mixed: as for `locate`.
      glimpses: T, at most the number L of cells.
      choose: `choose(t, logits) -> cell` [B].
    """
    visited = jnp.zeros((mixed.shape[0], mixed.shape[1] * mixed.shape[2]), bool)
    for t in range(glimpses):
        scores = locate(cell, mixed, visited)
        chosen = choose(t, scores).astype(jnp.int32)
        visited = mark(visited, chosen)
        yield scores, chosen


def best(_, scores: jax.Array) -> jax.Array:
    """Choose the cell that is worth most, as inference does."""
    return scores.argmax(-1)


def mark(visited: jax.Array, cells: jax.Array) -> jax.Array:
    """Return the visited cells [B, L], with one more for each image [B]."""
    return visited | (jnp.arange(visited.shape[1])[None] == cells[:, None])


def answer(classifier: dict, what: jax.Array, cells: jax.Array) -> jax.Array:
    """Return the logits [B, N] that the classifier gives at one cell [B] of each image.

    Args:
      classifier: `kernel` [C, N] and `bias` [N].
      what: [B, G, G, C].
      cells: [B] int32.
    """
    flat = what.reshape(what.shape[0], -1, what.shape[-1])
    return bagnet.local_logits(classifier, flat[jnp.arange(cells.shape[0]), cells])


class Saccader(nn.Module):
    """Representation network, location network and cell.

    Attributes:
      num_classes: N.
      glimpses: T.
      bag: arguments of the representation network, a `BagNet` with a low last map.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
      ordered: the heatmap is an order of visits, see `localize.regrid`.
    """

    num_classes: int
    glimpses: int = 6
    bag: tuple[tuple[str, object], ...] = ()
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    ordered = True

    @property
    def _bag(self):
        return {
            "num_classes": self.num_classes,
            "axis_name": self.axis_name,
            "dtype": self.dtype,
            **dict(self.bag),
        }

    @property
    def field(self) -> receptive_field.ReceptiveField:
        """Return what a cell of the grid sees."""
        return bagnet.BagNet(parent=None, **self._bag).field

    @property
    def fields(self) -> tuple[receptive_field.ReceptiveField, ...]:
        """Return the field of each branch: there is one."""
        return (self.field,)

    @property
    def channels(self) -> int:
        """Return the channels of the maps that glimpses read."""
        return dict(self.bag)["low"]

    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify by the cells that are worth most, one after the other.

        Args:
          images: [B, H, W, 3], normalised; at least as many cells as glimpses.
          train: use and update the batch's statistics.

        Returns:
          Logits [B, N], the mean over the visited cells, and beside what `maps` returns

          - `cells`: [B, T] int32, row times G plus column;
          - `scores`: [B, G, G] float32, of the last glimpse.

        Raises:
          ValueError: if the images are too small.
        """
        rows, columns = self.field.grid(*images.shape[1:3])
        if rows * columns < self.glimpses:
            raise ValueError(
                f"`image` is {images.shape[1]}x{images.shape[2]} pixels, which gives "
                f"{rows * columns} cells; {self.glimpses} glimpses need as many"
            )
        out = self.maps(images, train=train)
        params = self.variables["params"]
        glimpses = list(walk(params["cell"], out["mixed"], self.glimpses, best))
        out |= {
            "cells": jnp.stack([chosen for _, chosen in glimpses], 1),
            "scores": glimpses[-1][0].reshape(-1, rows, columns),
        }
        return _mean(params["representation"]["fc"], out), out

    @nn.compact
    def maps(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Return what glimpses read, before the first of them.

        Args:
          images: [B, H, W, 3], normalised.
          train: use and update the batch's statistics.

        Returns:
          - `extracted`: [B, G, G, C], what each cell sees;
          - `mixed`: [B, G, G, C], what and where, by which cells are chosen;
          - `bag_logits`: [B, N], the mean over all cells.
        """
        bag_logits, maps = bagnet.BagNet(**self._bag, name="representation")(
            images, train=train
        )
        conv_bn = functools.partial(
            layers.conv_bn, train=train, axis_name=self.axis_name, dtype=self.dtype
        )
        where, dilated = maps["features"], {"kernel": 3, "dilation": DILATION}
        for i in range(GROUPS):
            width = where.shape[-1] // 2
            for j, kind in enumerate(({}, {**dilated, "padding": DILATION})):
                names = (f"where{i}_{j}", f"where{i}_{j}_bn")
                where = nn.relu(conv_bn(where, width, names, **kind))
        both = jnp.concatenate([where, maps["extracted"]], -1)
        mix = layers.Conv(self.channels, use_bias=True, dtype=self.dtype, name="mix")
        self.param("cell", nn.initializers.glorot_uniform(), (self.channels, 1))
        return {
            "extracted": maps["extracted"],
            "mixed": mix(both),
            "bag_logits": bag_logits,
        }

    @staticmethod
    def classify(variables, out) -> tuple[jax.Array, jax.Array]:
        """Return the logits of `__call__` [B, N] and the branch [B] int32: there is one.

        Args:
          variables: of this network.
          out: from `__call__`.
        """
        logits = _mean(variables["params"]["representation"]["fc"], out)
        return logits, jnp.zeros(logits.shape[:1], jnp.int32)

    @staticmethod
    def contributions(variables, out, classes: jax.Array) -> tuple[jax.Array, ...]:
        """Return the order of visits as a heatmap, whatever the classes.

        T at the cell that was visited first, 1 at the last one, and below 1 at the
        others, by what they were worth then.

        Args:
          variables: of this network.
          out: from `__call__`.
          classes: [B] int32.

        Returns:
          One [B, G, G] float32.
        """
        shape = out["scores"].shape
        others = jax.nn.softmax(out["scores"].reshape(shape[0], -1))
        count = out["cells"].shape[1]
        at = jnp.arange(others.shape[1])[None, None] == out["cells"][..., None]
        ranks = jnp.arange(count, 0, -1)[None, :, None]  # [1, T, 1]
        return (jnp.where(at, ranks, others[:, None]).max(1).reshape(shape),)


def _mean(classifier, out):
    """Return the mean of the logits at the visited cells."""
    logits = [answer(classifier, out["extracted"], at) for at in out["cells"].T]
    return sum(logits) / len(logits)
