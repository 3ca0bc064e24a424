"""A whole method in one directory that stands alone.

    metadata.json   method and arguments, architectures, classes, preprocessing, rules, …
    variables_*/    Orbax: the variables of the networks by role
    files_*/        the steps, serialised by jax.export, and the calibration table

Two ways to run it, with the same result. `load` builds the networks from their names, so
an engine can change them; `load_steps` runs what was traced at export, without the code
of the models, on CPU, CUDA or TPU and with any batch size. The steps take the variables
as an argument: these are stored once, and a step is some tens of kilobytes.

    found = export.load("runs/demo/export")
    found.method, found.rules, found.classes, found.macs
    steps = export.load_steps("runs/demo/export")
    logits = steps.logits(images)  # uint8 [B, H, W, 3] to [B, T, N], all exits
"""

import contextlib
import hashlib
import pathlib
import secrets
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import jax

import anchornet_jax
from anchornet_jax import models
from anchornet_jax.inference import (
    control,
    exit_table,
    fitting,
    results,
    serialised,
    stopping,
)
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import registry
from anchornet_jax.models import pixels
from anchornet_jax.runtime import checkpoint, files, networks, workdir

FORMAT = 2  # of metadata.json and the steps; newer ones are refused
CALIBRATION = "calibration.npz"
FITTED = ("weights", "inputs", "iou_threshold")  # arguments, by `evaluate`
RESIZE = (
    "short side to `resize` pixels (0: not resized), bilinear with antialiasing, then "
    "the square of `image_size` pixels at the centre, uint8 RGB; with `whole` all of the "
    "image squeezed into that square; where `image_size` is 0 the image as it is"
)


class Export(NamedTuple):
    """What an engine needs.

    Attributes:
      method: its networks, ready to run.
      rules: the fitted rule of each budget in multiply-adds; empty without evaluation.
      calibration: the exit table to fit more rules to; None without evaluation.
      classes: names.
      image_size: side of the square images in pixels; 0: as they are.
      macs: multiply-adds of leaving at each exit, [T].
      metadata: all that metadata.json says of the export.
    """

    method: protocol.Method
    rules: dict[float, stopping.Rule]
    calibration: exit_table.ExitTable | None
    classes: list[str]
    image_size: int
    macs: list[int]
    metadata: dict

    @property
    def exits(self) -> list[str]:
        """Return the names of the exits."""
        return protocol.exit_names(self.method.steps)

    def rule(self, budget: float = 0) -> tuple[float, stopping.Rule]:
        """Return a budget and its rule: an exported one, or one fitted now.

        Args:
          budget: mean multiply-adds per image; 0 means the largest that was exported.
            A rule for another one is of the same kind, fitted to `calibration`. Where
            there is one exit, all leave there.

        Raises:
          ValueError: for a budget below the cheapest exit, or an export without rules.
        """
        if len(self.macs) == 1 and not 0 < budget < self.macs[0]:
            return float(self.macs[0]), stopping.fixed(1, 1)
        if not self.rules:
            raise ValueError(
                f"`budget` is {budget:g}, but the export has no rules and no table to "
                "fit one to; make it with `config.evaluation`"
            )
        budget = budget or max(self.rules)
        if budget in self.rules:
            return budget, self.rules[budget]
        kind = fitting.like(next(iter(self.rules.values())))
        (fitted,) = fitting.fit(self.calibration, [budget], kind)
        return budget, fitted.rule

    def control(
        self, budget: float = 0, milliseconds: Sequence[float] | None = None
    ) -> control.Control:
        """Return what keeps a stream's mean cost at a budget, by rules of the same kind.

        Args:
          budget: as of `rule`; with `milliseconds` in these, and above 0.
          milliseconds: [T] cost of leaving at each exit, in place of multiply-adds; from
            `engine.Classifier.milliseconds`.

        Raises:
          ValueError: as `rule`.
        """
        if not self.rules or milliseconds is None:
            budget, _ = self.rule(budget)
        table = self.calibration
        if milliseconds is not None:
            table = table.with_cost(milliseconds, "ms")
        kind = fitting.like(next(iter(self.rules.values())))
        return control.Control(table, budget, kind)


def export(config, directory) -> dict:
    """Export trained networks as the config says, to `directory`.

    Returns:
      `export`, the directory, `macs` of each exit and the fitted `budgets_macs`.

    Raises:
      ValueError: for a config that cannot run, before anything is written.
    """
    described, data = _described(config)
    size = data["image_size"]
    method = assemble(described, size)
    found, calibration = _evaluation(config.evaluation, method, size)
    directory = workdir.claim(directory, config.to_dict())
    save(
        directory,
        method,
        image_size=size,
        resize=data["resize"],
        whole=data.get("whole", False),  # older evaluations did not know it
        budgets=found,
        calibration=calibration if found else None,  # one exit: nothing was fitted
        config=config.to_dict(),
    )
    return {
        "export": str(directory),
        "macs": protocol.costs(method, size),
        "budgets_macs": [point.budget for point in found],
    }


