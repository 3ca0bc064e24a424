"""The networks by name, and what they have in common.

Every network is called as `logits, out = model.apply(variables, images, train=False)`
with images [B, H, W, 3], normalised; logits [B, N] are float32 and `out` holds the maps
that somebody may want. A name stands for a class and its arguments, nothing more:

    model = models.create("anchornet", num_classes=1000)
"""

from flax import linen as nn

from anchornet_jax.models.anchornet import AnchorNet
from anchornet_jax.models.resnet import ResNet

MODELS = {  # name: (class, arguments)
    "anchornet": (AnchorNet, {}),
    # One basic block per stage, half as wide: trains on a CPU.
    "resnet10": (ResNet, {"depths": (1, 1, 1, 1), "width": 32, "stem_kernel": 3}),
    "resnet18": (ResNet, {"depths": (2, 2, 2, 2)}),
    "resnet34": (ResNet, {"depths": (3, 4, 6, 3)}),
    "resnet50": (ResNet, {"depths": (3, 4, 6, 3), "bottleneck": True}),
    "resnet101": (ResNet, {"depths": (3, 4, 23, 3), "bottleneck": True}),
    "resnet152": (ResNet, {"depths": (3, 8, 36, 3), "bottleneck": True}),
    "resnext50_32x4d": (
        ResNet,
        {"depths": (3, 4, 6, 3), "bottleneck": True, "groups": 32, "group_width": 4},
    ),
}


def create(name: str, num_classes: int, **overrides) -> nn.Module:
    """Create a network by name; `overrides` replace the arguments of its class.

    Raises:
      ValueError: for an unknown name, or fewer than one class.
    """
    if name not in MODELS:
        raise ValueError(f"`name` is {name!r}; choose one of {sorted(MODELS)}")
    if num_classes < 1:
        raise ValueError(f"`num_classes` is {num_classes}; allowed is 1 or more")
    network, arguments = MODELS[name]
    return network(num_classes=num_classes, **{**arguments, **overrides})
