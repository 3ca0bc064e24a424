"""Localisers beside that of 2020, which choose among the patches that it has.

Networks of one branch (AnchorNet of 2022, BagNet, Saccader), and those that have learned
nothing. What is compared is where they look: the size of an image's patches is always the
one that the localiser of 2020 chose for it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from anchornet_jax.methods import localize
from anchornet_jax.models import multiply_adds
from anchornet_jax.runtime import networks

RIVALS = ("anchornet_2022", "bagnet", "saccader")  # keys of `config.networks`
HEURISTICS = {name: localize.Heuristic(name) for name in localize.HEURISTICS}


class Rival(NamedTuple):
    """A localiser and what it costs.

    Attributes:
      model: a `localize.Regridded`, a branch for each size.
      variables: of its network; None of one that learned nothing.
      macs: multiply-adds of an image; 0 where nothing was learned.
    """

    model: localize.Regridded
    variables: dict | None
    macs: int


def load(
    paths: Mapping[str, str], sizes: Sequence[int], image_size: int
) -> dict[str, Rival]:
    """Load the rivals that a config names, and add those that learned nothing.

    Args:
      paths: {role: directory}; an empty one is left out.
      sizes: of the patches in pixels.
      image_size: side in pixels.

    Raises:
      ValueError: for a network that cannot localise, or has several branches itself.
    """
    found = {}
    for name in RIVALS:
        if not paths.get(name):
            continue
        network = networks.load(paths[name])
        if len(getattr(network.model, "fields", ())) != 1:
            raise ValueError(
                f"`config.networks.{name}` is {paths[name]!r}, which does not localise "
                "with patches of one size; give an AnchorNet of 2022, BagNet or Saccader"
            )
        made = localize.of_sizes(network.model, sizes)
        macs = multiply_adds.model_macs(network.model, image_size)
        found[name] = Rival(made, network.variables, macs)
    for name, model in HEURISTICS.items():
        found[name] = Rival(localize.of_sizes(model, sizes), None, 0)
    return found