def _described(config) -> tuple[dict, dict]:
    """Return what describes the method, and the data: the evaluation's, if there is one.

    Raises:
      ValueError: if the config says otherwise.
    """
    own = config.method.to_dict(), config.data.to_dict()
    if not config.evaluation:
        return own
    try:
        there = workdir.read_config(config.evaluation)
        method, data = there["method"], there["data"]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"`config.evaluation` is {config.evaluation!r}, which holds no evaluation: "
            f"{error}"
        ) from None
    if own[0]["name"] and _plain(own[0]) != _plain(method):
        raise ValueError(
            f"`config.evaluation` is {config.evaluation!r}, which evaluated something "
            f"else: `method` is {_plain(method)} there, {_plain(own[0])} here"
        )
    return method | fitted_arguments(_finished(config.evaluation)[0]), data


def fitted_arguments(summary: results.Evaluation) -> dict:
    """Return the arguments of a method that its evaluation fitted or chose, if any."""
    fitted = {key: summary.method.get(key) for key in FITTED}
    return {key: value for key, value in fitted.items() if value}


def _plain(method: dict) -> dict:
    """Return a method's description without the directories of its networks.

    An argument that an older version did not know has its default.
    """
    known = (
        registry.defaults(method["name"]) if method["name"] in registry.METHODS else {}
    )
    return known | {key: value for key, value in method.items() if key != "networks"}


def assemble(described, image_size: int) -> protocol.Method:
    """Make the method that a config's `method`, or its dict, describes.

    Raises:
      ValueError: if a network is missing, or they do not fit together or the images.
    """
    described = dict(described)
    name, members = described.pop("name"), dict(described.pop("networks"))
    try:
        made = registry.load(name, members, **described)
    except ValueError as error:
        raise ValueError(f"`config.method`: {error}") from None
    protocol.check_images(made, image_size)
    return made


def save(
    directory,
    method: protocol.Method,
    *,
    image_size: int,
    resize: int = 0,
    whole: bool = False,
    budgets: list[results.Point] = (),
    calibration: exit_table.ExitTable | None = None,
    **metadata,
) -> None:
    """Write an export whole or not at all; one that is there is replaced.

    Args:
      directory: created where missing.
      method: of networks from `networks.load`.
      image_size: side of the square images in pixels; 0: as they are.
      resize: of the preprocessing, see `loading.prepare`; only told, not done here.
      whole: likewise.
      budgets: the point of each fitted rule.
      calibration: the exit table that the rules were fitted to, given with them.
      **metadata: anything JSON can hold, such as `config`.

    Raises:
      ValueError: if the parts do not fit together, or JSON cannot hold `metadata`.
      OSError: writing failed. An export that was there stays.
    """
    if jax.process_index():
        return
    protocol.check(method)
    if bool(budgets) != (calibration is not None):
        raise ValueError("`budgets` and `calibration` must be given together")
    traced = serialised.serialise(method, image_size)
    about = _describe(method, image_size) | metadata
    about["preprocessing"] |= {"resize": resize, "whole": whole}
    about["budgets"] = [point.to_json() for point in budgets]
    about["calling_convention"] = serialised.convention()
    directory = pathlib.Path(directory)
    folder = directory / f"files_{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        for name, content in traced.items():
            (folder / name).write_bytes(content)
        if calibration is not None:
            calibration.save(folder / CALIBRATION)
        digests = {path.name: _digest(path.read_bytes()) for path in folder.iterdir()}
        about |= {"files": folder.name, "sha256": digests}
        checkpoint.save_variables(directory, protocol.variables(method), about)
    finally:
        _remove_unnamed(directory)


def load(directory) -> Export:
    """Read an export; TensorFlow and the config it was trained with are not needed.

    Raises:
      ValueError: if the directory holds none, or one that is damaged or of a newer
        version.
    """
    with _reading(directory):
        variables, about = _open(directory)
        members = {
            role: networks.Network(
                models.create(**description),
                variables[role],
                {"model": description, "classes": about["classes"]},
            )
            for role, description in about["networks"].items()
        }
        own = dict(about["method"])
        path = pathlib.Path(directory, files.plain_name(about["files"]), CALIBRATION)
        known = path.name in about["sha256"] and _read(directory, about, path.name)
        return Export(
            method=registry.create(own.pop("name"), members, **own),
            rules={
                row["budget"]: stopping.from_json(row["rule"])
                for row in about["budgets"]
            },
            calibration=exit_table.ExitTable.load(path) if known else None,
            classes=about["classes"],
            image_size=about["preprocessing"]["image_size"],
            macs=about["macs"],
            metadata=about,
        )


