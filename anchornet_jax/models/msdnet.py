"""MSDNet: dense layers at several scales at once, exits at the coarsest.

Multi-Scale Dense Networks for Resource Efficient Image Classification (Huang et al.,
2018), Sec. 4 and Fig. 2, with the widths of the published PyTorch networks. `base` 7 and
`step` 7 give the published curve, whose exits cost 0.50, 1.34, 2.22, 2.96 and 3.25 G
multiply-adds: each map is computed by the first exit that needs it ("lazy evaluation",
Sec. 4), so that before an exit at layer L, scale s of S is there up to layer L - (S - s).

Convolutions start as the paper says, He-normal by outputs; the PyTorch code means to and,
by an error, keeps its library's default.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from anchornet_jax.models import layers, multi_exit


class Layer(NamedTuple):
    """Where a layer stands, and the scales it is for; 0 is the finest.

    Attributes:
      block: that it belongs to; an exit comes after each.
      place: in the block, where the stem and transitions take places too.
      given: finest scale that it reads.
      finest: finest scale that it makes; where that is coarser, a transition follows.
    """

    block: int
    place: int
    given: int
    finest: int

    @property
    def drops(self) -> bool:
        """Whether a scale ends here."""
        return self.finest > self.given


def table(base: int, step: int, exits: int, scales: int) -> tuple[Layer, ...]:
    """Return all layers; a scale is dropped after each of `scales` equal parts."""
    interval = -(-(base + (exits - 1) * step) // scales)
    rows = []
    for block in range(exits):
        place = 0 if block else 1  # the stem comes first
        for _ in range(step if block else base):
            before = len(rows)
            row = Layer(
                block, place, max(0, before - 1) // interval, before // interval
            )
            rows.append(row)
            place += 1 + row.drops
    return tuple(rows)


class Part(NamedTuple):
    """What one exit computes and leaves: maps as (layer, scale), layer 0 the stem."""

    computes: tuple[tuple[int, int], ...]
    leaves: tuple[tuple[int, int], ...]


def reads(rows: tuple[Layer, ...], layer: int, scale: int) -> list[tuple[int, int]]:
    """Return the maps from which one is computed: of its own scale, of the finer one."""
    if layer == 0:
        return [(0, scale - 1)] if scale else []
    finer = scale > rows[layer - 1].given
    return [(layer - 1, scale), *[(layer - 1, scale - 1)] * finer]


@functools.cache
def schedule(base: int, step: int, exits: int, scales: int) -> tuple[Part, ...]:
    """Return what each exit computes: what it needs and no earlier exit did."""
    rows, done, parts = table(base, step, exits, scales), set(), []
    for k in range(exits):
        own, waiting = set(), [(base + k * step, scales - 1)]
        while waiting:
            node = waiting.pop()
            if node not in done | own:
                own.add(node)
                waiting += reads(rows, *node)
        done |= own
        parts.append(own)
    left = []
    for k in range(exits):
        later = set().union(*parts[k + 1 :])
        left.append({r for node in later for r in reads(rows, *node)} - later)
    return tuple(Part(*(tuple(sorted(n)) for n in both)) for both in zip(parts, left))


class MSDNet(multi_exit.MultiExit):
    """Multi-scale dense network.

    Attributes:
      base: layers before the first exit.
      step: layers between exits.
      exits: E.
      channels: of the finest scale's first map.
      growth: channels that a layer adds to the finest scale.
      factors: of channels, growth and the width of bottlenecks, for each scale.
    """

    base: int = 7
    step: int = 7
    exits: int = 5
    channels: int = 32
    growth: int = 16
    factors: tuple[int, ...] = (1, 2, 4, 4)

    def __post_init__(self):
        super().__post_init__()
        if min(self.base, self.step, self.exits, self.channels, self.growth) < 1:
            raise ValueError(
                f"`base`, `step`, `exits`, `channels` and `growth` are {self.base}, "
                f"{self.step}, {self.exits}, {self.channels} and {self.growth}; allowed "
                "is 1 or more"
            )

    def setup(self):
        """Name the modules as the published state dicts do."""
        self.blocks_0_0 = layers.Scope(multi_exit.stem)
        for row in self._rows:
            setattr(self, f"blocks_{row.block}_{row.place}", layers.Scope(_scale))
            if row.drops:
                transition = layers.Scope(_transition)
                setattr(self, f"blocks_{row.block}_{row.place + 1}", transition)
        for k in range(self.exits):
            setattr(self, f"classifier_{k}", layers.Scope(multi_exit.classify))

    @property
    def _rows(self):
        return table(*self._shape)

    @property
    def _shape(self):
        return self.base, self.step, self.exits, len(self.factors)

    def carries(self, exit: int) -> tuple[str, ...]:
        """Return the names of the maps that exits after `exit`, 0-based, read."""
        return tuple(_name(*node) for node in schedule(*self._shape)[exit].leaves)

    def advance(
        self, carried: jax.Array | dict[str, jax.Array], *, exit: int, train=False
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Return what later exits read and this one's logits, see `multi_exit`."""
        conv, rows = self.conv_bn_relu(train), self._rows
        maps = carried if exit else self._stem(carried, conv)
        maps = dict(maps)
        for node in schedule(*self._shape)[exit].computes:
            if node[0]:
                maps[_name(*node)] = self._map(rows, maps, *node, conv)
        last = maps[_name(self.base + exit * self.step, len(self.factors) - 1)]
        logits = getattr(self, f"classifier_{exit}")(
            last, self.num_classes, conv, self.strided
        )
        return {name: maps[name] for name in self.carries(exit)}, logits

    def _stem(self, images, conv):
        channels = tuple(self.channels * factor for factor in self.factors)
        maps = self.blocks_0_0(images, channels, conv)
        return {_name(0, scale): x for scale, x in enumerate(maps)}

    def _map(self, rows, maps, layer, scale, conv):
        """Compute one scale's map after a layer, and after the transition behind it."""
        row, read = rows[layer - 1], reads(rows, layer, scale)
        sources = [(maps[_name(*node)], self.factors[node[1]]) for node in read]
        module = getattr(self, f"blocks_{row.block}_{row.place}")
        index, growth = scale - row.finest, self.growth * self.factors[scale]
        x = module(index, *sources, growth=growth, conv=conv)
        if not row.drops:
            return x
        return getattr(self, f"blocks_{row.block}_{row.place + 1}")(index, x, conv)


def _name(layer, scale):
    return f"layer {layer} scale {scale}"


def _scale(index, *sources, **kwargs):
    """Run a layer on one scale, the `index`-th of those that it makes."""
    return layers.Scope(_grow, name=f"layers_{index}")(*sources, **kwargs)


def _grow(own, finer=None, *, growth, conv):
    """Append `growth` channels to a scale: of itself, and half of the finer scale.

    Args:
      own: the scale's map [B, h, w, C], and its factor of bottlenecks.
      finer: the same of the finer scale [B, 2h, 2w, C'], None where there is none.
      growth: channels.
      conv: `conv_bn_relu` with the network's settings.
    """

    def part(name, source, features, stride):
        module, (x, factor) = layers.Scope(multi_exit.bottleneck, name=name), source
        return module(x, features, conv, factor=factor, stride=stride)

    parts = [own[0]]
    if finer is not None:
        growth //= 2
        parts.append(part("conv_down", finer, growth, 2))
    parts.append(part("conv_normal", own, growth, 1))
    return jnp.concatenate(parts, -1)


def _transition(index, x, conv):
    """Halve a scale's channels."""

    return layers.Scope(conv, name=f"m_{index}")(x, x.shape[-1] // 2)
