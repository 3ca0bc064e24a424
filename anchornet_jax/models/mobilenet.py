"""MobileNetV3 and EfficientNet: one block, two tables.

Searching for MobileNetV3 (Howard et al., 2019), Table 1, and EfficientNet (Tan and Le,
2019), Table 1. Initialisation, dropout and stochastic depth are torchvision's.
"""

import functools
import itertools
import math
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
    """

    conv_bn: Callable
    kernel: int
    expanded: int
    out: int
    stride: int
    activation: Callable
    excite: Callable | None = None
    drop: Callable = lambda x: x

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names = (f"block_{i}" for i in itertools.count())

        def conv_bn(x, features, **kwargs):
            name = next(names)
            return self.conv_bn(x, features, (f"{name}_0", f"{name}_1"), **kwargs)

        y = x
        if self.expanded != x.shape[-1]:
            y = self.activation(conv_bn(y, self.expanded))
        y = conv_bn(
            y,
            self.expanded,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.kernel // 2,
            groups=self.expanded,
        )
        y = self.activation(y)
        if self.excite:
            y = self.excite(name=next(names))(y)
        y = conv_bn(y, self.out)
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
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    width: float = 1.0
    dropout: float = 0.2
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits [B, N] and the last map, `{"features": [B, h, w, C]}`.

        Args:
          images: [B, H, W, 3], normalised.
          train: use and update the batch's statistics; needs the rng `dropout`.
        """
        conv_bn = functools.partial(
            layers.conv_bn,
            train=train,
            axis_name=self.axis_name,
            dtype=self.dtype,
            norm={"epsilon": 1e-3, "momentum": 0.99},
        )
        excite = functools.partial(
            layers.SqueezeExcite,
            names=("fc1", "fc2"),
            activation=nn.relu,
            gate=nn.hard_sigmoid,
            dtype=self.dtype,
        )
        scaled = functools.partial(_scaled, factor=self.width)
        x = _stem(conv_bn, images, scaled(16), nn.hard_swish)
        for i, row in enumerate(V3_LARGE, 1):
            expanded = scaled(row.expanded)
            squeezed = layers.make_divisible(expanded // 4)
            x = MBConv(
                conv_bn,
                kernel=row.kernel,
                expanded=expanded,
                out=scaled(row.out),
                stride=row.stride,
                activation=row.activation,
                excite=functools.partial(excite, squeezed) if row.excite else None,
                name=f"features_{i}",
            )(x)
        x, pooled = _head(conv_bn, x, 6, f"features_{i + 1}", nn.hard_swish)
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.01))
        hidden = nn.hard_swish(dense(scaled(1280), name="classifier_0")(pooled))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return dense(self.num_classes, name="classifier_3")(hidden), {"features": x}


class EfficientRow(NamedTuple):
    """One row of EfficientNet, Table 1: expansion, kernel, stride, channels, layers."""

    expansion: int
    kernel: int
    stride: int
    out: int
    depth: int


EFFICIENT_B0 = (
    EfficientRow(1, 3, 1, 16, 1),
    EfficientRow(6, 3, 2, 24, 2),
    EfficientRow(6, 5, 2, 40, 2),
    EfficientRow(6, 3, 2, 80, 3),
    EfficientRow(6, 5, 1, 112, 3),
    EfficientRow(6, 5, 2, 192, 4),
    EfficientRow(6, 3, 1, 320, 1),
)


class EfficientNet(nn.Module):
    """EfficientNet-B0, or a multiple of it.

    Attributes:
      num_classes: N.
      width: factor of all channels.
      depth: factor of each stage's blocks.
      dropout: rate before the classifier, in training.
      stochastic_depth: rate at which the last block is left out in training; it grows
        linearly from the first block on (Huang et al., 2016, Eq. 4).
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    stochastic_depth: float = 0.2
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits [B, N] and the last map, `{"features": [B, h, w, C]}`.

        Args:
          images: [B, H, W, 3], normalised.
          train: use and update the batch's statistics; needs the rng `dropout`.
        """
        conv_bn = functools.partial(
            layers.conv_bn, train=train, axis_name=self.axis_name, dtype=self.dtype
        )
        excite = functools.partial(
            layers.SqueezeExcite, names=("fc1", "fc2"), dtype=self.dtype
        )
        dropout = functools.partial(nn.Dropout, deterministic=not train)
        blocks = [
            (row, f"features_{stage}_{i}", row.stride if i == 0 else 1)
            for stage, row in enumerate(EFFICIENT_B0, 1)
            for i in range(math.ceil(row.depth * self.depth))
        ]
        x = _stem(conv_bn, images, _scaled(32, self.width), layers.swish)
        for i, (row, name, stride) in enumerate(blocks):
            rate = self.stochastic_depth * i / len(blocks)
            x = MBConv(
                conv_bn,
                kernel=row.kernel,
                expanded=_scaled(x.shape[-1], row.expansion),
                out=_scaled(row.out, self.width),
                stride=stride,
                activation=layers.swish,
                excite=functools.partial(excite, x.shape[-1] // 4),
                drop=dropout(rate, broadcast_dims=(1, 2, 3)),  # whole images
                name=name,
            )(x)
        stage = len(EFFICIENT_B0) + 1
        x, pooled = _head(conv_bn, x, 4, f"features_{stage}", layers.swish)
        limit = self.num_classes**-0.5
        init = lambda *args: nn.initializers.uniform(2 * limit)(*args) - limit
        dense = nn.Dense(self.num_classes, kernel_init=init, name="classifier_1")
        return dense(dropout(self.dropout)(pooled)), {"features": x}


def _scaled(channels: int, factor: float) -> int:
    return layers.make_divisible(channels * factor)


def _stem(conv_bn, images, features, activation):
    names = ("features_0_0", "features_0_1")
    return activation(conv_bn(images, features, names, kernel=3, stride=2, padding=1))


def _head(conv_bn, x, expansion, name, activation):
    """Return the last map and its mean over all places."""
    x = conv_bn(x, expansion * x.shape[-1], (f"{name}_0", f"{name}_1"))
    x = activation(x)
    return x, x.mean((1, 2), dtype=jnp.float32)
