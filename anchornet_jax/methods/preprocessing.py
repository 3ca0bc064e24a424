"""Preprocessing: from uint8 pixels to what a network was trained on."""

import jax
import jax.numpy as jnp

from anchornet_jax.models import pixels


def normalise(images: jax.Array, model=None) -> jax.Array:
    """Map uint8 pixels [..., 3] to float32 with a network's mean and deviation.

    Args:
      images: of any leading shape.
      model: the network that will look at them; None for ImageNet's mean and deviation.
    """
    mean, std = (jnp.asarray(v) * 255 for v in pixels.of(model))
    shape = (1,) * (images.ndim - 1) + (3,)
    return (images.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape)
