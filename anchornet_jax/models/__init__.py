"""The networks by name, and what they have in common.

Every network is called as `logits, out = model.apply(variables, images, train=False)`
with images [B, H, W, 3], normalised as `pixels.of(model)` says; logits [B, N] are float32
and `out` holds the maps that somebody may want. In training a network may have several
heads: [B, heads, N].
A name stands for a class and its arguments, nothing more:

    model = models.create("anchornet", num_classes=1000)
"""

from typing import NamedTuple

from flax import linen as nn

from anchornet_jax.models.anchornet import AnchorNet
from anchornet_jax.models.anchornet_2020 import MultiScaleAnchorNet
from anchornet_jax.models.bagnet import BagNet
from anchornet_jax.models.densenet import DenseNet
from anchornet_jax.models.efficientnet import EfficientNet, EfficientNetLite
from anchornet_jax.models.gfnet import CascadeClassifier, Policy, RecurrentClassifier
from anchornet_jax.models.hcgnet import HCGNet
from anchornet_jax.models.mobilenet import MobileNetV3
from anchornet_jax.models.msdnet import MSDNet
from anchornet_jax.models.ranet import RANet
from anchornet_jax.models.regnet import RegNet
from anchornet_jax.models.resnet import ResNet
from anchornet_jax.models.saccader import Saccader

