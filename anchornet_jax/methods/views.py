"""Views: which pixels of an image a network sees.

One table holds the difference between the training stages of Localizing Semantic
Patches (2022), Sec. 3.5: Stage I and the full-image network see the `full` image
(Eq. 3), the glance network the `resized` one (Eq. 4), the patch network the `patches`
that a frozen AnchorNet selects (Eq. 5), and the ablation of Table 3 `random` ones.

The localiser of 2020 gives an image patches of one of three sizes. All patches are resized
to the middle size and classified by one network. Shapes stay static, and code for one
patch size works for both papers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from anchornet_jax.methods import localize, patches, preprocessing


def cut(
    model,
    images: jax.Array,
    found: localize.Localization,
    branch: int = 0,
    network=None,
) -> jax.Array:
    """Cut the localised patches out, as the networks see them: normalised.

    Args:
      model: the localizer.
      images: uint8 [B, H, W, 3].
      found: from `localize`.
      branch: as it was given there. With one, patches keep its size; else those of other
        sizes are brought to `model.field`'s, so that one network takes all of them.
      network: that will look at them, see `preprocessing.normalise`.

    Returns:
      [B, K, P, P, 3].
    """
    if branch:
        cropped = patches.crop(images, found.corners, branch)
        return preprocessing.normalise(cropped, network)
    sizes = tuple(field.size for field in model.fields)
    size = model.field.size
    scaled = patches.crop_scales(images, found.corners, found.branch, sizes, size)
    return preprocessing.normalise(scaled, network)


def _one(images):
    return images[:, None], jnp.ones((len(images), 1), bool)


def _full(images, keys, variables, *, network, **_):
    return _one(preprocessing.normalise(images, network))


def _resized(images, keys, variables, *, localizer, network, **_):
    small = patches.resize(images, localizer.field.size)
    return _one(preprocessing.normalise(small, network))


def _patches(images, keys, variables, *, localizer, network, branch, **selection):
    found = localize.localize(localizer, variables, images, branch=branch, **selection)
    return cut(localizer, images, found, branch, network), found.valid


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


def _random(images, keys, variables, *, localizer, network, k, branch, **_):
    size = branch or localizer.field.size
    corners = random_corners(keys, *images.shape[1:3], size, k)
    pixels = preprocessing.normalise(patches.crop(images, corners, size), network)
    return pixels, jnp.ones(corners.shape[:2], bool)


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
    network=None,
    k: int = 1,
    iou_threshold: float = 0.3,
    preset: str = "",
    branch: int = 0,
    heatmap: str = "predicted",
    size: int = 0,
) -> Callable:
    """Return the view of that name, a function to be called inside a jitted step.

    Args:
      name: a key of `VIEWS`.
      localizer: its receptive field is the patch; `patches` also runs it.
      network: that will see the inputs, see `preprocessing.normalise`; the localiser
        itself sees the images by its own mean and deviation.
      k: patches per image, of `patches` and `random`.
      iou_threshold: of `patches`.
      preset: of `patches`, see `localize`.
      branch: of `patches` and `random`, size in pixels of the branch whose patches are
        seen, as large as they are; 0 for the chosen branch's, brought to one size.
      heatmap: of `patches`, a key of `localize.HEATMAPS`.
      size: side of the patches in pixels, and of `resized`; 0: what a location of the
        localizer sees.

    Returns:
      `view(images, keys, variables) -> (inputs, valid)` with uint8 images [B, H, W, 3],
      random keys [B], the localizer's variables (`None` where not needed), normalised
      inputs [B, T, P, P, 3] and a mask [B, T] of those that exist.

    Raises:
      ValueError: for an unknown view, preset, branch or heatmap, or a size where the
        localizer has several.
    """
    if name not in VIEWS:
        raise ValueError(f"`view` is {name!r}; choose one of {sorted(VIEWS)}")
    localize.check_heatmap(heatmap)
    localizer = localize.of_size(localizer, size)
    if branch:
        localize.branch_index(localizer, branch)
    if preset:
        patches.preset(preset, [field.size for field in localizer.fields])

    def view(images, keys, variables):
        return VIEWS[name](
            images,
            keys,
            variables,
            localizer=localizer,
            network=network,
            k=k,
            iou_threshold=iou_threshold,
            preset=preset,
            branch=branch,
            heatmap=heatmap,
        )

    return view
