"""AnchorNet of 2020: three branches see patches of three sizes, and one is chosen.

Localizing Multi-scale Semantic Patches (2020), Sec. 3.2 and 3.3, Tables 1 and 2, Fig. 2.
No code of it was published. Where the paper is silent its numbers decide: 1.6 M
parameters and 0.5 G multiply-adds. Counted for 1,000 classes at 224 pixels:

| squeeze-excite: where, and its width | parameters, with / without the three classifiers of training | multiply-adds |
|---|---|---|
| **the block's output, a quarter of it** | **1.55 M** / 1.26 M | **485 M** |
| in the middle, a quarter of the input | 1.71 M / 1.42 M | 486 M |
| in the middle, a quarter of the output | 1.71 M / 1.42 M | 486 M |
| in the middle, a sixteenth of it (the SE paper's) | 1.76 M / 1.47 M | 486 M |
| in the middle, a quarter of it (MobileNetV3's) | 2.52 M / 2.23 M | 486 M |

The first is what many PyTorch versions of MobileNetV3 do. Of the readings in which branches
share no layers, it is closest to the paper's parameter count. Sharing the three equal bottlenecks of the attention
branches would take 0.10 M from the second row; a bottleneck that expands 16 channels to
16, as the table can be read, adds 3 M multiply-adds. 92 M of the multiply-adds are class
maps of all classes, as in the paper; `classify` does with 0.3 M.

    model = MultiScaleAnchorNet(num_classes=1000)
    logits, out = model.apply(variables, images)  # of the chosen branch
    heatmaps = model.contributions(variables, out, logits.argmax(-1))  # one per branch
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers, receptive_field
from anchornet_jax.models.mobilenet import HS, RE, V3Row

STEM = V3Row(3, 16, 16, False, HS, 2)  # 2020, Table 1: conv2d, which expands nothing
# fmt: off
HEAD = (  # 2020, Table 1: bneck; kernel, Exp, Out, SE, NL, s
    V3Row(3,  16, 16, False, RE, 2),
    V3Row(3,  72, 24, False, RE, 2),
    V3Row(1,  88, 24, False, RE, 1),
    V3Row(1,  96, 40, True,  HS, 1),
    V3Row(1, 240, 40, True,  HS, 1),
    V3Row(1, 240, 40, True,  HS, 1),
    V3Row(1, 120, 48, True,  HS, 1),
    V3Row(3, 144, 48, True,  HS, 1),
    V3Row(3, 288, 96, True,  HS, 1),
)
BRANCHES = (  # 2020, Table 2: two bottlenecks, and that of the attention branch
    (
        V3Row(3, 480, 96, True, HS, 1),
        V3Row(1, 576, 96, True, HS, 1),
        V3Row(1, 192, 96, True, HS, 1),
    ),
    (
        V3Row(3, 480, 96, True, HS, 1),
        V3Row(5, 576, 96, True, HS, 1),
        V3Row(1, 192, 96, True, HS, 1),
    ),
    (
        V3Row(5, 480, 96, True, HS, 1),
        V3Row(5, 576, 96, True, HS, 1),
        V3Row(1, 192, 96, True, HS, 1),
    ),
)
# fmt: on


class Bottleneck(nn.Module):
    """Expand, depthwise convolution, project, squeeze-excite; no padding anywhere.

    The shortcut is the middle of the input, which stays in the middle of what each
    location sees.

    Attributes:
      row: of Table 1 or 2, its channels scaled.
      conv_bn: `layers.conv_bn` with the network's settings.
    """

    row: V3Row
    conv_bn: functools.partial

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, expanded, out, excite, activation, stride = self.row
        y = x
        if expanded != x.shape[-1]:
            y = activation(self.conv_bn(y, expanded, ("conv1", "bn1")))
        depthwise = {"kernel": kernel, "stride": stride, "groups": expanded}
        y = activation(self.conv_bn(y, expanded, ("conv2", "bn2"), **depthwise))
        y = self.conv_bn(y, out, ("conv3", "bn3"))
        if excite:
            y = layers.SqueezeExcite(
                max(1, out // 4),
                ("fc1", "fc2"),
                activation=RE,
                gate=nn.hard_sigmoid,
                dtype=self.conv_bn.keywords["dtype"],
                name="se",
            )(y)
        if stride > 1 or x.shape[-1] != out:
            return y
        height, width = y.shape[1:3]
        lost = (x.shape[1] - height) // 2
        return y + x[:, lost : lost + height, lost : lost + width]


def attend(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the spatial attention map of 2020, Eqs. 1 to 5.

    Args:
      x: [B, G, G, C], X of the attention branch.
      weights: [B, G, G], X after its 1x1 convolution to one channel (before Eq. 1).

    Returns:
      [B, G, G] float32, which sums to 1 over the locations.
    """
    b, rows, columns, _ = x.shape
    x = x.reshape(b, rows * columns, -1).astype(jnp.float32)  # [B, L, C]
    weights = jax.nn.softmax(weights.reshape(b, -1).astype(jnp.float32))  # Eq. 1
    channels = jax.nn.softmax(jnp.einsum("blc,bl->bc", x, weights))  # Eqs. 2, 3
    spatial = jax.nn.softmax(jnp.einsum("blc,bc->bl", x, channels))  # Eqs. 4, 5
    return spatial.reshape(b, rows, columns)


