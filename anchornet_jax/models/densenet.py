"""DenseNet: every layer reads the maps of all layers before it.

Densely Connected Convolutional Networks (Huang et al., 2017), Table 1, the variants with
bottlenecks and compression ("BC").
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers


def _norm_relu(x, name, *, train, **norm):
    return nn.relu(
        layers.batch_norm(use_running_average=not train, name=name, **norm)(x)
    )


def _layer(x, growth, conv, norm_relu):
    """Append `growth` channels to a map."""
    y = conv(4 * growth, name="conv1")(norm_relu(x, "norm1"))
    y = conv(growth, 3, padding=1, name="conv2")(norm_relu(y, "norm2"))
    return jnp.concatenate([x, y], axis=-1)


def _transition(x, conv, norm_relu):
    """Halve channels and sides."""
    x = conv(x.shape[-1] // 2, name="conv")(norm_relu(x, "norm"))
    return layers.average_pool(x, 2, 2)


class Features(nn.Module):
    """All of the network but its classifier."""

    depths: tuple[int, ...]
    growth: int
    conv: Callable
    norm_relu: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = {"conv": self.conv, "norm_relu": self.norm_relu}

        def block(x, depth):
            for i in range(1, depth + 1):
                layer = layers.Scope(_layer, name=f"denselayer{i}")
                x = layer(x, self.growth, **parts)
            return x

        x = self.conv(2 * self.growth, 7, stride=2, padding=3, name="conv0")(x)
        x = layers.max_pool(self.norm_relu(x, "norm0"), 3, 2, 1)
        for i, depth in enumerate(self.depths, 1):
            if i > 1:
                x = layers.Scope(_transition, name=f"transition{i - 1}")(x, **parts)
            x = layers.Scope(block, name=f"denseblock{i}")(x, depth)
        return self.norm_relu(x, "norm5")


class DenseNet(nn.Module):
    """Four dense blocks, and between them transitions to half the channels and sides.

    Attributes:
      num_classes: N.
      depths: layers of each block.
      growth: channels that a layer adds.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    depths: tuple[int, ...]
    growth: int = 32
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits [B, N] and the last map, `{"features": [B, h, w, C]}`.

        Args:
          images: [B, H, W, 3], normalised.
          train: use and update the batch's statistics.
        """
        shared = {"dtype": self.dtype}
        conv = functools.partial(layers.Conv, kernel_init=layers.KAIMING_IN, **shared)
        norm_relu = functools.partial(
            _norm_relu, train=train, axis_name=self.axis_name, **shared
        )
        x = Features(self.depths, self.growth, conv, norm_relu, name="features")(images)
        logits = nn.Dense(
            self.num_classes, kernel_init=layers.TORCH_LINEAR, name="classifier"
        )(x.mean((1, 2), dtype=jnp.float32))
        return logits, {"features": x}
