"""What a network expects of pixels: the mean and deviation it was trained with.

A network that differs from ImageNet's says so by an attribute `pixels` of its class. Two
networks of a method may differ, so whoever normalises asks the network that will look.
"""

from typing import NamedTuple


class Pixels(NamedTuple):
    """Mean and deviation of each channel, where white is 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's


def of(model) -> Pixels:
    """Return what a network expects; ImageNet's where it says nothing, or is None."""
    return getattr(model, "pixels", IMAGENET)