def load_steps(directory) -> serialised.Steps:
    """Read the serialised steps of an export, and put its variables on the device.

    Raises:
      ValueError: as `load`; also if this JAX cannot run what another version wrote, or
        the export has format 1, whose steps followed another protocol.
    """
    with _reading(directory):
        variables, about = _open(directory)
        if "steps" not in about:
            raise ValueError(
                "it has format 1, whose steps cannot be run one by one any more; "
                "`export.load` reads it, and exporting again writes the present format"
            )
        if not about["steps"]:
            raise ValueError(
                "its images stay in host memory, where steps read parts of them that no "
                "serialised step can cut; use `export.load`"
            )
        serialised.check(about["calling_convention"])
        names = {step["file"] for step in about["steps"]}
        names |= {serialised.OBSERVE} & set(about["sha256"])
        traced = {name: _read(directory, about, name) for name in sorted(names)}
        return serialised.deserialise(traced, variables, about["steps"], about)


def _evaluation(directory, method, image_size):
    """Return the budgeted points and calibration table of this very method."""
    if not directory:
        return [], None
    summary, table = _finished(directory)
    macs = "multiply-adds of the exits"
    name = registry.name(method)
    found = registry.defaults(name) | summary.method  # older ones knew fewer arguments
    found |= {"classes": summary.classes, macs: table.cost.tolist()}
    wanted = {
        "name": name,
        **method.arguments,
        "networks": digests(method),
        "classes": protocol.classes(method),
        macs: protocol.costs(method, image_size),
    }
    differs = [key for key in wanted if wanted[key] != found.get(key)]
    if differs:
        key = differs[0]
        raise ValueError(
            f"`config.evaluation` is {str(directory)!r}, which evaluated something "
            f"else: {key} is {found.get(key)} there, {wanted[key]} here"
        )
    return summary.budgeted, table


def _finished(directory):
    """Return summary and calibration table of an evaluation."""
    directory = pathlib.Path(directory)
    try:
        summary = results.read(directory)
        return summary, exit_table.ExitTable.load(directory / CALIBRATION)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`config.evaluation` is {str(directory)!r}, which holds no finished "
            f"evaluation ({type(error).__name__}: {error})"
        ) from None


def digests(method: protocol.Method) -> dict[str, str]:
    """Return the SHA-256 of each network's variables, by role."""
    return {
        role: checkpoint.digest(network.variables)
        for role, network in method.networks.items()
    }


def _describe(method, image_size) -> dict:
    """Return what metadata.json says of the method."""
    return {
        "export": FORMAT,
        "method": {"name": registry.name(method), **method.arguments},
        "networks": {
            role: network.metadata["model"] for role, network in method.networks.items()
        },
        "steps": serialised.describe(method),
        "features": protocol.features(method),
        "classes": protocol.classes(method),
        "preprocessing": {
            "image_size": image_size,
            "resize_rule": RESIZE,
            **_pixels(method),
            "input_sizes": method.input_sizes(image_size),
        },
        "macs": protocol.costs(method, image_size),
        "platforms": serialised.PLATFORMS,
    }


def _pixels(method) -> dict:
    """Return the mean and deviation by which each role's network sees, white as 1."""
    expected = {
        role: pixels.of(network.model) for role, network in method.networks.items()
    }
    return {
        name: {role: getattr(own, name) for role, own in expected.items()}
        for name in pixels.Pixels._fields
    }


FORMAT_1_ROLES = {"anchornet": "localizer", "glance": "glance", "patches": "patch"}


def _upgraded(variables, about):
    """Return variables and metadata of an export of format 1 in today's words."""
    rename = lambda parts: {FORMAT_1_ROLES[key]: part for key, part in parts.items()}
    own = {key: about[key] for key in ("inputs", "iou_threshold", "fuse")}
    changed = {
        "method": {"name": "anchornet", **own},
        "networks": rename(about["networks"]),
        "budgets": [
            {"budget": row["budget_macs"], "rule": row["rule"]}
            for row in about["budgets"]
        ],
    }
    return rename(variables), about | changed


def _remove_unnamed(directory: pathlib.Path) -> None:
    """Remove the files that metadata.json does not name: old ones, or of a failed save."""
    path = directory / "metadata.json"
    named = path.read_text() if path.exists() else ""
    for folder in directory.glob("files_*"):
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)


def _open(directory) -> tuple[dict, dict]:
    """Return variables and metadata of an export."""
    variables, about = checkpoint.load_variables(directory)
    if "export" not in about:
        raise ValueError("it holds a network or something else, but no export")
    if about["export"] > FORMAT:
        raise ValueError(
            f"it has export format {about['export']}, which is newer than what "
            f"anchornet_jax {anchornet_jax.__version__} can read (up to {FORMAT}); "
            "please update it"
        )
    return _upgraded(variables, about) if about["export"] == 1 else (variables, about)


def _read(directory, about, name) -> bytes:
    folder = pathlib.Path(directory, files.plain_name(about["files"]))
    content = (folder / files.plain_name(name)).read_bytes()
    if _digest(content) != about["sha256"][name]:
        raise ValueError(f"it is damaged: {name} is not what was saved")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _reading(directory):
    """Turn what reading an export may raise into a ValueError that names it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"export {str(directory)!r}: {error}") from None
    except (OSError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"export {str(directory)!r}: it is damaged: {type(error).__name__}: {error}"
        ) from None