def decide(probabilities: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Choose class and branch from what the branches say (2020, Eqs. 6 to 8).

    The class is the one that two branches or more predict, else the most confident
    branch's. Of the branches that predict it, the most confident localises. Among equals
    the lower class and the narrower branch win.

    Args:
      probabilities: [B, 3, N], softmax of each branch.

    Returns:
      class [B] int32 and branch [B] int32, an index from the narrowest to the widest.
    """
    branches = probabilities.shape[1]
    y, p = probabilities.argmax(-1), probabilities.max(-1)  # Eq. 6, [B, 3]
    votes = (y[:, :, None] == y[:, None]).sum(-1)  # [B, 3], for each one's class
    first = jnp.where(votes.max(-1) >= 2, votes.argmax(-1), p.argmax(-1))  # Eq. 7
    chosen = jnp.take_along_axis(y, first[:, None], 1)  # [B, 1]
    said = jnp.take_along_axis(
        probabilities, jnp.repeat(chosen[:, None], branches, 1), 2
    )
    branch = ((p == said[..., 0]) * p).argmax(-1)  # Eq. 8
    return chosen[:, 0].astype(jnp.int32), branch.astype(jnp.int32)


def _field(rows):
    return receptive_field.accumulate((row.kernel, row.stride) for row in rows)[-1]


class MultiScaleAnchorNet(nn.Module):
    """The localiser of 2020.

    Attributes:
      num_classes: N.
      width: factor of all channels.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
      fields: what a location of each branch sees, from the narrowest.
      field: the middle one; glance and patches have its size.
    """

    num_classes: int
    width: float = 1.0
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    fields = tuple(_field((STEM, *HEAD, *rows)) for rows in BRANCHES)
    field = fields[1]

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify, and return the maps by which each branch decides.

        Args:
          images: [B, H, W, 3], normalised; any size from the widest field up.
          train: use and update the batch's statistics, and run the classifiers that
            only training has.

        Returns:
          Logits [B, N] of the chosen branch, whose class is the one chosen (unless a
          branch gives two classes the very same probability), and

          - `branch`: [B] int32, chosen by `decide`;
          - `branch_logits`: [B, 3, N];
          - `extracted`: of each branch [B, G, G, C], what its class maps are made of;
          - `evidence`: of each branch [B, G, G, N] float32, the class maps times the
            attention map; their mean over the locations are its logits;
          - `attention`: of each branch [B, G, G] float32, of mean 1.

          In training, logits [B, 6, N]: the branches', then those of their attention
          branches' own classifiers.

        Raises:
          ValueError: if the images are smaller than the widest field; it names the
            branches that fit.
        """
        check_size(images.shape[1], images.shape[2])
        conv_bn = functools.partial(
            layers.conv_bn, train=train, axis_name=self.axis_name, dtype=self.dtype
        )

        def block(x, row, name):
            scaled = {
                key: self._scaled(getattr(row, key)) for key in ("expanded", "out")
            }
            return Bottleneck(row._replace(**scaled), conv_bn, name=name)(x)

        stem = {"kernel": STEM.kernel, "stride": STEM.stride}
        x = conv_bn(images, self._scaled(STEM.out), ("conv1", "bn1"), **stem)
        x = STEM.activation(x)
        for i, row in enumerate(HEAD):
            x = block(x, row, f"head_{i}")
        extracted, evidence, attention, extra = [], [], [], []
        for field, (first, second, last) in zip(self.fields, BRANCHES):
            name = f"b{field.size}"
            y = block(block(x, first, f"{name}_0"), second, f"{name}_1")
            attended = block(y, last, f"{name}_attention")
            maps, spatial = self._branch(y, attended, name)
            extracted.append(y)
            evidence.append(maps)
            attention.append(spatial)
            if train or self.is_initializing():  # its parameters exist from the start
                pooled = attended.mean((1, 2), dtype=jnp.float32)
                extra.append(
                    nn.Dense(self.num_classes, name=f"{name}_training")(pooled)
                )
        logits = jnp.stack([maps.mean((1, 2)) for maps in evidence], 1)  # [B, 3, N]
        if train:
            return jnp.concatenate([logits, jnp.stack(extra, 1)], 1), {}
        _, branch = decide(jax.nn.softmax(logits))
        out = {
            "branch": branch,
            "branch_logits": logits,
            "extracted": tuple(extracted),
            "evidence": tuple(evidence),
            "attention": tuple(attention),
        }
        return jnp.take_along_axis(logits, branch[:, None, None], 1)[:, 0], out

    @staticmethod
    def classify(variables, out) -> tuple[jax.Array, jax.Array]:
        """Return logits and branch of `__call__`, averaging before the classifier.

        The mean over the locations, weighted by attention, commutes with the classifier,
        which then sees one location. Compiled together with `__call__` this drops the
        class maps, which only its own logits need: 92 M of 485 M multiply-adds.

        Args:
          variables: of this network.
          out: from `__call__`.

        Returns:
          Logits [B, N] float32 of the chosen branch, and that branch [B] int32.
        """
        logits = []
        for kernel, bias, x, spatial in _classifiers(variables, out):
            pooled = (x.astype(jnp.float32) * spatial[..., None]).mean((1, 2))
            logits.append(pooled @ kernel + spatial.mean((1, 2))[:, None] * bias[None])
        logits = jnp.stack(logits, 1)  # [B, 3, N]
        _, branch = decide(jax.nn.softmax(logits))
        return jnp.take_along_axis(logits, branch[:, None, None], 1)[:, 0], branch

    def _branch(self, y, attended, name):
        """Return class maps times attention [B, G, G, N], and the attention [B, G, G].

        Deviates: the attention map is scaled to mean 1. As printed it sums to 1 and is
        averaged over the grid as well, which divides the logits by its 225 to 441
        locations: with the usual initialisation nothing would be learned.
        """
        conv = functools.partial(layers.Conv, use_bias=True, dtype=self.dtype)
        weights = conv(1, name=f"{name}_weights")(attended)[..., 0]
        spatial = attend(attended, weights)
        spatial = spatial * math.prod(spatial.shape[1:])
        maps = conv(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            name=f"{name}_classes",
        )(y)
        return maps.astype(jnp.float32) * spatial[..., None], spatial

    def _scaled(self, channels):
        return layers.make_divisible(channels * self.width)

    @staticmethod
    def contributions(variables, out, classes: jax.Array) -> tuple[jax.Array, ...]:
        """Return what each location adds to one class per image (M of 2020, Sec. 3.3).

        The mean over the locations is the branch's logit.

        Args:
          variables: of this network.
          out: from `__call__`.
          classes: [B] int32.

        Returns:
          [B, G, G] float32 per branch.
        """
        maps = []
        for kernel, bias, x, spatial in _classifiers(variables, out):
            own = jnp.einsum("bhwc,bc->bhw", x.astype(jnp.float32), kernel.T[classes])
            maps.append((own + bias[classes][:, None, None]) * spatial)
        return tuple(maps)

    @staticmethod
    def evidence(variables, out) -> tuple[jax.Array, ...]:
        """Return what each location adds to every class, [B, G, G, N] per branch."""
        return out["evidence"]


def _classifiers(variables, out):
    """Yield each branch's classifier, kernel [C, N] and bias [N], and its maps."""
    for field, x, spatial in zip(
        MultiScaleAnchorNet.fields, out["extracted"], out["attention"]
    ):
        own = variables["params"][f"b{field.size}_classes"]
        yield own["kernel"][0, 0], own["bias"], x, spatial


def check_size(height: int, width: int) -> None:
    """Refuse images that not all branches can see.

    Raises:
      ValueError: it names the branches that fit.
    """
    sizes = [field.size for field in MultiScaleAnchorNet.fields]
    if min(height, width) < sizes[-1]:
        fit = [f"B{size}" for size in sizes if size <= min(height, width)]
        raise ValueError(
            f"`image` is {height}x{width} pixels; the three branches need at least "
            f"{sizes[-1]}x{sizes[-1]}, and only {', '.join(fit) or 'none'} would fit"
        )
