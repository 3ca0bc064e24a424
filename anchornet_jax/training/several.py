"""Trainings of several networks of a method at once, made of a config.

Which networks a method has, its roles say; each is read from a directory, or a new one of
`config.parts`. What learns the objective says; the others must be there.
"""

from anchornet_jax import models
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import registry
from anchornet_jax.runtime import networks, parallel
from anchornet_jax.training import gfnet, ppo, train_step

OBJECTIVES = gfnet.OBJECTIVES
UNUSED = {  # keys of a config that such a training does not read: what they must be
    "view.name": "full",
    "mixup": 0.0,
    "init_from": "",
    "localizer": "",
    "teacher": "",
}


def prepare(config, source) -> dict:
    """Return what `train.Run` holds of an objective, a key of `OBJECTIVES`.

    Args:
      config: of the run.
      source: its data.

    Raises:
      ValueError: for a network that is neither of a directory nor of `config.parts`, or
        does not learn and has no directory; for other classes, an unknown method, and
        keys that make no sense to several networks.
    """
    for key, allowed in UNUSED.items():
        value = config.view.name if key == "view.name" else config[key]
        if value != allowed:
            raise ValueError(
                f"`config.{key}` is {value!r}; with the objective {config.objective!r} "
                f"allowed is {allowed!r}"
            )
    method, start = _method(config, source)
    found, size = method.networks, source.image_size
    protocol.check_images(method, size)
    objective = OBJECTIVES[config.objective](
        method,
        fixed=tuple(config.fixed),
        auxiliary=config.auxiliary,
        settings=ppo.Settings(**config.ppo),
        label_smoothing=config.label_smoothing,
        freeze=config.optimizer.freeze,
    )
    for role in sorted(set(found) - set(objective.trained)):
        if start[role] is None:
            raise ValueError(
                f"`config.method.networks.{role}` is empty; {config.objective} does not "
                "train it: give a trained network's directory"
            )
    return {
        "descriptions": {r: found[r].metadata["model"] for r in objective.trained},
        "objective": objective,
        "frozen": {r: start[r] for r in found if r not in objective.trained},
        "start": {r: start[r] for r in objective.trained if start[r] is not None},
        "macs": protocol.costs(method, size)[-1],
    }


def _method(config, source):
    """Return the method, and the variables of each role, None for a new network's.

    In the method these have shapes for variables.
    """
    arguments = config.method.to_dict()
    name, paths = arguments.pop("name"), arguments.pop("networks")
    known = [key for key, kind in registry.METHODS.items() if hasattr(kind, "given")]
    if name not in known:
        raise ValueError(
            f"`config.method.name` is {name!r}; with the objective "
            f"{config.objective!r} choose one of {known}"
        )
    found, start = {}, {}
    for role in registry.METHODS[name].roles(**arguments):
        described, start[role] = _part(config, source, role, paths.get(role))
        shared = {"axis_name": parallel.AXIS} if "dtype" in described else {}
        model = models.create(**described, **shared)
        metadata = {"model": described, "classes": source.classes}
        found[role] = models.Network(model, start[role], metadata)
    given = registry.create(name, found, **arguments).given()
    for role, network in found.items():
        shapes = train_step.shapes(network.model, given[role])
        found[role] = network._replace(variables=network.variables or shapes)
    return registry.create(name, found, **arguments), start


def _part(config, source, role: str, path: str | None) -> tuple[dict, dict | None]:
    """Return a role's arguments of `models.create`, and its variables where it has any.

    A network that sees images computes in `config.dtype`.
    """
    if path:
        try:
            _, variables, about = networks.load(path)
        except ValueError as error:
            raise ValueError(f"`config.method.networks.{role}`: {error}") from None
        described = dict(about["model"])
        own = about.get("classes", source.classes), described["num_classes"]
        if own != (source.classes, len(source.classes)):
            raise ValueError(
                f"`config.method.networks.{role}` is {path!r}, which was trained for "
                f"{own[1]} classes, named {own[0][:3]} …; the data has "
                f"{len(source.classes)}, named {source.classes[:3]} …"
            )
    elif role in config.parts:
        described, variables = config.parts[role].to_dict(), None
        described["num_classes"] = len(source.classes)
    else:
        raise ValueError(
            f"`config.method.networks.{role}` is empty, and `config.parts` has no "
            f"{role}; one of them must say which network it is"
        )
    if described["name"] in models.MODELS:
        described["dtype"] = config.dtype
    return described, variables
