"""Trained networks on disk: each a directory that says what it is.

networks.save(directory, {"name": "anchornet", "num_classes": 10}, variables)
network = networks.load(directory)
logits, out = network.model.apply(network.variables, images)
"""

from anchornet_jax import models
from anchornet_jax.models import Network
from anchornet_jax.runtime import checkpoint

__all__ = ["Network", "load", "save"]


def save(directory, description: dict, variables: dict, **metadata) -> None:
    """Write a network whole or not at all.

    Args:
      directory: an earlier network there is replaced.
      description: arguments of `models.create`.
      variables: `params` and `batch_stats`.
      **metadata: anything JSON can hold, such as `classes`.
    """
    about = {"model": description, **metadata}
    checkpoint.save_variables(directory, variables, about)


def load(directory) -> Network:
    """Read a network written by `save`.

    Raises:
      ValueError: if the directory holds none, or one that is damaged or of a newer
        version.
    """
    variables, metadata = checkpoint.load_variables(directory)
    return Network(models.create(**metadata["model"]), variables, metadata)
