"""How much each patch says for a class: exact, since patches are averaged linearly.

Localizing Multi-scale Semantic Patches (2020), Sec. 3.2 and 3.3; 2022, Eq. 2.

    found = attribution.attribution(model, variables, images)
    found.contributions[0].mean((1, 2))  # the logit of found.classes
"""

from typing import NamedTuple

import jax


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
