"""AnchorNet on an image of any size in tiles: the whole image's map, in bounded memory.

Without padding a location depends on its receptive field alone, so tiles that overlap by
what the field needs give the same map as the whole image. Only squeeze-excite looks
further: its gates come from the mean over the whole map. So the network is run stage by
stage, between which the map stays in host memory, and every stage goes over its tiles
twice: once to sum up what the gates are made of, once with the gates. That computes the
expansion and the depthwise convolution twice, 1.6 times the multiply-adds at most.

    found = tiles.localize(model, variables, image)      # uint8 [H, W, 3], in host memory
    corners, valid = patches.select(found.heatmap[None], model.field, k=4)

All tiles have one shape, the last ones of a row or column moved inside, so no size
compiles anything of its own once its map is as large as a tile. In memory are one tile
per launch on the device, and on the host the image and two maps, of which one takes the
place of the other where they have the same channels: at 8192 pixels 0.6 GB beside the
image.

Localizing Semantic Patches (2022), Sec. 3.1 and 3.2; for squeeze-excite Table 1.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax.methods import preprocessing

TILE = 128  # locations along each side of a tile, of every stage


class Map(NamedTuple):
    """What AnchorNet says of one image, in host memory."""

    logits: np.ndarray  # [N] float32
    heatmap: np.ndarray  # [Gy, Gx] float32, of the predicted class


class Tile(NamedTuple):
    """A tile of a map: the rows and columns computed, and those not computed before."""

    begin: tuple[int, int]  # first row and column
    fresh: tuple[int, int]  # first row and column that no earlier tile has
    end: tuple[int, int]  # after the last

    def inside(self) -> tuple[slice, slice]:
        """Return the fresh part, counted from the tile's own corner."""
        return tuple(slice(f - b, None) for f, b in zip(self.fresh, self.begin))

    def whole(self) -> tuple[slice, slice]:
        """Return the fresh part, counted from the map's corner."""
        return tuple(slice(f, e) for f, e in zip(self.fresh, self.end))

    def seen(self, field) -> tuple[slice, slice]:
        """Return what the tile sees of the map below, whose locations `field` sees."""
        return tuple(
            slice(b * field.stride, (e - 1) * field.stride + field.size)
            for b, e in zip(self.begin, self.end)
        )


def split(grid: tuple[int, int], tile: int) -> Iterator[Tile]:
    """Yield the tiles of a map, row by row, of equal shape whatever the grid.

    Args:
      grid: rows and columns of the map.
      tile: locations along each side; fewer where the map has fewer.
    """
    sides = []
    for count in grid:
        side = min(tile, count)
        starts = range(0, count, side)
        sides.append([(min(at, count - side), at, side) for at in starts])
    for (top, row, height), (left, column, width) in itertools.product(*sides):
        yield Tile((top, left), (row, column), (top + height, left + width))


def localize(model, variables, image: np.ndarray, *, tile: int = TILE) -> Map:
    """Return the logits and the heatmap of the whole image, as `localize.look` does.

    Args:
      model: AnchorNet of 2022, or what `folding.fold` makes of it.
      variables: of it.
      image: uint8 [H, W, 3] in host memory, at least as large as the receptive field.
      tile: locations along each side of a tile.

    Raises:
      ValueError: for a network that has no stages, an image too small, or no tile.
    """
    if not hasattr(model, "stages"):
        raise ValueError(
            f"`model` is {type(model).__name__}; it cannot be run in tiles"
        )
    if tile < 1:
        raise ValueError(f"`tile` is {tile}; allowed is 1 or more")
    model.field.grid(*image.shape[:2])  # raises
    extracted = image
    for number in range(len(model.stages)):
        extracted = _run(model, variables, extracted, number, tile)
    mean = extracted.mean((0, 1), dtype=np.float64, keepdims=True)
    logits, classes = _classify(model, variables, mean[None].astype(np.float32))
    heatmap = np.empty(extracted.shape[:2], np.float32)
    for one in split(heatmap.shape, tile):
        rows, columns = (slice(*both) for both in zip(one.begin, one.end))
        values = _heat(model, variables, extracted[rows, columns][None], classes)
        heatmap[one.whole()] = np.asarray(values)[0][one.inside()]
    return Map(np.asarray(logits)[0], heatmap)


def _run(model, variables, x, number, tile):
    """Run one stage on a map [H, W, C] in host memory; return the next one."""
    field = model.stages[number]
    grid = field.grid(*x.shape[:2])
    total = 0.0
    for one in split(grid, tile):
        first = np.array([part.start for part in one.inside()], np.int32)
        part = x[one.seen(field)][None]
        total += np.asarray(_sum(model, number, variables, part, first), np.float64)
    mean = (total / np.prod(grid)).astype(np.float32)
    after = None
    for one in split(grid, tile):
        found = np.asarray(
            _stage(model, number, variables, x[one.seen(field)][None], mean)
        )
        if after is None:
            # A map with the same channels takes the place of this one: what a tile
            # writes, no later tile reads for its fresh part.
            same = field.stride == 1 and found.shape[-1] == x.shape[-1]
            own = (*grid, found.shape[-1])
            after = x[: grid[0], : grid[1]] if same else np.empty(own, found.dtype)
        after[one.whole()] = found[0][one.inside()]
    return after


def _apply(model, number, variables, part, **how):
    if number == 0:
        part = preprocessing.normalise(part, model)
    how |= {"number": number, "method": "stage"}
    return model.apply(variables, part, **how)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sum(model, number, variables, part, first):
    """Return the sum [1, 1, 1, E] over the locations of a tile from `first` on."""
    maps = _apply(model, number, variables, part, until_mean=True).astype(jnp.float32)
    rows, columns = (jnp.arange(n) >= at for n, at in zip(maps.shape[1:3], first))
    counted = (rows[:, None] & columns[None])[None, :, :, None]
    return jnp.where(counted, maps, 0).sum((1, 2), keepdims=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _stage(model, number, variables, part, mean):
    return _apply(model, number, variables, part, mean=mean.astype(model.dtype))


@functools.partial(jax.jit, static_argnums=0)
def _classify(model, variables, mean):
    logits, _ = model.classify(variables, {"extracted": mean})
    return logits, logits.argmax(-1)


@functools.partial(jax.jit, static_argnums=0)
def _heat(model, variables, extracted, classes):
    return model.contributions(variables, {"extracted": extracted}, classes)[0]