DTYPES = ("float32", "bfloat16")  # of the computation
# Of Saccader: a stem of one convolution, two 3x3 ones in each group, a narrow last map.
BAGNET_77 = {"squares": (2, 2, 2, 2), "stem": (3,), "low": 512, "centred": True}
# An eighth as wide, one block in each group, so that a location sees 33 pixels.
BAGNET_33_SMALL = BAGNET_77 | {"width": 8, "depths": (1, 1, 1, 1), "low": 64}
MODELS = {  # name: (class, arguments)
    "anchornet": (AnchorNet, {}),
    "anchornet_multiscale": (MultiScaleAnchorNet, {}),
    # A third as wide: trains on a CPU.
    "anchornet_multiscale_third": (MultiScaleAnchorNet, {"width": 1 / 3}),
    # One basic block per stage, half as wide: trains on a CPU.
    "resnet10": (ResNet, {"depths": (1, 1, 1, 1), "width": 32, "stem_kernel": 3}),
    # Narrower still: what the same time buys without any exit.
    "resnet10_three_quarters": (
        ResNet,
        {"depths": (1, 1, 1, 1), "width": 24, "stem_kernel": 3},
    ),
    "resnet10_half": (ResNet, {"depths": (1, 1, 1, 1), "width": 16, "stem_kernel": 3}),
    "resnet18": (ResNet, {"depths": (2, 2, 2, 2)}),
    "resnet34": (ResNet, {"depths": (3, 4, 6, 3)}),
    "resnet50": (ResNet, {"depths": (3, 4, 6, 3), "bottleneck": True}),
    "resnet101": (ResNet, {"depths": (3, 4, 23, 3), "bottleneck": True}),
    "resnet152": (ResNet, {"depths": (3, 8, 36, 3), "bottleneck": True}),
    "resnext50_32x4d": (
        ResNet,
        {"depths": (3, 4, 6, 3), "bottleneck": True, "groups": 32, "group_width": 4},
    ),
    "densenet121": (DenseNet, {"depths": (6, 12, 24, 16)}),
    "densenet161": (DenseNet, {"depths": (6, 12, 36, 24), "growth": 48}),
    "densenet169": (DenseNet, {"depths": (6, 12, 32, 32)}),
    "densenet201": (DenseNet, {"depths": (6, 12, 48, 32)}),
    "hcgnet_b": (HCGNet, {"depths": (3, 6, 12, 8), "growths": (32, 48, 64, 96)}),
    "hcgnet_c": (HCGNet, {"depths": (6, 12, 18, 14), "growths": (48, 56, 72, 112)}),
    # One to three modules a block, a quarter of the growth: trains on a CPU.
    "hcgnet_small": (HCGNet, {"depths": (1, 1, 2, 2), "growths": (8, 12, 16, 24)}),
    "mobilenet_v3_large": (MobileNetV3, {}),
    "efficientnet_b0": (EfficientNet, {}),
    "efficientnet_b1": (EfficientNet, {"depth": 1.1}),
    "efficientnet_b2": (EfficientNet, {"width": 1.1, "depth": 1.2, "dropout": 0.3}),
    "efficientnet_b3": (EfficientNet, {"width": 1.2, "depth": 1.4, "dropout": 0.3}),
    "efficientnet_lite0": (EfficientNetLite, {}),
    "efficientnet_lite1": (EfficientNetLite, {"depth": 1.1}),
    "efficientnet_lite2": (
        EfficientNetLite,
        {"width": 1.1, "depth": 1.2, "dropout": 0.3},
    ),
    "regnet_y_400mf": (
        RegNet,
        {"depth": 16, "w0": 48, "wa": 27.89, "wm": 2.09, "group_width": 8},
    ),
    "regnet_y_600mf": (
        RegNet,
        {"depth": 15, "w0": 48, "wa": 32.54, "wm": 2.32, "group_width": 16},
    ),
    "regnet_y_800mf": (
        RegNet,
        {"depth": 14, "w0": 56, "wa": 38.84, "wm": 2.4, "group_width": 16},
    ),
    "regnet_y_1_6gf": (
        RegNet,
        {"depth": 27, "w0": 48, "wa": 20.71, "wm": 2.65, "group_width": 24},
    ),
    # Pixels that a location sees.
    "bagnet9": (BagNet, {"squares": (1, 1, 0, 0)}),
    "bagnet17": (BagNet, {"squares": (1, 1, 1, 0)}),
    "bagnet33": (BagNet, {"squares": (1, 1, 1, 1)}),
    "bagnet77_low": (BagNet, BAGNET_77),
    # An eighth as wide, one block in each group: trains on a CPU.
    "bagnet33_small": (
        BagNet,
        {"squares": (1, 1, 1, 1), "width": 8, "depths": (1, 1, 1, 1)},
    ),
    "saccader": (Saccader, {"bag": tuple(BAGNET_77.items())}),
    "saccader_small": (Saccader, {"bag": tuple(BAGNET_33_SMALL.items())}),
    # Base and step; 7 and 7 are those of the published curve.
    "msdnet_7_7": (MSDNet, {"base": 7, "step": 7}),
    "msdnet_4_4": (MSDNet, {"base": 4, "step": 4}),
    # Narrow, short, three scales, exits without convolutions: trains on a CPU. With the
    # published exits it had learned nothing after as many images; a small thing lies under
    # another of their kernel's taps wherever it is, and each has to learn it anew.
    "msdnet_small": (
        MSDNet,
        {"base": 1, "step": 2, "channels": 12, "growth": 12, "factors": (1, 2, 4)}
        | {"strided": 0},
    ),
    # Channels; 64 are those of the published curve.
    "ranet_64": (RANet, {"channels": 64}),
    "ranet_32": (RANet, {"channels": 32}),
    # The same for three sub-networks.
    "ranet_small": (
        RANet,
        {"channels": 12, "growth": 12, "step": 4, "factors": (2, 2, 1), "strided": 0},
    ),
}

PARTS = {  # what stands behind GFNet's encoders and sees no images
    "gfnet_recurrent": (RecurrentClassifier, {}),
    "gfnet_cascade": (CascadeClassifier, {}),
    "gfnet_policy": (Policy, {}),
}


class Network(NamedTuple):
    """A network ready to run: the Flax module, its variables, and where it is from."""

    model: nn.Module
    variables: dict
    metadata: dict


def create(name: str, num_classes: int, **overrides) -> nn.Module:
    """Create a network by name; `overrides` replace the arguments of its class.

    Raises:
      ValueError: for an unknown name or `dtype`, or fewer than one class.
    """
    known = MODELS | PARTS
    if name not in known:
        raise ValueError(f"`name` is {name!r}; choose one of {sorted(known)}")
    if num_classes < 1:
        raise ValueError(f"`num_classes` is {num_classes}; allowed is 1 or more")
    network, arguments = known[name]
    arguments = {**arguments, **overrides}
    if arguments.get("dtype", DTYPES[0]) not in DTYPES:
        raise ValueError(f"`dtype` is {arguments['dtype']!r}; choose one of {DTYPES}")
    return network(num_classes=num_classes, **arguments)
