"""RegNetY: widths on a quantised line, grouped convolutions, squeeze-excite.

Designing Network Design Spaces (Radosavovic et al., 2020), Sec. 3.3, Eq. 2 to 4; "Y" is
Sec. 5's name for the variant with squeeze-excite. The head's and the groups' details are
torchvision's.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from anchornet_jax.models import layers

STEM = 32  # channels
SQUEEZE = 0.25  # of the block's input


def stages(
    depth: int, w0: int, wa: float, wm: float, group_width: int
) -> tuple[tuple[int, int], ...]:
    """Return (blocks, channels) of every stage.

    Args:
      depth: blocks in all.
      w0: channels where the line starts, Eq. 2.
      wa: its slope per block, Eq. 2.
      wm: ratio of the channels of one stage to those before it, Eq. 3 and 4.
      group_width: channels of a group; divides the channels of every stage.
    """
    line = w0 + wa * np.arange(depth)
    powers = np.round(np.log(line / w0) / np.log(wm))
    widths = np.round(w0 * wm**powers / 8) * 8
    return tuple(
        (int(count), layers.make_divisible(width, min(group_width, int(width))))
        for width, count in zip(*np.unique(widths, return_counts=True))
    )


class Block(nn.Module):
    """1x1, grouped 3x3, squeeze-excite and 1x1, added to the projected input.

    Attributes:
      conv_bn: `layers.conv_bn` with the network's settings.
      out: channels of the result, and of the 3x3 convolution.
      stride: of the 3x3 convolution.
      group_width: channels of a group.
      dtype: type of the computation.
    """

    conv_bn: Callable
    out: int
    stride: int
    group_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def transform(y):
            spatial = {"kernel": 3, "stride": self.stride, "padding": 1}
            groups = self.out // self.group_width
            y = nn.relu(self.conv_bn(y, self.out, ("a_0", "a_1")))
            y = self.conv_bn(y, self.out, ("b_0", "b_1"), groups=groups, **spatial)
            y = layers.SqueezeExcite(
                round(SQUEEZE * x.shape[-1]),
                ("fc1", "fc2"),
                activation=nn.relu,
                dtype=self.dtype,
                name="se",
            )(nn.relu(y))
            return self.conv_bn(y, self.out, ("c_0", "c_1"))

        y = layers.Scope(transform, name="f")(x)
        if self.stride != 1 or x.shape[-1] != self.out:
            x = self.conv_bn(x, self.out, ("proj_0", "proj_1"), stride=self.stride)
        return nn.relu(x + y)


class RegNet(nn.Module):
    """RegNetY of any size.

    Attributes:
      num_classes: N.
      depth, w0, wa, wm, group_width: see `stages`.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    depth: int
    w0: int
    wa: float
    wm: float
    group_width: int
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
            layers.conv_bn,
            train=train,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )

        def stage(x, name, blocks, channels):
            for i in range(blocks):
                x = Block(
                    conv_bn,
                    channels,
                    stride=2 if i == 0 else 1,
                    group_width=min(self.group_width, channels),
                    dtype=self.dtype,
                    name=f"{name}-{i}",
                )(x)
            return x

        def trunk(x):
            shape = (self.depth, self.w0, self.wa, self.wm, self.group_width)
            for i, row in enumerate(stages(*shape), 1):
                x = layers.Scope(stage, name=f"block{i}")(x, f"block{i}", *row)
            return x

        spatial = {"kernel": 3, "stride": 2, "padding": 1}
        x = nn.relu(conv_bn(images, STEM, ("stem_0", "stem_1"), **spatial))
        x = layers.Scope(trunk, name="trunk_output")(x)
        dense = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.normal(0.01), name="fc"
        )
        return dense(x.mean((1, 2), dtype=jnp.float32)), {"features": x}
