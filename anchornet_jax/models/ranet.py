"""RANet: a small network on a coarse map first, larger ones on finer maps if needed.

Resolution Adaptive Networks for Efficient Inference (Yang et al., 2020), Sec. 3 and
Fig. 3, as the published PyTorch code builds it. 64 channels with factors 4-2-2-1 are the
network of the paper's ImageNet curve, at 0.43 to 3.33 G multiply-adds; 32 are what its
README trains. Each of the sub-networks, coarsest first, has dense blocks with an exit
after each; all but the first start with as many blocks as the sub-network before has,
each of which takes in the maps of that one's block of the same number.

Convolutions start He-normal by outputs, as the published code does but for the stem.
"""

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax.models import layers, multi_exit

SHARE = 4  # of what a fused layer adds, 1 / SHARE comes from the coarser sub-network


class RANet(multi_exit.MultiExit):
    """Resolution adaptive network.

    Attributes:
      channels: of the finest base map.
      growth: channels that a layer adds, before the factor.
      blocks: exits of each sub-network; the i-th has i times so many blocks.
      step: layers of a block.
      factors: of channels, growth and the width of bottlenecks, for each sub-network
        from the coarsest.
    """

    channels: int = 64
    growth: int = 16
    blocks: int = 2
    step: int = 8
    factors: tuple[int, ...] = (4, 2, 2, 1)

    def __post_init__(self):
        super().__post_init__()
        if min(self.channels, self.blocks, self.step) < 1 or self.growth < SHARE:
            raise ValueError(
                f"`channels`, `blocks`, `step` and `growth` are {self.channels}, "
                f"{self.blocks}, {self.step} and {self.growth}; allowed is 1 or more, "
                f"and {SHARE} or more for the growth"
            )

    def setup(self):
        """Name the modules as the published state dicts do."""
        self.FirstLayer = layers.Scope(multi_exit.stem)
        for net in range(len(self.factors)):
            for block in range((net + 1) * self.blocks):
                kind = _fused_block if block < net * self.blocks else _dense_block
                setattr(self, f"scale_flows_{net}_{block}", layers.Scope(kind))
        for k in range(self.exits):
            setattr(self, f"classifier_{k}", layers.Scope(multi_exit.classify))

    @property
    def exits(self) -> int:
        """Return E."""
        return len(self.factors) * self.blocks

    def carries(self, exit: int) -> tuple[str, ...]:
        """Return the names of the maps that exits after `exit`, 0-based, read."""
        net, place = divmod(exit, self.blocks)
        last = net * self.blocks + place
        finer = range(net + 1, len(self.factors))
        names = [_base(other) for other in finer]
        if finer:  # which takes in all blocks of this one
            for block in range(last + 1):
                names.append(_name(net, block))
                names += [_before(net, block)] * self._halves(net, block)
        elif place < self.blocks - 1:
            names.append(_name(net, last))
        return tuple(names)

    def advance(
        self, carried: jax.Array | dict[str, jax.Array], *, exit: int, train=False
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Return what later exits read and this one's logits, see `multi_exit`."""
        conv = self.conv_bn_relu(train)
        net, place = divmod(exit, self.blocks)
        maps = dict(carried) if exit else self._stem(carried, conv)
        block = net * self.blocks + place
        if place:
            x = maps[_name(net, block - 1)]
        else:
            x = self._fuse(maps, net, conv)
        growth, factor = self.growth * self.factors[net], self.factors[net]
        module = getattr(self, f"scale_flows_{net}_{block}")
        x = module(x, self.step, growth, factor, conv)
        maps[_name(net, block)] = x
        logits = getattr(self, f"classifier_{exit}")(
            x, self.num_classes, conv, self.strided
        )
        return {name: maps[name] for name in self.carries(exit)}, logits

    def _halves(self, net, block) -> bool:
        """Say whether a block ends at half the size, with half the channels."""
        return block < net * self.blocks and (block + 1) % self.blocks == 0

    def _stem(self, images, conv):
        channels = tuple(self.channels * factor for factor in self.factors[::-1])
        maps = self.FirstLayer(images, channels, conv)[::-1]
        return {_base(net): x for net, x in enumerate(maps)}

    def _fuse(self, maps, net, conv):
        """Run a sub-network's fused blocks; return what the block after them reads."""
        x = maps[_base(net)]
        for block in range(net * self.blocks):
            module = getattr(self, f"scale_flows_{net}_{block}")
            before, own, x = module(
                x,
                self._coarser(maps, net - 1, block),
                self._halves(net, block),
                self.growth * self.factors[net],
                (self.factors[net], self.factors[net - 1]),
                conv,
            )
            maps[_name(net, block)] = own
            if self._halves(net, block):
                maps[_before(net, block)] = before
        return x

    def _coarser(self, maps, net, block) -> list[jax.Array]:
        """Return what went into each layer of a block, and what came out of the last.

        Layers append channels, so that all but a smaller output are the first channels
        of one map.
        """
        last = maps[_name(net, block)]
        halves = self._halves(net, block)
        before = maps[_before(net, block)] if halves else last
        growth = self.growth * self.factors[net]
        first = before.shape[-1] - (self.step - halves) * growth
        return [before[..., : first + j * growth] for j in range(self.step)] + [last]


def _base(net):
    return f"base {net}"


def _name(net, block):
    return f"network {net} block {block}"


def _before(net, block):
    return f"network {net} block {block} before halving"


def _dense_block(x, step, growth, factor, conv):
    """Append `growth` channels so many times."""

    def layer(x):
        own = layers.Scope(multi_exit.bottleneck, name="conv_normal")
        return jnp.concatenate([x, own(x, growth, conv, factor=factor)], -1)

    for j in range(step):
        x = layers.Scope(layer, name=f"layers_{j}")(x)
    return x


def _fused_block(x, coarser, halve, growth, factors, conv):
    """Append channels of the block's own and of the coarser sub-network's maps.

    Args:
      x: [B, h, w, C].
      coarser: what each layer of the coarser block read, and what the last one gave.
      halve: end at half the size, with half the channels.
      growth: channels that a layer adds.
      factors: of bottlenecks on own and on coarser maps.
      conv: `conv_bn_relu` with the network's settings.

    Returns:
      The last layer's input, its output, and what the block gives.
    """

    def layer(x, low, stride):
        def part(name, x, features, factor, stride=1):
            module = layers.Scope(multi_exit.bottleneck, name=name)
            return module(x, features, conv, factor=factor, stride=stride)

        up = part("conv_up", low, growth // SHARE, factors[1])
        own = part("conv_normal", x, growth - growth // SHARE, factors[0], stride)
        size = own.shape[1:3]
        return jnp.concatenate([resize(x, size), resize(up, size), own], -1)

    *given, last = coarser
    for j, low in enumerate(given):
        before, stride = x, 2 if halve and j == len(given) - 1 else 1
        x = layers.Scope(layer, name=f"layers_{j}")(x, low, stride)
    up = layers.Scope(conv, name="conv_last")(last, x.shape[-1] // SHARE)
    out = jnp.concatenate([x, resize(up, x.shape[1:3])], -1)
    if halve:
        out = layers.Scope(conv, name="trans")(out, out.shape[-1] // 2)
    return before, x, out


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize maps [B, h, w, C] bilinearly; the corners' centres stay (`align_corners`)."""
    for axis, wanted in enumerate(size, 1):
        x = x if x.shape[axis] == wanted else _interpolate(x, axis, wanted)
    return x


def _interpolate(x, axis, size):
    given = x.shape[axis]
    place = np.arange(size) * (given - 1) / max(size - 1, 1)
    low = np.minimum(place.astype(int), max(given - 2, 0))
    high = np.minimum(low + 1, given - 1)
    weight = np.expand_dims(place - low, [n for n in range(4) if n != axis])
    weight = jnp.asarray(weight, x.dtype)
    # Rows are gathered, not multiplied by a matrix: no multiply-adds to be counted.
    below, above = (
        jnp.take(x, jnp.asarray(rows), axis, mode="clip") for rows in (low, high)
    )
    return below + weight * (above - below)
