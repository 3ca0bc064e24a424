"""Preprocessing: from uint8 pixels to what networks were trained on."""

import jax
import jax.numpy as jnp

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as all published weights expect
STD = (0.229, 0.224, 0.225)


def normalise(images: jax.Array) -> jax.Array:
    """Map uint8 pixels [..., 3] to float32 with ImageNet's mean and deviation."""
    mean, std = (jnp.asarray(v) * 255 for v in (MEAN, STD))
    shape = (1,) * (images.ndim - 1) + (3,)
    return (images.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape)
