"""AnchorNet: a network without padding that points at the patches it decides by.

Localizing Semantic Patches (2022), Sec. 3.2, Table 1, Fig. 3. Every location of the last
feature map sees exactly one patch of the image, so the class activation map (Sec. 3.3,
Eq. 2) ranks patches. Parameter names are those of the published PyTorch state dict with
digits joined by `_`; its `bneck.0.conv1` and `bneck.0.bn1` are never used there and do
not exist here.

    model = AnchorNet(num_classes=1000)
    logits, out = model.apply(variables, images)
    heatmap = model.heatmap(variables, out["features"], logits.argmax(-1))
    corners, valid = patches.select(heatmap, model.field, k=4, iou_threshold=0.3)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers, receptive_field


class Row(NamedTuple):
    """One row of 2022, Table 1: kernel, expansion ratio, output channels, stride."""

    kernel: int
    expansion: float | None
    out: int
    stride: int


STEM = Row(3, None, 16, 2)  # 2022, Table 1: Conv
EXTRACTOR = (  # 2022, Table 1: MBConv; kernel, Exp, Out, s
    Row(3, 1, 16, 2),
    Row(3, 3, 24, 2),
    Row(3, 4, 24, 1),
    Row(3, 4, 48, 1),
    Row(3, 2, 96, 1),
    Row(3, 1.5, 96, 1),
    Row(3, 1.5, 96, 1),
)
FEATURES = 512  # the 1x1 convolution before the classifier, Fig. 3


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze-excite, project; no padding anywhere.

    The residual drops rows and columns at the bottom and right, as the authors do:
    every output still sees only its own receptive field.
    """

    row: Row
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        mean: jax.Array | None = None,
        until_mean: bool = False,
    ) -> jax.Array:
        """Run the block on a map [B, H, W, C], or on a tile of one.

        Args:
          x: the map.
          train: use and update the batch's statistics.
          mean: [B, 1, 1, E] of what squeeze-excite scales; `x`'s own where None.
          until_mean: return what it is the mean of, [B, H', W', E], and stop.
        """
        conv_bn = functools.partial(
            layers.conv_bn, train=train, axis_name=self.axis_name, dtype=self.dtype
        )
        kernel, expansion, out, stride = self.row
        channels, y = x.shape[-1], x
        expanded = int(expansion * channels)
        if expansion != 1:
            y = layers.swish(conv_bn(y, expanded, ("conv1", "bn1")))
        where = {"kernel": kernel, "stride": stride, "groups": expanded}
        y = conv_bn(y, expanded, ("conv2", "bn2"), **where)
        y = layers.swish(y)
        if until_mean:
            return y
        y = layers.SqueezeExcite(
            channels // 4, ("se1", "se2"), dtype=self.dtype, name="se"
        )(y, mean)
        y = conv_bn(y, out, ("conv3", "bn3"))
        if stride == 1 and channels == out:
            y = y + x[:, : y.shape[1], : y.shape[2]]
        return y


