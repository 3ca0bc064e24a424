"""ResNet and ResNeXt: one block, one table.

Deep Residual Learning for Image Recognition (He et al., 2016), Table 1, and Aggregated
Residual Transformations (Xie et al., 2017), Table 1. As torchvision builds them: the 3x3
convolution of a bottleneck carries the stride, not the 1x1 before it ("v1.5").
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers


class Block(nn.Module):
    """Two 3x3 convolutions or, as `bottleneck`, 1x1, 3x3 and 1x1, added to the input.

    Attributes:
      conv_bn: `layers.conv_bn` with the network's settings.
      inner: channels of the 3x3 convolutions.
      out: channels of the last one.
      stride: of the first 3x3 convolution, and of the projection of the input.
    """

    conv_bn: Callable
    inner: int
    out: int
    stride: int = 1
    groups: int = 1
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spatial = {"kernel": 3, "padding": 1, "groups": self.groups}
        if self.bottleneck:
            rows = (
                (self.inner, {}),
                (self.inner, {**spatial, "stride": self.stride}),
                (self.out, {}),
            )
        else:
            rows = (
                (self.inner, {**spatial, "stride": self.stride}),
                (self.out, spatial),
            )
        y = x
        for i, (features, where) in enumerate(rows, 1):
            y = y if i == 1 else nn.relu(y)
            y = self.conv_bn(y, features, (f"conv{i}", f"bn{i}"), **where)
        if self.stride != 1 or x.shape[-1] != self.out:
            names = ("downsample_0", "downsample_1")
            x = self.conv_bn(x, self.out, names, stride=self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Residual network of four stages.

    Attributes:
      num_classes: N.
      depths: blocks of each stage.
      bottleneck: three convolutions per block in place of two.
      width: channels of the first stage, before a bottleneck's expansion by four; they
        double from stage to stage.
      stem_kernel: side of the first convolution's kernel.
      groups: of the 3x3 convolutions.
      group_width: channels of a group at 64 channels of a stage.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    depths: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    stem_kernel: int = 7
    groups: int = 1
    group_width: int = 64
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
        conv_bn = functools.partial(
            layers.conv_bn, train=train, axis_name=self.axis_name, dtype=self.dtype
        )
        x = conv_bn(
            images,
            self.width,
            ("conv1", "bn1"),
            kernel=self.stem_kernel,
            stride=2,
            padding=self.stem_kernel // 2,
        )
        x = layers.max_pool(nn.relu(x), 3, 2, 1)
        for stage, depth in enumerate(self.depths):
            channels = self.width * 2**stage
            for i in range(depth):
                x = Block(
                    conv_bn,
                    inner=channels * self.group_width // 64 * self.groups,
                    out=channels * (4 if self.bottleneck else 1),
                    stride=2 if stage > 0 and i == 0 else 1,
                    groups=self.groups,
                    bottleneck=self.bottleneck,
                    name=f"layer{stage + 1}_{i}",
                )(x)
        pooled = x.mean((1, 2), dtype=jnp.float32)
        logits = nn.Dense(self.num_classes, kernel_init=layers.TORCH_LINEAR, name="fc")(
            pooled
        )
        return logits, {"features": x}
