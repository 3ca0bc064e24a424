"""Patches: select them on a heatmap, cut them out, shrink the whole image.

Localizing Semantic Patches (2022), Sec. 3.3 (the greedy selection; the `coverage` of
2020, Algorithm 1 is an argument) and Sec. 3.4 (the resized image). Everything is
batched, of static shape, and made of `lax` operations.

    corners, valid = patches.select(heatmap, model.field, k=4, iou_threshold=0.3)
    pixels = patches.crop(images, corners, model.field.size)       # [B, K, P, P, 3]
    glance = patches.resize(images, model.field.size)              # [B, P, P, 3]
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from anchornet_jax.models.receptive_field import ReceptiveField


def iou(field: ReceptiveField, dy, dx):
    """Return the IoU of two patches `dy` and `dx` lattice steps apart (2022, 3.3)."""
    sides = (np.maximum(field.size - abs(d) * field.stride, 0) for d in (dy, dx))
    shared = functools.reduce(np.multiply, sides)
    return shared / (2 * field.size**2 - shared)


class Selection(NamedTuple):
    """Arguments of `select` for one branch: K, T and P of 2020, Algorithm 1."""

    k: int
    iou_threshold: float
    coverage: float


PRESETS = {  # 2020, Sec. 4.1: name -> {patch size: what that branch selects}
    "separate": {  # to look at
        63: Selection(5, 0.3, 0.05),
        95: Selection(3, 0.3, 0.04),
        111: Selection(2, 0.3, 0.03),
    },
    "many": {  # to classify by
        63: Selection(24, 0.8, 0.3),
        95: Selection(10, 0.8, 0.3),
        111: Selection(8, 0.8, 0.3),
    },
}


def preset(name: str, branches: Iterable[int]) -> tuple[Selection, ...]:
    """Return a preset's selection for each branch.

    Args:
      name: a key of `PRESETS`.
      branches: sizes of their patches in pixels.

    Raises:
      ValueError: for an unknown preset or branch.
    """
    if name not in PRESETS:
        raise ValueError(f"`preset` is {name!r}; choose one of {sorted(PRESETS)}")
    known = PRESETS[name]
    for size in branches:
        if size not in known:
            raise ValueError(
                f"`branches` holds {size}; the preset {name!r} is known for branches of "
                f"{sorted(known)} pixels"
            )
    return tuple(known[size] for size in branches)


@functools.partial(jax.jit, static_argnames=("field", "k", "iou_threshold", "coverage"))
def select(
    heatmap: jax.Array,
    field: ReceptiveField,
    *,
    k: int,
    iou_threshold: float = 0.3,
    coverage: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Select the strongest patches that overlap little (2022, Sec. 3.3).

    Locations are visited from the largest value to the smallest, the lower location
    first among equals; one is kept if its IoU with every kept one is below the
    threshold. A location that holds NaN is never visited.

    Args:
      heatmap: [B, Gy, Gx] evidence per location; infinities are ordinary values.
      field: of the network that made the heatmap.
      k: number of patches wanted, K.
      iou_threshold: in [0, 1]; at 0 one patch is kept, at 1 any overlap is allowed.
      coverage: P, share of the locations that are candidates, in (0, 1]: only the
        floor(H W P) strongest, at least one (2020, Algorithm 1; in 2022 all are).

    Returns:
      Corners [B, K, 2] int32, the (y, x) of each patch in pixels, strongest first, and
      a mask [B, K]: False where fewer than K patches exist; such a corner is (0, 0).

    Raises:
      ValueError: for an argument outside its range.
    """
    b, rows, columns = heatmap.shape
    locations = rows * columns
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"`iou_threshold` is {iou_threshold}; allowed is 0 to 1")
    if not 0 < coverage <= 1:
        raise ValueError(f"`coverage` is {coverage}; allowed is above 0, to 1")
    most = _most(field, iou_threshold, rows, columns)
    if not 1 <= k <= most:
        raise ValueError(
            f"`k` is {k}; on {rows}x{columns} locations at most {most} patches of "
            f"{field.size} pixels can stay below the IoU threshold {iou_threshold}"
        )

    scores = heatmap.reshape(b, locations)
    order = jnp.lexsort((-scores, jnp.isnan(scores)), axis=-1)  # [B, L], stable
    rank = jnp.argsort(order, axis=-1).astype(jnp.int32)  # [B, L], 0 is visited first
    # Ranks, not values, are masked: then ties and infinities need no care.
    numbers = (~jnp.isnan(scores)).sum(-1, keepdims=True)
    visited = max(1, int(round(locations * coverage, 6)))  # 0.29 * 100 is 28.99…
    rank = jnp.where(rank < jnp.minimum(numbers, visited), rank, locations)

    # suppressed[rows - 1 + dy, columns - 1 + dx]: too close to a patch kept there.
    dy, dx = np.ogrid[1 - rows : rows, 1 - columns : columns]
    suppressed = jnp.asarray(iou(field, dy, dx) >= iou_threshold)
    suppressed = suppressed.at[rows - 1, columns - 1].set(True)

    def pick(rank, _):
        best = jnp.argmin(rank, axis=-1)  # [B]
        location = jnp.stack([best // columns, best % columns], -1)  # [B, 2]
        valid = rank.min(-1) < locations
        near = jax.vmap(
            lambda at: lax.dynamic_slice(
                suppressed, (rows - 1 - at[0], columns - 1 - at[1]), (rows, columns)
            )
        )(location)
        rank = jnp.where(near.reshape(b, locations), locations, rank)
        return rank, (jnp.where(valid[:, None], location, 0), valid)

    _, (kept, valid) = lax.scan(pick, rank, length=k)  # [K, B, 2], [K, B]
    corners = field.corner(kept.swapaxes(0, 1)).astype(jnp.int32)
    return corners, valid.swapaxes(0, 1)


def _most(field, iou_threshold, rows, columns) -> int:
    """Bound the number of kept patches: of a block that overlaps, one can be kept."""
    side = 1
    while side < max(rows, columns) and iou(field, side, side) >= iou_threshold:
        side += 1
    return -(-rows // side) * -(-columns // side)


def select_boxes(
    scores: jax.Array, boxes: jax.Array, *, k: int, iou_threshold: float
) -> tuple[jax.Array, jax.Array]:
    """Select the strongest boxes that overlap little, wherever they are.

    As `select`, for boxes of any places and sizes: those of several maps, say.

    Args:
      scores: [B, L]; NaN is never visited, and of equals the first comes first.
      boxes: [B, L, 4] float32, (top, left, bottom, right).
      k: number of boxes wanted, K.
      iou_threshold: a box that overlaps a kept one this much or more is not kept.

    Returns:
      Indices [B, K] int32, strongest first, and a mask [B, K]: False where fewer exist.
    """
    area = jnp.prod(boxes[..., 2:] - boxes[..., :2], -1)

    def pick(state, _):
        scores, free = state
        best = jnp.where(free, scores, -jnp.inf).argmax(-1)
        # Minus infinity is an ordinary value: the first free one then.
        best = jnp.where(free[jnp.arange(len(best)), best], best, free.argmax(-1))
        exists = free.any(-1)
        own = jnp.take_along_axis(boxes, best[:, None, None], 1)  # [B, 1, 4]
        low = jnp.maximum(boxes[..., :2], own[..., :2])
        high = jnp.minimum(boxes[..., 2:], own[..., 2:])
        shared = jnp.prod(jnp.maximum(high - low, 0), -1)
        union = area + jnp.take_along_axis(area, best[:, None], 1) - shared
        free &= shared < iou_threshold * union
        free = free.at[jnp.arange(len(best)), best].set(False)
        return (scores, free), (best.astype(jnp.int32), exists)

    _, (best, exists) = lax.scan(pick, (scores, ~jnp.isnan(scores)), length=k)
    return best.T, exists.T


def take(images: jax.Array, rows: jax.Array | None) -> jax.Array:
    """Return the images [B, ...] at `rows` [B] int32, or all of them where it is None."""
    return images if rows is None else images[rows]


def crop(
    images: jax.Array, corners: jax.Array, size: int, rows: jax.Array | None = None
) -> jax.Array:
    """Cut patches out of images, pixel for pixel.

    Args:
      images: [M, H, W, C], any type.
      corners: [B, K, 2] int32; a patch that would leave the image is moved inside.
      size: side P in pixels.
      rows: [B] int32, the image of each row of corners; by default one after the other.
        Only the pixels of the patches are read, not the whole images.

    Returns:
      [B, K, P, P, C].
    """
    rows = jnp.arange(corners.shape[0]) if rows is None else rows
    shape = (1, size, size, images.shape[-1])

    def one(row, corner):
        return lax.dynamic_slice(images, (row, corner[0], corner[1], 0), shape)[0]

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(rows, corners)


def crop_scales(
    images: jax.Array,
    corners: jax.Array,
    branch: jax.Array,
    sizes: tuple[int, ...],
    size: int,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Cut patches of each image's own size out of it, and bring them to one size.

    Every size is cut and one is kept: shapes are static, and cutting costs little beside
    a network. Patches that have the size already are copied pixel for pixel.

    Args:
      images: [M, H, W, C], any type.
      corners: [B, K, 2] int32, as in `crop`.
      branch: [B] int32, which of the sizes.
      sizes: sides of the patches in pixels.
      size: side P of the result.
      rows: as in `crop`.

    Returns:
      [B, K, P, P, C]: of the images' type if `size` is the only size, else float32.
    """
    if sizes == (size,):
        return crop(images, corners, size, rows)
    scaled = [_cut(images, corners, side, size, rows) for side in sizes]
    return jnp.stack(scaled)[branch, jnp.arange(branch.shape[0])]


def _cut(images, corners, side, size, rows):
    pixels = crop(images, corners, side, rows).astype(jnp.float32)
    if side == size:
        return pixels
    flat = resize(pixels.reshape(-1, *pixels.shape[2:]), size)
    return flat.reshape(*pixels.shape[:2], *flat.shape[1:])


def _bicubic(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Return PyTorch's bicubic with align_corners and a = -0.75, 1-D.

    Returns:
      Which 4 pixels make each new one, [after, 4], and their weights.
    """
    centres = np.linspace(0, before - 1, after)[:, None]
    taps = np.floor(centres).astype(int) + np.arange(-1, 3)
    d = abs(centres - taps)
    weights = np.where(
        d <= 1,
        (1.25 * d - 2.25) * d**2 + 1,
        ((-0.75 * d + 3.75) * d - 6) * d + 3,
    )
    return np.clip(taps, 0, before - 1), weights.astype(np.float32)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Resize whole images to P x P as the authors do for the glance (2022, Sec. 3.4).

    PyTorch's bicubic with align_corners=True and no antialiasing: two small matrix
    products, and on CPU sums of 4 rows and 4 columns, which take a quarter of their time.
    The weights of a pixel add up to 1, so normalising may come after it, on fewer pixels.

    Args:
      images: [B, H, W, C], uint8 or float.
      size: side P in pixels, at least 2.

    Returns:
      [B, P, P, C], of the images' type if that is a float, else float32.
    """
    if size < 2:
        raise ValueError(f"`size` is {size}; allowed is 2 or more")
    return lax.platform_dependent(
        images,
        cpu=functools.partial(_resize_taps, size=size),
        default=functools.partial(_resize_dot, size=size),
    )


def _float(images):
    return images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32


def _resize_taps(images, size):
    dtype = _float(images)
    for axis in (1, 2):
        taps, weights = _bicubic(images.shape[axis], size)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        images = sum(
            images.take(tap, axis).astype(dtype) * weight.reshape(shape).astype(dtype)
            for tap, weight in zip(taps.T, weights.T)
        )
        # Else XLA computes the rows again for each of the columns' taps.
        images = lax.optimization_barrier(images)
    return images


def _resize_dot(images, size):
    images, matrices = images.astype(_float(images)), []
    for before in images.shape[1:3]:
        taps, weights = _bicubic(before, size)
        matrix = np.zeros((size, before), np.float32)
        np.add.at(matrix, (np.arange(size)[:, None], taps), weights)
        matrices.append(jnp.asarray(matrix, images.dtype))
    rows, columns = matrices
    return jnp.einsum("ph,bhwc,qw->bpqc", rows, images, columns)
