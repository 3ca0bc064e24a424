"""BagNet: a ResNet that sees small squares of the image, and averages what they say.

Approximating CNNs with Bag-of-local-Features Models Works Surprisingly Well on ImageNet
(Brendel and Bethge, 2019), Sec. 3 and Appendix. The shape of ResNet-50 without padding,
where most 3x3 convolutions are 1x1: every location of the last map sees q x q pixels, and
the classifier is linear, so the class map says exactly what each square adds. Names are
those of the published state dicts. `bagnet77_low` is what Saccader (Elsayed et al., 2019)
represents images by ("BagNet-77-lowD"): twice as many 3x3 convolutions, and a narrow last
map.

    model = models.create("bagnet33", num_classes=1000)
    logits, out = model.apply(variables, images)
    (heatmap,) = model.contributions(variables, out, logits.argmax(-1))
    heatmap.mean((1, 2))  # the logit
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers, receptive_field

DEPTHS = (3, 4, 6, 3)  # blocks of each group
STRIDES = (2, 2, 2, 1)  # of the first block of each group
EXPANSION = 4  # channels that a block gives out, by its inner ones
# The published networks keep the stem's statistics over a thousand batches.
STEM_NORM = {"momentum": 0.999}


class Block(nn.Module):
    """1x1, square and 1x1 convolution without padding, added to the cropped input.

    Attributes:
      conv_bn: `layers.conv_bn` with the network's settings.
      inner: channels of the first two convolutions.
      kernel: of the second: 3 or 1.
      stride: of the second, and of the projection of the input.
      centred: crop the input on all sides; else at the bottom and right, as published.
    """

    conv_bn: Callable
    inner: int
    kernel: int
    stride: int
    centred: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = EXPANSION * self.inner
        y = nn.relu(self.conv_bn(x, self.inner, ("conv1", "bn1")))
        square = {"kernel": self.kernel, "stride": self.stride}
        y = nn.relu(self.conv_bn(y, self.inner, ("conv2", "bn2"), **square))
        y = self.conv_bn(y, out, ("conv3", "bn3"))
        if self.centred:
            lost = self.kernel // 2
            x = x[:, lost : x.shape[1] - lost, lost : x.shape[2] - lost]
        if self.stride != 1 or x.shape[-1] != out:
            names = ("downsample_0", "downsample_1")
            x = self.conv_bn(x, out, names, stride=self.stride)
        return nn.relu(y + x[:, : y.shape[1], : y.shape[2]])


class BagNet(nn.Module):
    """Bag of local features.

    Attributes:
      num_classes: N.
      squares: blocks of each group that have a 3x3 convolution, the first ones.
      stem: kernels of the first convolutions, of which the last is normalised.
      low: channels of the last map, after a 1x1 convolution; 0: as many as it has.
      centred: as of `Block`.
      width: channels of the stem; those of the groups are inner ones that double.
      depths: blocks of each group.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    squares: tuple[int, ...] = (1, 1, 1, 1)
    stem: tuple[int, ...] = (1, 3)
    low: int = 0
    centred: bool = False
    width: int = 64
    depths: tuple[int, ...] = DEPTHS
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @property
    def table(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Return (kernel, stride) of the square convolutions: the stem's, each group's."""
        return (
            tuple((kernel, 1) for kernel in self.stem),
            *(
                tuple(
                    (3 if i < squares else 1, stride if i == 0 else 1)
                    for i in range(depth)
                )
                for depth, squares, stride in zip(self.depths, self.squares, STRIDES)
            ),
        )

    @property
    def field(self) -> receptive_field.ReceptiveField:
        """Return what a location of the last map sees."""
        return receptive_field.accumulate(row for rows in self.table for row in rows)[
            -1
        ]

    @property
    def fields(self) -> tuple[receptive_field.ReceptiveField, ...]:
        """Return the field of each branch: there is one."""
        return (self.field,)

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify, and return the map that the class map is made of.

        Args:
          images: [B, H, W, 3], normalised; any size from the receptive field up.
          train: use and update the batch's statistics.

        Returns:
          Logits [B, N], and `extracted` [B, G, G, C] with `features`, the map before the
          1x1 convolution of `low` channels, or the same.

        Raises:
          ValueError: if the images are smaller than the receptive field.
        """
        self.field.grid(*images.shape[1:3])
        conv_bn = functools.partial(
            layers.conv_bn, train=train, axis_name=self.axis_name, dtype=self.dtype
        )
        (*first, last), *groups = self.table
        x = images
        for i, (kernel, _) in enumerate(first, 1):
            x = layers.Conv(self.width, kernel, dtype=self.dtype, name=f"conv{i}")(x)
        names = (f"conv{len(self.stem)}", "bn1")
        x = conv_bn(x, self.width, names, kernel=last[0], norm=STEM_NORM)
        x = nn.relu(x)
        for g, rows in enumerate(groups):
            for i, row in enumerate(rows):
                block = Block(
                    conv_bn,
                    self.width * 2**g,
                    *row,
                    self.centred,
                    name=f"layer{g + 1}_{i}",
                )
                x = block(x)
        features = x
        if self.low:
            x = nn.relu(conv_bn(x, self.low, ("low", "bn_low")))
        logits = nn.Dense(self.num_classes, kernel_init=layers.TORCH_LINEAR, name="fc")(
            x.mean((1, 2), dtype=jnp.float32)
        )
        return logits, {"extracted": x, "features": features}

    @staticmethod
    def classify(variables, out) -> tuple[jax.Array, jax.Array]:
        """Return the logits of `__call__` [B, N] and the branch [B] int32: there is one.

        Args:
          variables: of this network.
          out: from `__call__`.
        """
        pooled = out["extracted"].mean((1, 2), dtype=jnp.float32)
        logits = local_logits(variables["params"]["fc"], pooled)
        return logits, jnp.zeros(logits.shape[:1], jnp.int32)

    @staticmethod
    def contributions(variables, out, classes: jax.Array) -> tuple[jax.Array, ...]:
        """Return the class map of one class per image, whose mean is the class' logit.

        Args:
          variables: of this network.
          out: from `__call__`.
          classes: [B] int32.

        Returns:
          One [B, G, G] float32.
        """
        own = variables["params"]["fc"]
        extracted = out["extracted"].astype(jnp.float32)
        maps = jnp.einsum("bhwc,bc->bhw", extracted, own["kernel"].T[classes])
        return (maps + own["bias"][classes][:, None, None],)


def local_logits(classifier, features: jax.Array) -> jax.Array:
    """Return logits [B, N] of vectors [B, C] of the last map, or of their mean.

    Args:
      classifier: its parameters, `kernel` [C, N] and `bias` [N].
      features: [B, C].
    """
    bias = classifier["bias"][None]
    return features.astype(jnp.float32) @ classifier["kernel"] + bias
