"""GFNet: what follows the encoders, a classifier of all that was seen and a policy.

Glance and Focus (Wang et al., 2020), Sec. 3 and Appendix A. The encoders are networks of
this package: `encode` gives their features. Parameters of the recurrent units are named
and laid out as PyTorch's, gates in the order reset, update, new.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from anchornet_jax.models import layers

DEVIATION = 0.1  # of each coordinate of an action in training, Sec. 3.3


def encode(
    model, variables, images: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return features [B, F], the last map [B, h, w, C] and the encoder's own logits.

    Args:
      model: a network that returns its last map, and its features where these are more
        than the map's mean (MobileNetV3).
      variables: its own.
      images: [B, P, P, 3], normalised.
    """
    return features(*model.apply(variables, images))


def features(
    logits: jax.Array, out: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what `encode` does, of what an encoder returned."""
    maps = out["features"]
    pooled = out.get("pooled")
    if pooled is None:
        pooled = maps.mean((1, 2), dtype=jnp.float32)
    return pooled, maps, logits


class GRU(nn.Module):
    """One step of a gated recurrent unit, as PyTorch defines it.

    Attributes:
      hidden: H.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, state: jax.Array) -> jax.Array:
        """Return the next state [B, H] of an input [B, F] and the state before."""
        rows = 3 * self.hidden
        spread = nn.initializers.uniform(2 / self.hidden**0.5)

        def initial(key, shape):
            return spread(key, shape) - 1 / self.hidden**0.5

        def gates(name, x):
            weight = self.param(f"weight_{name}_l0", initial, (rows, x.shape[-1]))
            bias = self.param(f"bias_{name}_l0", initial, (rows,))
            return jnp.split(x @ weight.T + bias[None], 3, -1)

        given, kept = gates("ih", x), gates("hh", state)
        reset, update = (nn.sigmoid(a + b) for a, b in zip(given[:2], kept[:2]))
        new = jnp.tanh(given[2] + reset * kept[2])
        return (1 - update) * new + update * state


