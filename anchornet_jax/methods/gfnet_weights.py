"""Published weights of GFNet: one file of four state dicts, as the networks of a method.

There are two layouts. Released files have a prefix `module.` before the encoders' names,
and sizes, costs and thresholds beside the weights; files of the published training
program have none of that, an epoch and two optimisers instead, and no policy before there
is one. Encoders have the names of the code that they came from: torchvision's (ResNet,
DenseNet), pycls' (RegNet) or timm's old ones (MobileNetV3, EfficientNet).

    networks = gfnet_weights.read("resnet50_patch_size_96.pth.tar", "resnet50")
    method = registry.create("gfnet", networks, patch_size=96)
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax import models
from anchornet_jax.models import Network, gfnet
from anchornet_jax.runtime import torch_import

KEYS = {  # of a file, by role
    "glance": "model_prime_state_dict",
    "patch": "model_state_dict",
    "classifier": "fc",
    "policy": "policy",
}
ENCODERS = ("glance", "patch")
SIZE = 224  # px, at which an encoder's shapes are traced; they do not depend on it


def _as_it_is(state):
    return dict(state), {}


def _regnet(state):
    return gfnet.regnet_state(state), {}


def _mobilenet(state):
    last = state.get("blocks.6.0.conv.weight", np.empty(gfnet.V3_LAST))
    width = len(last) / gfnet.V3_LAST
    own = {"width": width, "hidden": gfnet.V3_HIDDEN, "relative": True}
    own["epsilon"] = 1e-5
    return gfnet.mobilenet_state(state), own


def _efficientnet(state):
    return gfnet.efficientnet_state(state), {}


FAMILIES: dict[str, Callable] = {  # beginning of a name: state -> (renamed, arguments)
    "resnet": _as_it_is,
    "densenet": _as_it_is,
    "regnet": _regnet,
    "mobilenet": _mobilenet,
    "efficientnet_b": _efficientnet,
}


def read(path, encoder: str) -> dict[str, Network]:
    """Read a file of published weights as the networks of a method, by role.

    Args:
      path: of either layout; without a policy there is none in the result.
      encoder: the network of both encoders, a key of `models.MODELS`.

    Raises:
      ValueError: for another network, or a file that cannot be read or is of another.
    """
    family = next((name for name in FAMILIES if encoder.startswith(name)), None)
    if family is None or encoder not in models.MODELS:
        raise ValueError(
            f"`encoder` is {encoder!r}; allowed are networks whose names begin with "
            f"{', '.join(FAMILIES)}"
        )
    states = torch_import.read_parts(path, KEYS.values())
    for role in (*ENCODERS, "classifier"):
        if KEYS[role] not in states:
            raise ValueError(
                f"{path} has no {KEYS[role]}; the published files of GFNet have "
                f"{', '.join(KEYS.values())}"
            )
    found, size = {}, jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    described, given = classifier(states["fc"])
    classes = described["num_classes"]
    for role in ENCODERS:
        try:
            renamed, own = FAMILIES[family](states[KEYS[role]])
        except (LookupError, ValueError):  # a name that the rule does not know
            raise ValueError(
                f"{KEYS[role]} of {path} are no weights of {encoder}"
            ) from None
        about = {"name": encoder, "num_classes": classes, **own}
        found[role] = _network(about, renamed, (size,))
    found["classifier"] = _network(described, states["fc"], given)
    if "policy" in states:
        described, given = policy(states["policy"], classes)
        found["policy"] = _network(described, states["policy"], given)
    return found


def classifier(state: Mapping[str, np.ndarray]) -> tuple[dict, tuple]:
    """Return what a classifier is, as `models.create` takes it, and what it is given.

    Raises:
      ValueError: for a state dict of something else.
    """
    try:
        if "rnn.weight_ih_l0" in state:
            features = state["rnn.weight_ih_l0"].shape[1]
            classes, hidden = state["fc.weight"].shape
            described = {"name": "gfnet_recurrent", "hidden": hidden}
            given = _row(features), _row(hidden)
        else:
            classes, entries = state["fc_2.weight"].shape
            layers = [name for name in state if name.endswith(".weight")]
            described = {"name": "gfnet_cascade", "most": len(layers) + 1}
            given = (_row(entries),)
    except (KeyError, ValueError) as error:
        raise ValueError(f"`fc` is no classifier of GFNet: {error}") from None
    return {**described, "num_classes": classes}, given


def policy(state: Mapping[str, np.ndarray], num_classes: int) -> tuple[dict, tuple]:
    """Return what a policy is, as `models.create` takes it, and what it is given.

    Raises:
      ValueError: for a state dict of something else.
    """
    try:
        hidden = state["gru.weight_hh_l0"].shape[1]
        first = state["state_encoder.0.weight"]
        convolutional = first.ndim == 4
        if convolutional:
            channels = first.shape[1]
            cells = state["state_encoder.3.weight"].shape[1] // first.shape[0]
        else:  # of which only the product matters
            channels, cells = first.shape[1], 1
    except (KeyError, ValueError) as error:
        raise ValueError(f"`policy` is no policy of GFNet: {error}") from None
    described = {
        "name": "gfnet_policy",
        "num_classes": num_classes,
        "hidden": hidden,
        "convolutional": convolutional,
    }
    maps = jax.ShapeDtypeStruct((1, cells, 1, channels), jnp.float32)
    return described, (maps, _row(hidden))


def _row(entries):
    return jax.ShapeDtypeStruct((1, entries), jnp.float32)


def _network(described, state, given):
    model = models.create(**described)
    template = jax.eval_shape(model.init, jax.random.key(0), *given)
    variables = torch_import.convert(state, template)
    return Network(model, variables, {"model": described})
