"""Views: which pixels of an image a network sees.

One table holds the difference between the training stages of Localizing Semantic
Patches (2022), Sec. 3.5: Stage I and the full-image network see the `full` image
(Eq. 3), the glance network the `resized` one (Eq. 4), the patch network the `patches`
that a frozen AnchorNet selects (Eq. 5), and the ablation of Table 3 `random` ones.

The localiser of 2020 gives an image patches of one of three sizes. One network takes all
of them, brought to the size of the middle branch: so every program is static, each input
costs the same, and whatever knows one size serves both localisers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from anchornet_jax.methods import patches

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as all published weights expect
STD = (0.229, 0.224, 0.225)


class Localization(NamedTuple):
    """What AnchorNet says of a batch of images."""

    logits: jax.Array  # [B, N]
    heatmap: jax.Array  # [B, G, G] of the predicted class; NaN beyond a smaller grid
    corners: jax.Array  # [B, K, 2] int32, best patch first
    valid: jax.Array  # [B, K] bool
    branch: jax.Array  # [B] int32, which of the localizer's `fields` has the patches


def normalise(images: jax.Array) -> jax.Array:
    """Map uint8 pixels [..., 3] to float32 with ImageNet's mean and deviation."""
    mean, std = (jnp.asarray(v) * 255 for v in (MEAN, STD))
    shape = (1,) * (images.ndim - 1) + (3,)
    return (images.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape)


def localize(
    model,
    variables,
    images: jax.Array,
    *,
    k: int = 1,
    iou_threshold: float = 0.3,
    preset: str = "",
    branch: int = 0,
) -> Localization:
    """Find the patches by which AnchorNet decides (2022, Sec. 3.3; 2020, Algorithm 1).

    Args:
      model: the localizer, of 2022 or 2020.
      variables: its parameters and statistics.
      images: uint8 [B, H, W, 3].
      k: patches per image, K.
      iou_threshold: patches that overlap this much or more are not both kept.
      preset: a key of `patches.PRESETS`, which says both for each branch instead; K is
        the largest.
      branch: size in pixels of the branch that localises all images; 0 for the one that
        the network chooses for each.

    Raises:
      ValueError: for an unknown preset or branch, or patches that cannot be.
    """
    sizes = [field.size for field in model.fields]
    if preset:
        selections = patches.preset(preset, sizes)
    else:
        selections = [patches.Selection(k, iou_threshold, 1.0)] * len(sizes)
    _, out = model.apply(variables, normalise(images))
    logits, chosen = model.classify(variables, out)
    if branch:
        chosen = jnp.full_like(chosen, branch_index(model, branch))
    maps = model.contributions(variables, out, logits.argmax(-1))
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


def cut(model, images: jax.Array, found: Localization, branch: int = 0) -> jax.Array:
    """Cut the localised patches out, as the networks see them: normalised.

    Args:
      model: the localizer.
      images: uint8 [B, H, W, 3].
      found: from `localize`.
      branch: as it was given there. With one, patches keep its size; else those of other
        sizes are brought to `model.field`'s, so that one network takes all of them.

    Returns:
      [B, K, P, P, 3].
    """
    if branch:
        return normalise(patches.crop(images, found.corners, branch))
    sizes = tuple(field.size for field in model.fields)
    size = model.field.size
    return normalise(
        patches.crop_scales(images, found.corners, found.branch, sizes, size)
    )


def _one(images):
    return images[:, None], jnp.ones((len(images), 1), bool)


def _full(images, keys, variables, **_):
    return _one(normalise(images))


def _resized(images, keys, variables, *, localizer, **_):
    return _one(patches.resize(normalise(images), localizer.field.size))


def _patches(images, keys, variables, *, localizer, branch, **selection):
    found = localize(localizer, variables, images, branch=branch, **selection)
    return cut(localizer, images, found, branch), found.valid


def random_corners(keys: jax.Array, height: int, width: int, size: int, k: int):
    """Draw K corners [B, K, 2] per image, uniform over the positions inside it.

    Args:
      keys: [B] one random key per image, so that the draw does not depend on how
        images are spread over devices.
      height: of the images, px.
      width: of the images, px.
      size: side of the patches, px; of all, or [B] of each image's.
      k: patches per image.
    """
    size = jnp.broadcast_to(jnp.asarray(size), keys.shape)
    limit = jnp.stack([height - size + 1, width - size + 1], -1)  # [B, 2]
    draw = jax.vmap(lambda key, limit: jax.random.randint(key, (k, 2), 0, limit[None]))
    return draw(keys, limit)


def _random(images, keys, variables, *, localizer, k, branch, **_):
    size = branch or localizer.field.size
    corners = random_corners(keys, *images.shape[1:3], size, k)
    return normalise(patches.crop(images, corners, size)), jnp.ones(
        corners.shape[:2], bool
    )


VIEWS = {
    "full": _full,
    "resized": _resized,
    "patches": _patches,
    "random": _random,
}


def make(
    name: str,
    localizer,
    *,
    k: int = 1,
    iou_threshold: float = 0.3,
    preset: str = "",
    branch: int = 0,
) -> Callable:
    """Return the view of that name, a function to be called inside a jitted step.

    Args:
      name: a key of `VIEWS`.
      localizer: its receptive field is the patch; `patches` also runs it.
      k: patches per image, of `patches` and `random`.
      iou_threshold: of `patches`.
      preset: of `patches`, see `localize`.
      branch: of `patches` and `random`, size in pixels of the branch whose patches are
        seen, as large as they are; 0 for the chosen branch's, brought to one size.

    Returns:
      `view(images, keys, variables) -> (inputs, valid)` with uint8 images [B, H, W, 3],
      random keys [B], the localizer's variables (`None` where not needed), normalised
      inputs [B, T, P, P, 3] and a mask [B, T] of those that exist.

    Raises:
      ValueError: for an unknown view, preset or branch.
    """
    if name not in VIEWS:
        raise ValueError(f"`view` is {name!r}; choose one of {sorted(VIEWS)}")
    if branch:
        branch_index(localizer, branch)
    if preset:
        patches.preset(preset, [field.size for field in localizer.fields])

    def view(images, keys, variables):
        return VIEWS[name](
            images,
            keys,
            variables,
            localizer=localizer,
            k=k,
            iou_threshold=iou_threshold,
            preset=preset,
            branch=branch,
        )

    return view
