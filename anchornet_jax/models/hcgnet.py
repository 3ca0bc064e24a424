"""HCGNet: dense connections between modules that fuse two receptive fields by gates.

Gated Convolutional Networks with Hybrid Connectivity for Image Classification (Yang et
al., 2020), Sec. 3, Table 1: the stronger backbones of Localizing Multi-scale Semantic
Patches (2020), Table 3. Modules carry the names of the published state dicts, where
`conv_5x5` is a 3x3 convolution with dilation 2.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from anchornet_jax.models import layers

GROUPS = 4  # of the 3x3 convolution of a module
SHARE = 2  # gates squeeze a module's channels to one in so many
TRANSITION_SHARE = 4  # and those of a transition


def attend(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum a map [B, H, W, C] over its locations, weighted: [B, 1, 1, C] float32.

    Args:
      x: the map.
      weights: [B, H, W, 1], normalised here by a softmax over the locations.
    """
    weights = jax.nn.softmax(weights.astype(jnp.float32), axis=(1, 2))
    return (x * weights).sum((1, 2), keepdims=True)


def _update(parts, conv, norm, share):
    """Mix the contexts of the two branches, channel by channel: [B, 1, 1, C]."""
    contexts = [
        attend(x, conv(1, use_bias=True, name=f"global_context{kind}")(x))
        for kind, x in parts.items()
    ]
    channels = contexts[0].shape[-1]
    vector = functools.partial(conv, use_bias=True)
    both = jnp.concatenate(contexts, -1)
    squeezed = vector(2 * channels // share, name="fcall")(both)
    squeezed = jnp.tanh(norm(name="bn_attention")(squeezed))
    scores = [vector(channels, name=f"fc{kind}")(squeezed) for kind in parts]
    gates = jax.nn.softmax(jnp.stack(scores), axis=0)
    return sum(gate * context for gate, context in zip(gates, contexts))


def _forget(x, conv, norm, share):
    """Return by how much each channel of a map is kept: [B, 1, 1, C], from 0 to 1."""
    vector = functools.partial(conv, use_bias=True)
    context = attend(x, vector(1, name="global_forget_context")(x))
    squeezed = vector(x.shape[-1] // share, name="fc1")(context)
    squeezed = jnp.tanh(norm(name="bn_forget")(squeezed))
    return nn.sigmoid(vector(x.shape[-1], name="fc2")(squeezed))


def _cell(x, rows, share, conv, norm):
    """Bring a map to the channels of the last row, and gate it by its own contexts.

    Args:
      x: [B, H, W, C].
      rows: features and arguments of the first two convolutions.
      share: of the squeezed channels in the gates.
      conv: `layers.Conv` with the network's settings.
      norm: `layers.batch_norm` with them.
    """

    def pre_activated(x, name, features, **where):
        def run(x):
            return conv(features, name="conv", **where)(nn.relu(norm(name="norm")(x)))

        return layers.Scope(run, name=name)(x)

    for name, (features, where) in zip(("conv1_1x1", "conv2_3x3"), rows):
        x = pre_activated(x, name, features, **where)
    depthwise = {"kernel": 3, "groups": x.shape[-1]}
    parts = {
        f"{side}x{side}": pre_activated(
            x,
            f"conv_{side}x{side}",
            x.shape[-1],
            padding=dilation,
            dilation=dilation,
            **depthwise,
        )
        for side, dilation in ((3, 1), (5, 2))
    }
    kept = x * _forget(x, conv, norm, share)
    return (kept + _update(parts, conv, norm, share)).astype(x.dtype)


def _module(x, growth, conv, norm):
    """Append `growth` channels to a map."""
    rows = (
        (4 * growth, {}),
        (growth, {"kernel": 3, "padding": 1, "groups": GROUPS}),
    )
    return jnp.concatenate([x, _cell(x, rows, SHARE, conv, norm)], axis=-1)


def _transition(x, conv, norm):
    """Halve channels and sides."""
    channels = x.shape[-1]
    out = channels // 2
    rows = (
        (channels - (channels - out) // 2, {}),
        (out, {"kernel": 3, "stride": 2, "padding": 1}),
    )
    return _cell(x, rows, TRANSITION_SHARE, conv, norm)


class Features(nn.Module):
    """All of the network but its classifier."""

    depths: tuple[int, ...]
    growths: tuple[int, ...]
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = {"conv": self.conv, "norm": self.norm}

        def block(x, depth, growth):
            for i in range(1, depth + 1):
                x = layers.Scope(_module, name=f"SMG{i}")(x, growth, **parts)
            return x

        for i, (features, stride) in enumerate(((32, 2), (32, 1), (64, 1))):
            where = {"stride": stride, "padding": 1, "name": f"conv{i}"}
            x = self.conv(features, 3, **where)(x)
            x = nn.relu(self.norm(name=f"norm{i}")(x))
        x = layers.max_pool(x, 3, 2, 1)
        for i, (depth, growth) in enumerate(zip(self.depths, self.growths), 1):
            if i > 1:
                x = layers.Scope(_transition, name=f"transition{i - 1}")(x, **parts)
            x = layers.Scope(block, name=f"hybridblock{i}")(x, depth, growth)
        return nn.relu(self.norm(name="norm5")(x))


class HCGNet(nn.Module):
    """Four hybrid blocks, and between them transitions to half the channels and sides.

    BatchNorm of the gates normalises one vector per image: training needs a batch of
    more than one on each device.

    Attributes:
      num_classes: N.
      depths: modules of each block.
      growths: channels that a module of each block adds.
      axis_name: mapped axis over which BatchNorm shares its statistics in training.
      dtype: type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    depths: tuple[int, ...]
    growths: tuple[int, ...]
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
        norm = functools.partial(
            layers.batch_norm,
            use_running_average=not train,
            axis_name=self.axis_name,
            **shared,
        )
        x = Features(self.depths, self.growths, conv, norm, name="features")(images)
        logits = nn.Dense(
            self.num_classes, kernel_init=layers.TORCH_LINEAR, name="classifier"
        )(x.mean((1, 2), dtype=jnp.float32))
        return logits, {"features": x}