class RecurrentClassifier(nn.Module):
    """A recurrent unit over the features, and a linear layer; for any number of steps.

    Attributes:
      num_classes: N.
      hidden: H.
    """

    num_classes: int
    hidden: int = 1024

    def memory(self, features: int, steps: int) -> int:
        """Return the entries that an image's memory has."""
        return self.hidden

    @nn.compact
    def __call__(
        self, features: jax.Array, memory: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the memory and logits [B, N] after features [B, F], from memory [B, H]."""
        memory = GRU(self.hidden, name="rnn")(features, memory)
        dense = nn.Dense(self.num_classes, kernel_init=layers.TORCH_LINEAR, name="fc")
        return memory, dense(memory)


class CascadeClassifier(nn.Module):
    """A linear layer for each step, over the features of all steps so far.

    Attributes:
      num_classes: N.
      most: steps for which there are layers; the first step has none.
    """

    num_classes: int
    most: int = 5

    def memory(self, features: int, steps: int) -> int:
        """Return the entries that an image's memory has: all features."""
        return features * steps

    @nn.compact
    def __call__(self, seen: jax.Array, step: int = 2) -> jax.Array:
        """Return logits [B, N] of the features [B, step F] of so many steps, 2 or more.

        At initialisation, from those of 2 steps, all layers are made.
        """
        if not 2 <= step <= self.most:
            raise ValueError(f"`step` is {step}; allowed is 2 to {self.most}")
        features = seen.shape[-1] // step
        made = range(2, self.most + 1) if self.is_initializing() else (step,)
        answers = {}
        for t in made:
            given = seen if t == step else jnp.zeros((len(seen), t * features))
            answers[t] = _dense(self.num_classes, f"fc_{t}")(given)
        return answers[step]


class Policy(nn.Module):
    """Where to look next, from the map of what was seen last.

    Attributes:
      num_classes: N of the system that it belongs to.
      hidden: H.
      convolutional: a 1x1 convolution to 32 channels before one linear layer, in place
        of two linear layers.
    """

    num_classes: int
    hidden: int = 1024
    convolutional: bool = False

    @nn.compact
    def __call__(
        self, maps: jax.Array, state: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the state, actions [B, 2] (row, column) in [0, 1] and values [B].

        Args:
          maps: [B, h, w, C]; nothing is learned through them.
          state: [B, H], zero for a new image.
        """
        x = jax.lax.stop_gradient(maps).astype(jnp.float32)
        if self.convolutional:
            conv = layers.Conv(32, name="state_encoder_0")
            x = _dense(self.hidden, "state_encoder_3")(_flat(nn.relu(conv(x))))
        else:
            x = nn.relu(_dense(2048, "state_encoder_0")(_flat(x)))
            x = _dense(self.hidden, "state_encoder_2")(x)
        state = GRU(self.hidden, name="gru")(nn.relu(x), state)
        action = nn.sigmoid(_dense(2, "actor_0")(state))
        return state, action, _dense(1, "critic_0")(state)[:, 0]


def _dense(features, name):
    return nn.Dense(features, kernel_init=layers.TORCH_LINEAR, name=name)


def _flat(x):
    """Flatten maps channel by channel, as the published weights expect."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def corners(actions: jax.Array, image_size: int, size: int) -> jax.Array:
    """Return the corners [..., 2] int32 of patches at actions [..., 2] in [0, 1]."""
    return jnp.floor(actions * (image_size - size)).astype(jnp.int32)


V3_STAGES = (1, 2, 3, 4, 2, 3)  # blocks of each stage of MobileNetV3-Large
V3_LAST, V3_HIDDEN = (
    960,
    1280,
)  # channels of its last map, times its width, and features
EFFICIENT_STAGES = 7
REGNET = (
    (r"^stem\.conv\.", "stem.0."),
    (r"^stem\.bn\.", "stem.1."),
    (r"\.proj\.", ".proj.0."),
    (r"(b\d+)\.bn\.", r"\1.proj.1."),
    (r"\.f\.([abc])\.", r".f.\1.0."),
    (r"\.f\.([abc])_bn\.", r".f.\1.1."),
    (r"f_ex\.0", "fc1"),
    (r"f_ex\.2", "fc2"),
    (r"^head\.fc\.", "fc."),
)


def regnet_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename a RegNet's state dict from pycls' names, which GFNet uses, to torchvision's."""
    found = {}
    for name, array in state.items():
        for pattern, new in REGNET:
            name = re.sub(pattern, new, name)
        name = re.sub(
            r"^s(\d)\.b(\d+)\.",
            lambda m: f"trunk_output.block{m[1]}.block{m[1]}-{int(m[2]) - 1}.",
            name,
        )
        found[name] = array
    return found


def mobilenet_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename a MobileNetV3's state dict from timm's old names to torchvision's.

    The convolution after the mean becomes the linear layer that it is.
    """
    found = {}
    for name, array in state.items():
        array = np.asarray(array)
        if name == "conv_head.weight":
            array = array[:, :, 0, 0]
        found[_v3_name(name)] = array
    return found


def _v3_name(name):
    last = sum(V3_STAGES) + 1
    whole = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": "classifier.0",
        "classifier": "classifier.3",
        "blocks.6.0.conv": f"features.{last}.0",
        "blocks.6.0.bn1": f"features.{last}.1",
    }
    module, _, leaf = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{leaf}"
    _, stage, block, *part = module.split(".")
    stage, block = int(stage), int(block)
    part = _block_part(".".join(part), expands=stage > 0, excites=stage in (2, 4, 5))
    index = sum(V3_STAGES[:stage]) + block + 1
    return f"features.{index}.block.{part}.{leaf}"


def efficientnet_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename an EfficientNet's state dict from timm's old names to torchvision's."""
    return {_efficient_name(name): array for name, array in state.items()}


def _efficient_name(name):
    last = EFFICIENT_STAGES + 1
    whole = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": f"features.{last}.0",
        "bn2": f"features.{last}.1",
        "classifier": "classifier.1",
    }
    module, _, leaf = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{leaf}"
    _, stage, block, *part = module.split(".")
    part = _block_part(".".join(part), expands=stage != "0", excites=True)
    return f"features.{int(stage) + 1}.{block}.block.{part}.{leaf}"


def _block_part(name, expands, excites):
    """Rename a part of a block; torchvision numbers them through what there is."""
    depth, project = int(expands), 1 + expands + excites
    numbers = (
        {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1"}
        | {"conv_pwl": f"{project}.0", "bn3": f"{project}.1"}
        if expands
        else {"conv_dw": "0.0", "bn1": "0.1"}
        | {"conv_pw": f"{project}.0", "bn2": f"{project}.1"}
    )
    numbers |= {
        "se.conv_reduce": f"{depth + 1}.fc1",
        "se.conv_expand": f"{depth + 1}.fc2",
    }
    return numbers[name]