class AnchorNet(nn.Module):
    """The patch proposal network of 2022.

    Attributes:
      num_classes: N.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
      field: what a location sees; glance and patches have its size.
      fields: of each branch; here there is one.
      stages: what a location of each stage sees of the stage before, see `stage`.
    """

    num_classes: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    field = receptive_field.accumulate(
        (row.kernel, row.stride) for row in (STEM, *EXTRACTOR)
    )[-1]
    fields = (field,)
    # Of each stage, what a location sees of the map that the stage before returned: the
    # first has the stem and the first block, every other a block.
    stages = tuple(
        receptive_field.accumulate((row.kernel, row.stride) for row in rows)[-1]
        for rows in ((STEM, EXTRACTOR[0]), *((row,) for row in EXTRACTOR[1:]))
    )

    def setup(self):
        shared = {"axis_name": self.axis_name, "dtype": self.dtype}
        self.conv1 = layers.Conv(STEM.out, STEM.kernel, STEM.stride, dtype=self.dtype)
        self.bn1 = layers.batch_norm(**shared)
        self.bneck = [MBConv(row, **shared) for row in EXTRACTOR]
        self.exp_conv = layers.Conv(FEATURES, use_bias=True, dtype=self.dtype)
        self.fc = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.001))

    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify, and return the map that the heatmap is made of.

        Args:
          images: [B, H, W, 3], normalised; any size from the receptive field up.
          train: use and update the batch's statistics.

        Returns:
          Logits [B, N], and `features` [B, G, G, C] with the map they are made of,
          `extracted`.

        Raises:
          ValueError: if the images are smaller than the receptive field.
        """
        self.field.grid(*images.shape[1:3])
        x = images
        for number in range(len(self.stages)):
            x = self.stage(x, number, train=train)
        features = self.exp_conv(x)  # [B, G, G, C]
        pooled = features.mean((1, 2), dtype=jnp.float32)
        return self.fc(pooled), {"features": features, "extracted": x}

    def stage(self, x: jax.Array, number: int, *, train: bool = False, **tile):
        """Run one of the stages, between which a map can be cut into tiles.

        Args:
          x: what the stage before returned; the first takes the images.
          number: from 0, of `stages`.
          train: use and update the batch's statistics.
          **tile: `mean` and `until_mean` of `MBConv`.
        """
        if number == 0:
            x = self.bn1(self.conv1(x), use_running_average=not train)
            x = layers.swish(x)
        return self.bneck[number](x, train=train, **tile)

    @staticmethod
    def classify(variables, out) -> tuple[jax.Array, jax.Array]:
        """Return the logits of `__call__`, with the mean taken before the last layers.

        The mean commutes with the 1x1 convolution and the classifier, which are linear:
        one location goes through them in place of G G. Compiled together with `__call__`
        this drops a quarter of the network, what only its own logits and features need.

        Args:
          variables: of this network.
          out: from `__call__`.

        Returns:
          Logits [B, N] float32, and the branch [B] int32 that localises: there is one.
        """
        params = variables["params"]
        kernel, bias = params["exp_conv"]["kernel"][0, 0], params["exp_conv"]["bias"]
        pooled = out["extracted"].mean((1, 2), dtype=jnp.float32) @ kernel + bias[None]
        logits = pooled @ params["fc"]["kernel"] + params["fc"]["bias"][None]
        return logits, jnp.zeros(logits.shape[:1], jnp.int32)

    @staticmethod
    def heatmap(variables, features: jax.Array, classes: jax.Array) -> jax.Array:
        """Compute the class activation map of one class per image (2022, Eq. 2).

        The mean over channels, as the authors take it, where the paper has the sum;
        the order is the same. Only the weights of the asked class are multiplied: all
        classes would cost 2.4 times the network.

        Args:
          variables: of this network.
          features: [B, G, G, C] from `__call__`.
          classes: [B] int32.

        Returns:
          [B, G, G] float32.
        """
        weights = variables["params"]["fc"]["kernel"].T[classes]  # [B, C]
        maps = jnp.einsum("bhwc,bc->bhw", features.astype(jnp.float32), weights)
        return maps / features.shape[-1]

    @staticmethod
    def contributions(variables, out, classes: jax.Array) -> tuple[jax.Array, ...]:
        """Return what each location adds to one class per image, for each branch.

        The heatmap in the units of the logit, which is the mean over the locations. From
        the map before the last layers, as `classify`.

        Args:
          variables: of this network.
          out: from `__call__`.
          classes: [B] int32.

        Returns:
          One [B, G, G] float32.
        """
        params = variables["params"]
        kernel, bias = params["exp_conv"]["kernel"][0, 0], params["exp_conv"]["bias"]
        weights = params["fc"]["kernel"].T[classes]  # [B, C]
        bias = weights @ bias + params["fc"]["bias"][classes]  # [B]
        extracted = out["extracted"].astype(jnp.float32)
        maps = jnp.einsum("bhwc,bc->bhw", extracted, weights @ kernel.T)
        return (maps + bias[:, None, None],)

    @staticmethod
    def evidence(variables, out) -> tuple[jax.Array, ...]:
        """Return what each location adds to every class, as `contributions` to one.

        The last two layers are linear and become one, so that all classes cost little
        unless there are many: 0.5 M multiply-adds for 18, 28 M for 1000.

        Args:
          variables: of this network.
          out: from `__call__`.

        Returns:
          One [B, G, G, N] float32, whose mean over the locations are the logits.
        """
        params = variables["params"]
        first, last = params["exp_conv"], params["fc"]
        kernel = first["kernel"][0, 0] @ last["kernel"]  # [C, N]
        bias = first["bias"] @ last["kernel"] + last["bias"]
        maps = out["extracted"].astype(jnp.float32) @ kernel
        return (maps + bias[None, None, None],)
