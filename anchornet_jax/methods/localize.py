"""Localisers: from images to the patches that are worth a look.

A localiser gives a heatmap for each size of patches, and patches are selected on it, best
first (`patches.select`). Networks without padding do it by the class activation map of
the class that they predict (2022, Sec. 3.3; 2020, Algorithm 1). Beside them stand three
that have learned nothing, for comparison (2022, Table 3; 2020, Fig. 6):

    localizer = Heuristic("random")  # or centre, edges
    found = localize(localizer, None, images, k=4, iou_threshold=0.3)

and networks that see other squares than the patches (BagNet, Saccader). `of_size` brings
their heatmaps to patches of any size, so that all localisers choose among the same ones.

A localiser that was taught where things are, rather than what they are (see
`objectives.taught`), or that knows other classes than those asked for, is read without
regard to classes: its heatmap is the evidence for any of them (`HEATMAPS`).
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from anchornet_jax.methods import patches, preprocessing
from anchornet_jax.models import multiply_adds
from anchornet_jax.models.anchornet import AnchorNet
from anchornet_jax.models.receptive_field import ReceptiveField

LUMA = (0.299, 0.587, 0.114)
SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))


class Localization(NamedTuple):
    """What a localiser says of a batch of images."""

    logits: jax.Array | None  # [B, N]; None of a localiser that knows no classes
    heatmap: jax.Array  # [B, G, G] that chose the patches; NaN beyond a smaller grid
    corners: jax.Array  # [B, K, 2] int32, best patch first
    valid: jax.Array  # [B, K] bool
    branch: jax.Array  # [B] int32, which of the localizer's `fields` has the patches


def own_keys(images: jax.Array) -> jax.Array:
    """Return a random key [B] of each image, the same in whatever batch it is."""
    flat = images.reshape(images.shape[0], -1)
    place = jnp.arange(flat.shape[1], dtype=jnp.uint32)
    mixed = (flat.astype(jnp.uint32) + 1) * (place * np.uint32(2654435761) + 1)[None]
    return jax.vmap(jax.random.key)(mixed.sum(1, dtype=jnp.uint32))


def random_map(images: jax.Array, field: ReceptiveField) -> jax.Array:
    """Return random numbers [B, G, G], the same for an image in whatever batch it is."""
    grid = field.grid(*images.shape[1:3])
    return jax.vmap(lambda key: jax.random.uniform(key, grid))(own_keys(images))


def centre_map(images: jax.Array, field: ReceptiveField) -> jax.Array:
    """Return the nearness of each location to the centre [B, G, G]."""
    rows, columns = (
        jnp.arange(n) - (n - 1) / 2 for n in field.grid(*images.shape[1:3])
    )
    nearness = -(rows[:, None] ** 2 + columns[None] ** 2)
    return jnp.broadcast_to(nearness[None], (images.shape[0], *nearness.shape))


def edge_map(images: jax.Array, field: ReceptiveField) -> jax.Array:
    """Return the edge energy (Sobel) in each patch [B, G, G]."""
    window, strides = (1, field.size, field.size), (1, field.stride, field.stride)
    return lax.reduce_window(edges(images), 0.0, lax.add, window, strides, "VALID")


def edges(images: jax.Array) -> jax.Array:
    """Return the Sobel gradient's magnitude [B, H, W] of uint8 images [B, H, W, 3]."""
    grey = images.astype(jnp.float32) @ jnp.array(LUMA)
    grey = jnp.pad(grey, [(0, 0), (1, 1), (1, 1)], mode="edge")[..., None]
    across = jnp.array(SOBEL, jnp.float32)
    kernels = jnp.stack([across, across.T], -1)[:, :, None]  # [3, 3, 1, 2]
    gradient = lax.conv_general_dilated(
        grey, kernels, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sqrt((gradient**2).sum(-1))


HEURISTICS = {"random": random_map, "centre": centre_map, "edges": edge_map}


@dataclasses.dataclass(frozen=True)
class Heuristic:
    """A localiser without parameters.

    Attributes:
      name: a key of `HEURISTICS`.
      field: size and stride of the patches; AnchorNet's of 2022.
    """

    name: str
    field: ReceptiveField = AnchorNet.field

    @property
    def fields(self) -> tuple[ReceptiveField, ...]:
        """Return the sizes of patches: there is one."""
        return (self.field,)


def predicted_map(model, variables, out, logits: jax.Array) -> tuple[jax.Array, ...]:
    """Return the evidence for the predicted class [B, G, G] per branch (2022, Eq. 2)."""
    return model.contributions(variables, out, logits.argmax(-1))


def agnostic_map(model, variables, out, logits: jax.Array) -> tuple[jax.Array, ...]:
    """Return the evidence for any class [B, G, G] per branch: log-sum-exp over classes.

    Not of the papers. Where the localiser names the wrong class, its map of that class
    points at something else; this one does not ask which class it is.
    """
    if not hasattr(model, "evidence"):
        raise ValueError(
            "`heatmap` is 'agnostic'; allowed is 'predicted', since a "
            f"{type(model).__name__} does not tell its evidence for every class"
        )
    evidence = model.evidence(variables, out)
    return tuple(jax.nn.logsumexp(maps, -1) for maps in evidence)


HEATMAPS = {"predicted": predicted_map, "agnostic": agnostic_map}


def check_heatmap(name: str) -> None:
    """Raise ValueError for a heatmap that is no key of `HEATMAPS`."""
    if name not in HEATMAPS:
        raise ValueError(f"`heatmap` is {name!r}; choose one of {sorted(HEATMAPS)}")


def heatmap_macs(model, heatmap: str, image_size: int) -> int:
    """Count the multiply-adds of a network's heatmap beyond those of the network.

    The papers do not count the map of one class, and it is not counted here.
    """
    if heatmap != "agnostic" or not hasattr(model, "evidence"):
        return 0

    def macs(count):
        images = jax.ShapeDtypeStruct((count, image_size, image_size, 3), "float32")
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        _, out = jax.eval_shape(model.apply, variables, images)
        return multiply_adds.macs(model.evidence, variables, out)

    return macs(2) - macs(1)  # what an image adds; layers are joined once for all


def window_means(maps: jax.Array, field: ReceptiveField, side: int) -> jax.Array:
    """Average maps of an image, resized to it, over each patch of a lattice.

    Args:
      maps: [B, h, w] float32, of any resolution.
      field: size and stride of the patches.
      side: of the square image in pixels.

    Returns:
      [B, G, G] float32.
    """
    rows, columns = (
        jnp.asarray(_window_weights(field, side, cells)) for cells in maps.shape[1:]
    )
    return jnp.einsum("gh,bhw,kw->bgk", rows, maps, columns)


def _window_weights(field, side: int, cells: int) -> np.ndarray:
    """Return what each cell weighs in each window [G, cells]; bilinear, as resized."""
    centres = np.clip((np.arange(side) + 0.5) * cells / side - 0.5, 0, cells - 1)
    spread = np.maximum(
        0, 1 - abs(centres[:, None] - np.arange(cells))
    )  # [side, cells]
    starts = range(0, side - field.size + 1, field.stride)
    windows = [spread[start : start + field.size].mean(0) for start in starts]
    return np.float32(windows)


@dataclasses.dataclass(frozen=True)
class Regridded:
    """A localiser of patches of other sizes than its locations see.

    Attributes:
      network: of one branch, or a `Heuristic`.
      fields: size and stride of the patches, of each branch; the strides are its own.
    """

    network: nn.Module
    fields: tuple[ReceptiveField, ...]

    @property
    def field(self) -> ReceptiveField:
        """Return the middle one."""
        return self.fields[len(self.fields) // 2]


def of_size(model, size: int):
    """Return a localiser of patches of a size.

    Args:
      model: a `Heuristic`, or a network that localises.
      size: side of the patches in pixels; 0: what a location sees.

    Raises:
      ValueError: if it has several sizes of its own.
    """
    if not size or [size] == [field.size for field in model.fields]:
        return model
    if len(model.fields) > 1:
        raise ValueError(
            f"`size` is {size}; allowed is 0, since the localizer has branches of "
            f"{[field.size for field in model.fields]} pixels"
        )
    field = model.field._replace(size=size)
    if isinstance(model, Heuristic):
        return dataclasses.replace(model, field=field)
    return Regridded(model, (field,))


def of_sizes(model, sizes: Iterable[int]) -> Regridded:
    """Return a localiser of one branch for patches of several sizes, a branch for each.

    Raises:
      ValueError: if it has several sizes of its own.
    """
    if len(model.fields) > 1:
        raise ValueError(
            f"the localizer has branches of {[f.size for f in model.fields]} pixels; only "
            "one that has a single branch can take the sizes of another"
        )
    return Regridded(model, tuple(model.field._replace(size=size) for size in sizes))


def regrid(
    heatmap: jax.Array,
    own: ReceptiveField,
    field: ReceptiveField,
    shape: tuple[int, int],
    ordered: bool = False,
) -> jax.Array:
    """Bring a heatmap to patches of another size.

    A patch gets the mean over the locations that see nothing outside it. Where it is
    smaller than what a location sees, or where a mean says nothing, it gets the value of
    the location whose centre is nearest to its own: NaN beyond the heatmap.

    Args:
      heatmap: [B, G, G], one value for each location.
      own: what a location sees.
      field: size of the patches, at the same stride.
      shape: height and width of the images in pixels.
      ordered: the values are ranks, so that their mean says nothing.

    Returns:
      [B, G', G'], one value for each patch.
    """
    rows, columns = field.grid(*shape)
    more = field.size - own.size
    if more > 0 and not ordered:
        side = more // own.stride + 1
        window = (1, side, side)
        sums = lax.reduce_window(heatmap, 0.0, lax.add, window, (1, 1, 1), "VALID")
        return sums[:, :rows, :columns] / side**2
    shift = round(more / (2 * own.stride))
    sides = [(max(-shift, 0), max(n + shift, 0)) for n in (rows, columns)]
    padded = jnp.pad(heatmap, [(0, 0), *sides], constant_values=jnp.nan)
    start = max(shift, 0)
    return padded[:, start : start + rows, start : start + columns]


def look(model, variables, images: jax.Array, heatmap: str = "predicted"):
    """Return logits [B, N] or None, the branch [B] and a heatmap [B, G, G] per branch.

    Args:
      model: a `Heuristic`, a network that localises, or one `Regridded`.
      variables: of the network.
      images: uint8 [B, H, W, 3].
      heatmap: of a network, a key of `HEATMAPS`.
    """
    network = model.network if isinstance(model, Regridded) else model
    if isinstance(network, Heuristic):
        maps = [HEURISTICS[network.name](images, field) for field in model.fields]
        return None, jnp.zeros(images.shape[:1], jnp.int32), maps
    _, out = network.apply(variables, preprocessing.normalise(images, network))
    logits, branch = network.classify(variables, out)
    maps = HEATMAPS[heatmap](network, variables, out, logits)
    if isinstance(model, Regridded):
        maps = regridded(model, maps[0], images.shape[1:3])
    return logits, branch, maps


def regridded(model: Regridded, heatmap, shape) -> list[jax.Array]:
    """Return a network's heatmap [B, G, G] for the patches of each branch."""
    ordered = getattr(model.network, "ordered", False)
    own = model.network.field
    return [regrid(heatmap, own, field, shape, ordered) for field in model.fields]


def localize(
    model,
    variables,
    images: jax.Array,
    *,
    k: int = 1,
    iou_threshold: float = 0.3,
    preset: str = "",
    branch: int = 0,
    branches: jax.Array | None = None,
    heatmap: str = "predicted",
) -> Localization:
    """Find the patches that a localiser chooses (2022, Sec. 3.3; 2020, Algorithm 1).

    Args:
      model: the localizer: a network, one `Regridded`, or a `Heuristic`.
      variables: its parameters and statistics.
      images: uint8 [B, H, W, 3].
      k: patches per image, K.
      iou_threshold: patches that overlap this much or more are not both kept.
      preset: a key of `patches.PRESETS`, which says both for each branch instead; K is
        the largest.
      branch: size in pixels of the branch that localises all images; 0 for the one that
        the network chooses for each.
      branches: [B] int32, the branch of each image by its index, in place of both.
      heatmap: of a network, a key of `HEATMAPS`.

    Raises:
      ValueError: for an unknown preset, branch or heatmap, or patches that cannot be.
    """
    check_heatmap(heatmap)
    sizes = [field.size for field in model.fields]
    if preset:
        selections = patches.preset(preset, sizes)
    else:
        selections = [patches.Selection(k, iou_threshold, 1.0)] * len(sizes)
    logits, chosen, maps = look(model, variables, images, heatmap)
    if branch:
        chosen = jnp.full_like(chosen, branch_index(model, branch))
    if branches is not None:
        chosen = branches
    found = [
        (heatmap, *patches.select(heatmap, field, **selection._asdict()))
        for heatmap, field, selection in zip(maps, model.fields, selections)
    ]
    return Localization(logits, *choose(found, chosen), chosen)


def branch_index(model, size: int) -> int:
    """Return the index of the localizer's branch with patches of that size in pixels.

    Raises:
      ValueError: if it has none.
    """
    sizes = [field.size for field in model.fields]
    if size not in sizes:
        raise ValueError(f"`branch` is {size}; choose one of {sizes}")
    return sizes.index(size)


def choose(found, branch):
    """Take each image's own of the branches' (heatmap, corners, valid), made alike.

    Args:
      found: of each branch, from `patches.select`, its heatmap first.
      branch: [B] int32.

    Returns:
      Heatmap [B, G, G], NaN beyond a smaller grid, corners [B, K, 2], valid [B, K].
    """
    columns = zip(*found)
    return [
        jnp.stack(_padded(column, fill))[branch, jnp.arange(branch.shape[0])]
        for column, fill in zip(columns, (jnp.nan, 0, False))
    ]


def _padded(arrays, fill):
    """Fill arrays [B, ...] up to the largest shape among them."""
    shape = [max(sizes) for sizes in zip(*(array.shape for array in arrays))]
    return [
        jnp.pad(
            array,
            [(0, most - n) for n, most in zip(array.shape, shape)],
            constant_values=fill,
        )
        for array in arrays
    ]
