"""How much each place says for a class: exact, since places are averaged linearly.

Localizing Multi-scale Semantic Patches (2020), Sec. 3.2 and 3.3; 2022, Eq. 2.

    found = attribution.attribution(model, variables, images)
    found.contributions[0].mean((1, 2))  # the logit of found.classes
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Attribution(NamedTuple):
    """What each patch contributes to a class.

    Attributes:
      classes: [B] int32.
      branch: [B] int32, the branch that decides; 0 where a network has one.
      contributions: of each branch [B, G, G] float32, one per patch.
    """

    classes: jax.Array
    branch: jax.Array
    contributions: tuple[jax.Array, ...]


def attribution(model, variables, images: jax.Array, classes=None) -> Attribution:
    """Return what each patch contributes to the logit of a class.

    The mean of a branch's contributions over its patches is its logit, bias included.
    That is exact, but a contribution is not a function of its patch alone: squeeze-excite
    scales the channels by gates that are computed from the mean over the whole image, and
    the attention map of 2020 is normalised over it. Other pixels can therefore change how
    much a patch contributes, though not where its evidence comes from: with the gates and
    the attention map held fixed, nothing outside the patch has an effect.

    Args:
      model: AnchorNet of 2022 or 2020.
      variables: its parameters and statistics.
      images: [B, H, W, 3], normalised.
      classes: [B] int32; the predicted ones by default.
    """
    _, out = model.apply(variables, images)
    logits, branch = model.classify(variables, out)
    if classes is None:
        classes = logits.argmax(-1)
    return Attribution(classes, branch, model.contributions(variables, out, classes))


def class_map(variables, features: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the class activation map of any network that averages its last map.

    Zhou et al. (2016): the last map, weighted as the classifier weights its mean.

    Args:
      variables: of the network, whose classifier is one linear layer on that mean.
      features: [B, h, w, C], the last map, `out["features"]`.
      classes: [B] int32.

    Returns:
      [B, h, w] float32, in the units of the logit, without the bias.

    Raises:
      ValueError: if there is no such layer, or several.
    """
    channels = features.shape[-1]
    kernels = [
        layer["kernel"]
        for layer in variables["params"].values()
        if "kernel" in layer
        and layer["kernel"].ndim == 2
        and len(layer["kernel"]) == channels
    ]
    if len(kernels) != 1:
        raise ValueError(
            f"`variables` hold {len(kernels)} linear layers of {channels} channels; a "
            "class activation map needs one, which classifies the mean of the last map"
        )
    weights = kernels[0].T[classes]  # [B, C]
    return jnp.einsum("bhwc,bc->bhw", features.astype(jnp.float32), weights)
