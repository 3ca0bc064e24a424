"""Views: which pixels of an image a network sees.

One table holds the difference between the training stages of Localizing Semantic
Patches (2022), Sec. 3.5: Stage I and the full-image network see the `full` image
(Eq. 3), the glance network the `resized` one (Eq. 4), the patch network the `patches`
that a frozen AnchorNet selects (Eq. 5), and the ablation of Table 3 `random` ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from anchornet_jax import patches
from anchornet_jax.models.anchornet import AnchorNet

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as all published weights expect
STD = (0.229, 0.224, 0.225)


class Localization(NamedTuple):
    """What AnchorNet says of a batch of images."""

    logits: jax.Array  # [B, N]
    heatmap: jax.Array  # [B, G, G] of the predicted class
    corners: jax.Array  # [B, K, 2] int32, best patch first
    valid: jax.Array  # [B, K] bool


def normalise(images: jax.Array) -> jax.Array:
    """Map uint8 pixels [..., 3] to float32 with ImageNet's mean and deviation."""
    mean, std = (jnp.asarray(v) * 255 for v in (MEAN, STD))
    shape = (1,) * (images.ndim - 1) + (3,)
    return (images.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape)


def localize(
    model: AnchorNet, variables, images: jax.Array, *, k: int, iou_threshold: float
) -> Localization:
    """Find the patches by which AnchorNet decides (2022, Sec. 3.3).

    Args:
      model: the patch proposal network.
      variables: its parameters and statistics.
      images: uint8 [B, H, W, 3].
      k: patches per image, K.
      iou_threshold: patches that overlap this much or more are not both kept.
    """
    logits, out = model.apply(variables, normalise(images))
    heatmap = model.heatmap(variables, out["features"], logits.argmax(-1))
    corners, valid = patches.select(
        heatmap, model.field, k=k, iou_threshold=iou_threshold
    )
    return Localization(logits, heatmap, corners, valid)


def _one(images):
    return images[:, None], jnp.ones((len(images), 1), bool)


def _full(images, keys, variables, **_):
    return _one(normalise(images))


def _resized(images, keys, variables, *, localizer, **_):
    return _one(patches.resize(normalise(images), localizer.field.size))


def _patches(images, keys, variables, *, localizer, k, iou_threshold):
    found = localize(localizer, variables, images, k=k, iou_threshold=iou_threshold)
    pixels = patches.crop(images, found.corners, localizer.field.size)
    return normalise(pixels), found.valid


def random_corners(keys: jax.Array, height: int, width: int, size: int, k: int):
    """Draw K corners [B, K, 2] per image, uniform over the positions inside it.

    Args:
      keys: [B] one random key per image, so that the draw does not depend on how
        images are spread over devices.
    """
    limit = jnp.array([[height - size + 1, width - size + 1]])
    draw = jax.vmap(lambda key: jax.random.randint(key, (k, 2), 0, limit))
    return draw(keys)


def _random(images, keys, variables, *, localizer, k, **_):
    size = localizer.field.size
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
    name: str, localizer: AnchorNet, *, k: int = 1, iou_threshold: float = 0.3
) -> Callable:
    """Return the view of that name, a function to be called inside a jitted step.

    Args:
      name: a key of `VIEWS`.
      localizer: its receptive field is the patch; `patches` also runs it.
      k: patches per image, of `patches` and `random`.
      iou_threshold: of `patches`.

    Returns:
      `view(images, keys, variables) -> (inputs, valid)` with uint8 images [B, H, W, 3],
      random keys [B], the localizer's variables (`None` where not needed), normalised
      inputs [B, T, P, P, 3] and a mask [B, T] of those that exist.

    Raises:
      ValueError: for an unknown view.
    """
    if name not in VIEWS:
        raise ValueError(f"`view` is {name!r}; choose one of {sorted(VIEWS)}")

    def view(images, keys, variables):
        return VIEWS[name](
            images,
            keys,
            variables,
            localizer=localizer,
            k=k,
            iou_threshold=iou_threshold,
        )

    return view
