"""The methods by name.

method = registry.create("anchornet", networks, inputs=5)
method = registry.load("static", {"network": "runs/demo/full_image/network"})
"""

import inspect
from collections.abc import Mapping

from anchornet_jax.methods import gfnet_weights, method
from anchornet_jax.methods.anchornet import AnchorNet
from anchornet_jax.methods.gfnet import GFNet
from anchornet_jax.methods.large import LargeAnchorNet
from anchornet_jax.methods.multi_exit import MultiExit
from anchornet_jax.methods.saccader import Saccader
from anchornet_jax.methods.static import Static
from anchornet_jax.models import Network
from anchornet_jax.runtime import networks

METHODS = {
    "anchornet": AnchorNet,
    "gfnet": GFNet,
    "large": LargeAnchorNet,
    "multi_exit": MultiExit,
    "saccader": Saccader,
    "static": Static,
}
PUBLISHED = {"gfnet": gfnet_weights.read}  # what reads a file of all networks of one


def name(made: method.Method) -> str:
    """Return the name under which a method is registered."""
    return next(key for key, kind in METHODS.items() if kind is type(made))


def defaults(name: str) -> dict:
    """Return the arguments of a method that need not be given, {name: default}."""
    known = inspect.signature(METHODS[name]).parameters.values()
    plain = {one.name: one.default for one in known if one.default is not one.empty}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def any_size(name: str) -> bool:
    """Say whether a method takes images of any size (`method.on_host`)."""
    return hasattr(METHODS[name], "hold")


def create(name: str, given: Mapping[str, Network], **arguments) -> method.Method:
    """Make a method of its networks, `given` by role.

    Raises:
      ValueError: for an unknown name, argument or role, a role without a network,
        arguments that cannot be, or networks that do not fit together.
    """
    _check(name, given, arguments)
    made = METHODS[name](dict(given), **arguments)
    method.check(made)
    return made


def load(name: str, directories: Mapping[str, str], **arguments) -> method.Method:
    """Make a method of networks on disk, {role: directory}.

    Raises:
      ValueError: as `create`, or for a directory that holds no network.
    """
    _check(name, directories, arguments)
    found = {role: _load(role, path) for role, path in directories.items()}
    return create(name, found, **arguments)


def _load(role, path):
    try:
        return networks.load(path)
    except ValueError as error:
        raise ValueError(f"`networks.{role}`: {error}") from None


def _check(name, given, arguments) -> None:
    if name not in METHODS:
        raise ValueError(f"`method` is {name!r}; choose one of {sorted(METHODS)}")
    known = [*inspect.signature(METHODS[name]).parameters][1:]
    for key in arguments:
        if key not in known:
            raise ValueError(f"`{key}` is no argument of {name}; choose from {known}")
    roles = METHODS[name].roles(**arguments)
    if unknown := sorted(set(given) - set(roles)):
        raise ValueError(
            f"`networks` holds {', '.join(unknown)}; {name} has the roles "
            f"{', '.join(roles)}"
        )
    for role in roles:
        if not given.get(role):
            raise ValueError(
                f"`networks.{role}` is empty; give a trained network's directory"
            )
