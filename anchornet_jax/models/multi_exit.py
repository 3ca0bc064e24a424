"""What networks with several exits have in common: how they are called, and their parts.

Besides `logits, out = model.apply(variables, images)` such a network runs exit by exit,
and computes for each only what this exit needs (MSDNet's "lazy evaluation", Huang et al.,
2018, Sec. 4):

    model.exits  # how many
    carried = images
    for k in range(model.exits):
        carried, logits = model.apply(variables, carried, exit=k, method="advance")

`carried` is {name: map [B, h, w, C]} of the maps that later exits read, whose names are
`model.carries(k)`. A name always means the same map: one that is only passed on comes back
as the same object.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers


class MultiExit(nn.Module):
    """A network with several exits; a subclass has `exits`, `carries` and `advance`.

    Attributes:
      num_classes: N.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
      strided: convolutions of stride 2 in each exit before its mean; 2 as published.
    """

    num_classes: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    strided: int = 2

    def carries(self, exit: int) -> tuple[str, ...]:
        """Return the names of the maps that exits after `exit`, 0-based, read."""
        raise NotImplementedError

    def advance(
        self, carried: jax.Array | dict[str, jax.Array], *, exit: int, train=False
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Go from one exit to the next.

        Args:
          carried: images [B, H, W, 3], normalised, for the first exit; else the maps that
            the exit before returned.
          exit: 0-based.
          train: use and update the batch's statistics.

        Returns:
          The maps that later exits read, and logits [B, N] float32.
        """
        raise NotImplementedError

    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits [B, N] of the last exit and `{"exit_logits": [B, E, N]}`.

        In training, all exits' logits [B, E, N] and nothing else.

        Args:
          images: [B, H, W, 3], normalised; any size.
          train: use and update the batch's statistics.
        """
        carried, answers = images, []
        for k in range(self.exits):
            carried, logits = self.advance(carried, exit=k, train=train)
            answers.append(logits)
        logits = jnp.stack(answers, 1)
        return (logits, {}) if train else (logits[:, -1], {"exit_logits": logits})

    def conv_bn_relu(self, train: bool):
        """Return `conv_bn_relu` with the network's settings."""
        return functools.partial(
            conv_bn_relu, train=train, axis_name=self.axis_name, dtype=self.dtype
        )


def conv_bn_relu(x: jax.Array, features: int, names=("net_0", "net_1"), **kwargs):
    """Convolve, normalise, rectify; arguments are those of `layers.conv_bn`."""
    return nn.relu(layers.conv_bn(x, features, names, **kwargs))


def bottleneck(x: jax.Array, features: int, conv, *, factor: int, stride: int = 1):
    """Squeeze by a 1x1 convolution, then convolve 3x3 to so many features.

    Args:
      x: [B, h, w, C].
      features: channels of the result.
      conv: `conv_bn_relu` with the network's settings.
      factor: the middle has `features` times so many channels, at most C.
      stride: of the 3x3 convolution.
    """
    x = conv(x, min(x.shape[-1], factor * features))
    names = ("net_3", "net_4")
    return conv(x, features, names, kernel=3, padding=1, stride=stride)


def stem(image: jax.Array, features: tuple[int, ...], conv) -> list[jax.Array]:
    """Return maps [B, h, w, C] from fine to coarse, each half as large as the one before.

    The first is a quarter of the image's size. To be called inside a module.
    """
    names = ("layers_0_0", "layers_0_1")
    x = conv(image, features[0], names, kernel=7, stride=2, padding=3, use_bias=True)
    maps = [layers.max_pool(x, 3, 2, 1)]
    for scale, channels in enumerate(features[1:], 1):
        strided = functools.partial(conv, kernel=3, stride=2, padding=1)
        maps.append(layers.Scope(strided, name=f"layers_{scale}")(maps[-1], channels))
    return maps


def classify(x: jax.Array, num_classes: int, conv, strided: int = 2) -> jax.Array:
    """Return an exit's logits [B, N] float32 of its map [B, h, w, C].

    `strided` convolutions come before the mean over locations, see `MultiExit`.

    Deviates: the mean is over the whole map; the published nets average 2x2 locations,
    which is the same at 224 pixels and impossible at most other sizes.
    """
    halve = functools.partial(conv, kernel=3, stride=2, padding=1)
    for n in range(strided):
        x = layers.Scope(halve, name=f"m_{n}")(x, x.shape[-1])
    return nn.Dense(num_classes, kernel_init=layers.TORCH_LINEAR, name="linear")(
        x.mean((1, 2), dtype=jnp.float32)
    )
