"""Receptive-field arithmetic of networks without padding.

Localizing Semantic Patches (2022), Sec. 3.1, Eq. 1. Without padding, every location of
a feature map sees exactly one square of the image; this module says which.

    fields = receptive_field.accumulate([(3, 2), (3, 2), (3, 1)])
    fields[-1]                    # ReceptiveField(size=15, stride=4)
    fields[-1].grid(224, 224)     # (53, 53)
    fields[-1].corner((2, 5))     # (8, 20): top-left pixel of what (2, 5) sees
"""

from collections.abc import Iterable
from typing import NamedTuple


class ReceptiveField(NamedTuple):
    """The square of the image that one location sees: `size` and step, in pixels."""

    size: int
    stride: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the number of locations along y and x (2022, Sec. 3.1).

        Raises:
          ValueError: if the image is smaller than the field.
        """
        if min(height, width) < self.size:
            raise ValueError(
                f"`image` is {height}x{width} pixels; the receptive field is "
                f"{self.size}x{self.size}, so both sides must be at least {self.size}"
            )
        return (height - self.size) // self.stride + 1, (
            width - self.size
        ) // self.stride + 1

    def corner(self, location):
        """Map (row, column) locations to top-left pixels; arrays or tuples [..., 2]."""
        return _scale(location, lambda v: v * self.stride)

    def location(self, corner):
        """Map top-left pixels on the lattice to (row, column): undoes `corner`."""
        return _scale(corner, lambda v: v // self.stride)


def _scale(pair, function):
    return tuple(map(function, pair)) if isinstance(pair, tuple) else function(pair)


def accumulate(layers: Iterable[tuple[int, int]]) -> list[ReceptiveField]:
    """Accumulate (kernel, stride) rows into the field after each layer (2022, Eq. 1).

    Raises:
      ValueError: if there is no row, or a kernel or stride below 1.
    """
    field, fields = ReceptiveField(1, 1), []
    for kernel, stride in layers:
        if kernel < 1 or stride < 1:
            raise ValueError(
                f"`layers` holds {(kernel, stride)}; kernel and stride must be >= 1"
            )
        field = ReceptiveField(
            field.size + (kernel - 1) * field.stride, field.stride * stride
        )
        fields.append(field)
    if not fields:
        raise ValueError("`layers` is empty; at least one (kernel, stride) is needed")
    return fields
