"""EfficientNet, and the EfficientNet-Lite that phones run: one table.

EfficientNet (Tan and Le, 2019), Table 1. Initialisation, dropout and stochastic depth are
torchvision's. EfficientNet-Lite is TensorFlow's network for phones (tensorflow/tpu,
models/official/efficientnet/lite): no squeeze-excite, ReLU6 in place of Swish, and stem,
head and the number of blocks in the first and last stage are the same whatever the
multipliers. Its names are those of the PyTorch files that carry its ImageNet weights.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers, mobilenet, pixels


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
LITE_NAMES = (  # of a block's convolutions and their BatchNorms, in PyTorch's files
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
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
        """Return logits [B, N], the last map and what the classifier reads.

        `{"features": [B, h, w, C], "pooled": [B, C]}`.

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
        channels = mobilenet.scaled(32, self.width)
        x = mobilenet.stem(conv_bn, images, channels, layers.swish)
        for i, (row, name, stride) in enumerate(blocks):
            rate = self.stochastic_depth * i / len(blocks)
            x = mobilenet.MBConv(
                conv_bn,
                kernel=row.kernel,
                expanded=mobilenet.scaled(x.shape[-1], row.expansion),
                out=mobilenet.scaled(row.out, self.width),
                stride=stride,
                activation=layers.swish,
                excite=functools.partial(excite, x.shape[-1] // 4),
                drop=dropout(rate, broadcast_dims=(1, 2, 3)),  # whole images
                name=name,
            )(x)
        stage = len(EFFICIENT_B0) + 1
        x, pooled = mobilenet.head(conv_bn, x, 4, f"features_{stage}", layers.swish)
        pooled = dropout(self.dropout)(pooled)
        dense = _classifier(self.num_classes, "classifier_1")
        return dense(pooled), {"features": x, "pooled": pooled}


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0, or a multiple of it.

    It pads as TensorFlow does, for the size that it sees; published PyTorch code pads
    for one size, whatever it sees.

    Attributes:
      num_classes: N.
      width: factor of the channels of all stages.
      depth: factor of the blocks of all stages but the first and the last.
      dropout: rate before the classifier, in training.
      stochastic_depth: as of `EfficientNet`.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
      pixels: what it was trained on: (x - 127) / 128.
    """

    num_classes: int
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    stochastic_depth: float = 0.2
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    pixels = pixels.Pixels(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits [B, N] and the last map, `{"features": [B, h, w, C]}`.

        Args:
          images: [B, H, W, 3], normalised by `pixels`.
          train: use and update the batch's statistics; needs the rng `dropout`.
        """
        conv_bn = functools.partial(
            layers.conv_bn,
            train=train,
            axis_name=self.axis_name,
            dtype=self.dtype,
            norm={"epsilon": 1e-3, "momentum": 0.99},
        )
        dropout = functools.partial(nn.Dropout, deterministic=not train)
        stem = {"kernel": 3, "stride": 2, "padding": layers.SAME}
        x = nn.relu6(conv_bn(images, 32, ("_conv_stem", "_bn0"), **stem))
        blocks = self._blocks()
        for i, (row, stride) in enumerate(blocks):
            rate = self.stochastic_depth * i / len(blocks)
            x = mobilenet.MBConv(
                conv_bn,
                kernel=row.kernel,
                expanded=row.expansion * x.shape[-1],
                out=mobilenet.scaled(row.out, self.width),
                stride=stride,
                activation=nn.relu6,
                drop=dropout(rate, broadcast_dims=(1, 2, 3)),  # whole images
                padding=layers.SAME,
                names=LITE_NAMES,
                name=f"_blocks_{i}",
            )(x)
        x = nn.relu6(conv_bn(x, 1280, ("_conv_head", "_bn1")))
        pooled = dropout(self.dropout)(x.mean((1, 2), dtype=jnp.float32))
        return _classifier(self.num_classes, "_fc")(pooled), {"features": x}

    def _blocks(self):
        """Return the row and the stride of each block."""
        last = len(EFFICIENT_B0) - 1
        return [
            (row, row.stride if i == 0 else 1)
            for stage, row in enumerate(EFFICIENT_B0)
            for i in range(
                row.depth if stage in (0, last) else math.ceil(row.depth * self.depth)
            )
        ]


def _classifier(num_classes: int, name: str) -> nn.Dense:
    limit = num_classes**-0.5
    init = lambda *args: nn.initializers.uniform(2 * limit)(*args) - limit
    return nn.Dense(num_classes, kernel_init=init, name=name)
