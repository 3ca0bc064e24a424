"""MobileNetV3, and the block that it shares with EfficientNet.

Searching for MobileNetV3 (Howard et al., 2019), Table 1. Initialisation and dropout are
torchvision's.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze-excite, project; added to the input.

    Attributes:
      conv_bn: `layers.conv_bn` with the network's settings.
      kernel: side of the depthwise convolution.
      expanded: channels in the middle.
      out: channels of the result.
      stride: of the depthwise convolution.
      activation: follows the expansion and the depthwise convolution.
      excite: makes the squeeze-excite layer, given its name; or None.
      drop: applied to what is added to the input.
      padding: of the depthwise convolution; None for half its kernel.
      names: (convolution, BatchNorm) of the expansion, the depthwise convolution and the
        projection; torchvision's, numbered through what there is, where it is empty.
    """

    conv_bn: Callable
    kernel: int
    expanded: int
    out: int
    stride: int
    activation: Callable
    excite: Callable | None = None
    drop: Callable = lambda x: x
    padding: int | str | None = None
    names: tuple[tuple[str, str], ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        numbered = (f"block_{i}" for i in itertools.count())

        def conv_bn(part, x, features, **kwargs):
            if self.names:
                names = self.names[part]
            else:
                name = next(numbered)
                names = (f"{name}_0", f"{name}_1")
            return self.conv_bn(x, features, names, **kwargs)

        y = x
        if self.expanded != x.shape[-1]:
            y = self.activation(conv_bn(0, y, self.expanded))
        y = conv_bn(
            1,
            y,
            self.expanded,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.kernel // 2 if self.padding is None else self.padding,
            groups=self.expanded,
        )
        y = self.activation(y)
        if self.excite:
            y = self.excite(name=next(numbered))(y)
        y = conv_bn(2, y, self.out)
        return x + self.drop(y) if self.stride == 1 and x.shape == y.shape else y


class V3Row(NamedTuple):
    """One row of MobileNetV3, Table 1: kernel, exp size, #out, SE, NL, s."""

    kernel: int
    expanded: int
    out: int
    excite: bool
    activation: Callable
    stride: int


RE, HS = nn.relu, nn.hard_swish
# fmt: off
V3_LARGE = (
    V3Row(3,  16,  16, False, RE, 1),
    V3Row(3,  64,  24, False, RE, 2),
    V3Row(3,  72,  24, False, RE, 1),
    V3Row(5,  72,  40, True,  RE, 2),
    V3Row(5, 120,  40, True,  RE, 1),
    V3Row(5, 120,  40, True,  RE, 1),
    V3Row(3, 240,  80, False, HS, 2),
    V3Row(3, 200,  80, False, HS, 1),
    V3Row(3, 184,  80, False, HS, 1),
    V3Row(3, 184,  80, False, HS, 1),
    V3Row(3, 480, 112, True,  HS, 1),
    V3Row(3, 672, 112, True,  HS, 1),
    V3Row(5, 672, 160, True,  HS, 2),
    V3Row(5, 960, 160, True,  HS, 1),
    V3Row(5, 960, 160, True,  HS, 1),
)
# fmt: on


class MobileNetV3(nn.Module):
    """MobileNetV3-Large.

    Attributes:
      num_classes: N.
      width: factor of all channels.
      dropout: rate before the classifier, in training.
      hidden: features that the classifier reads; 0 for 1280 times `width`.
      relative: an expansion is a multiple of the block's scaled input, as timm has it, not
        a scaled number itself, as torchvision; without `width` they are the same.
      epsilon: of BatchNorm.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    width: float = 1.0
    dropout: float = 0.2
    hidden: int = 0
    relative: bool = False
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits [B, N], the last map and what the classifier reads.

        `{"features": [B, h, w, C], "pooled": [B, F]}`.

        Args:
          images: [B, H, W, 3], normalised.
          train: use and update the batch's statistics; needs the rng `dropout`.
        """
        conv_bn = functools.partial(
            layers.conv_bn,
            train=train,
            axis_name=self.axis_name,
            dtype=self.dtype,
            norm={"epsilon": self.epsilon, "momentum": 0.99},
        )
        excite = functools.partial(
            layers.SqueezeExcite,
            names=("fc1", "fc2"),
            activation=nn.relu,
            gate=nn.hard_sigmoid,
            dtype=self.dtype,
        )
        wide = functools.partial(scaled, factor=self.width)
        x = stem(conv_bn, images, wide(16), nn.hard_swish)
        for i, row in enumerate(V3_LARGE, 1):
            expanded = wide(row.expanded)
            if self.relative:
                before = V3_LARGE[i - 2].out if i > 1 else row.expanded
                expanded = scaled(x.shape[-1], row.expanded / before)
            squeezed = layers.make_divisible(expanded // 4)
            x = MBConv(
                conv_bn,
                kernel=row.kernel,
                expanded=expanded,
                out=wide(row.out),
                stride=row.stride,
                activation=row.activation,
                excite=functools.partial(excite, squeezed) if row.excite else None,
                name=f"features_{i}",
            )(x)
        x, pooled = head(conv_bn, x, 6, f"features_{i + 1}", nn.hard_swish)
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.01))
        features = self.hidden or wide(1280)
        hidden = nn.hard_swish(dense(features, name="classifier_0")(pooled))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        logits = dense(self.num_classes, name="classifier_3")(hidden)
        return logits, {"features": x, "pooled": hidden}


def scaled(channels: int, factor: float) -> int:
    """Return a multiple of the channels, rounded to what can be divided by eight."""
    return layers.make_divisible(channels * factor)


def stem(conv_bn, images, features: int, activation: Callable) -> jax.Array:
    """Return the first map, half as large as the images [B, H, W, 3]."""
    names = ("features_0_0", "features_0_1")
    return activation(conv_bn(images, features, names, kernel=3, stride=2, padding=1))


def head(conv_bn, x, expansion: int, name: str, activation: Callable):
    """Return the last map [B, h, w, C] and its mean over all places [B, C]."""
    x = conv_bn(x, expansion * x.shape[-1], (f"{name}_0", f"{name}_1"))
    x = activation(x)
    return x, x.mean((1, 2), dtype=jnp.float32)
