"""The whole method in one directory that stands alone.

    metadata.json   architectures, classes, preprocessing, rules, costs, config, versions
    variables_*/    Orbax: {"anchornet": …, "glance": …, "patches": …}
    files_*/        the steps, serialised by jax.export, and the calibration table

Two ways to run it, with the same result. `load` builds the networks from their names, so
an engine can change them; `load_steps` runs what was traced at export, without the code
of the models, on CPU, CUDA or TPU and with any batch size. The steps take the variables
as an argument: these are stored once, and a step is some tens of kilobytes.

    found = export.load("runs/demo/export")
    found.method, found.rules, found.classes, found.macs
    steps = export.load_steps("runs/demo/export")
    logits = steps.glance(images)  # uint8 [B, H, W, 3]
"""

import contextlib
import hashlib
import json
import pathlib
import secrets
import shutil
from typing import NamedTuple

import jax

import anchornet_jax
from anchornet_jax import models
from anchornet_jax.inference import exit_table, fitting, serialised, stopping
from anchornet_jax.methods import anchornet, views
from anchornet_jax.runtime import checkpoint, networks, workdir

FORMAT = 1  # of metadata.json and the steps; newer ones are refused
CALIBRATION = "calibration.npz"
ROW = ("budget_macs", "binding", "mean_macs", "accuracy", "rule")  # of a summary
RESIZE = (
    "short side to `resize` pixels (0: not resized), bilinear with antialiasing, then "
    "the square of `image_size` pixels at the centre, uint8 RGB"
)
GLANCE = "bicubic with a = -0.75 and aligned corners, no antialiasing"


class Export(NamedTuple):
    """What an engine needs.

    Attributes:
      method: the networks, ready to run.
      rules: the fitted rule of each budget in multiply-adds; empty without evaluation.
      calibration: the exit table to fit more rules to; None without evaluation.
      classes: names.
      image_size: side of the square images in pixels.
      macs: multiply-adds of leaving at each exit, [T].
      metadata: all that metadata.json says of the export.
    """

    method: anchornet.Sequence
    rules: dict[float, stopping.Rule]
    calibration: exit_table.ExitTable | None
    classes: list[str]
    image_size: int
    macs: list[int]
    metadata: dict

    def rule(self, budget: float = 0) -> tuple[float, stopping.Rule]:
        """Return a budget and its rule: an exported one, or one fitted now.

        Args:
          budget: mean multiply-adds per image; 0 means the largest that was exported.
            A rule for another one is of the same kind, fitted to `calibration`.

        Raises:
          ValueError: for a budget below the cheapest exit, or an export without rules.
        """
        if not self.rules:
            raise ValueError(
                f"`budget` is {budget:g}, but the export has no rules and no table to "
                "fit one to; make it with `config.evaluation`"
            )
        budget = budget or max(self.rules)
        if budget in self.rules:
            return budget, self.rules[budget]
        kind = next(iter(self.rules.values())).name
        (fitted,) = fitting.fit(self.calibration, [budget], kind)
        return budget, fitted.rule


def assemble(config, image_size: int) -> anchornet.Sequence:
    """Load the networks that a config names and put them together.

    Raises:
      ValueError: if one is missing, or they do not fit together or the images.
    """
    for name in anchornet.NETWORKS:
        if not config.networks[name]:
            raise ValueError(
                f"`config.networks.{name}` is empty; give a trained network's directory"
            )
    method = anchornet.Sequence(
        *(networks.load(config.networks[name]) for name in anchornet.NETWORKS),
        config.inputs,
        config.view.iou_threshold,
        config.fuse,
    )
    anchornet.check(method)
    anchornet.check_images(method, image_size)
    return method


def export(config, directory) -> dict:
    """Export trained networks as the config says, to `directory`.

    Returns:
      `export`, the directory, `macs` of each exit and the fitted `budgets_macs`.

    Raises:
      ValueError: for a config that cannot run, before anything is written.
    """
    size = config.data.image_size
    method = assemble(config, size)
    budgets, calibration = _evaluation(config.evaluation, method, size)
    directory = workdir.claim(directory, config.to_dict())
    save(
        directory,
        method,
        image_size=size,
        resize=config.data.resize,
        budgets=budgets,
        calibration=calibration,
        config=config.to_dict(),
    )
    return {
        "export": str(directory),
        "macs": method.macs(size),
        "budgets_macs": [row["budget_macs"] for row in budgets],
    }


def save(
    directory,
    method: anchornet.Sequence,
    *,
    image_size: int,
    resize: int = 0,
    budgets: list[dict] = (),
    calibration: exit_table.ExitTable | None = None,
    **metadata,
) -> None:
    """Write an export whole or not at all; one that is there is replaced.

    Args:
      directory: created where missing.
      method: networks from `networks.load`.
      image_size: side of the square images in pixels.
      resize: of the preprocessing, see `loading.prepare`; only told, not done here.
      budgets: {"budget_macs", "rule"} of each fitted rule, and what else is known.
      calibration: the exit table that the rules were fitted to, given with them.
      **metadata: anything JSON can hold, such as `config`.

    Raises:
      ValueError: if the parts do not fit together, or JSON cannot hold `metadata`.
      OSError: writing failed. An export that was there stays.
    """
    if jax.process_index():
        return
    anchornet.check(method)
    if bool(budgets) != (calibration is not None):
        raise ValueError("`budgets` and `calibration` must be given together")
    traced = serialised.serialise(method, image_size)
    about = _describe(method, image_size, resize) | metadata
    about |= {"budgets": list(budgets), "calling_convention": serialised.convention()}
    directory = pathlib.Path(directory)
    files = directory / f"files_{secrets.token_hex(4)}"
    try:
        files.mkdir(parents=True)
        for name, content in traced.items():
            (files / f"{name}.jaxexport").write_bytes(content)
        if calibration is not None:
            calibration.save(files / CALIBRATION)
        digests = {path.name: _digest(path.read_bytes()) for path in files.iterdir()}
        about |= {"files": files.name, "sha256": digests}
        checkpoint.save_variables(directory, method.variables(), about)
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
            name: networks.Network(
                models.create(**about["networks"][name]),
                variables[name],
                {"model": about["networks"][name], "classes": about["classes"]},
            )
            for name in anchornet.NETWORKS
        }
        arguments = {key: about[key] for key in ("inputs", "iou_threshold", "fuse")}
        path = pathlib.Path(directory, about["files"], CALIBRATION)
        known = path.name in about["sha256"] and _read(directory, about, path.name)
        return Export(
            method=anchornet.check(anchornet.Sequence(**members, **arguments)),
            rules={
                row["budget_macs"]: stopping.from_json(row["rule"])
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
      ValueError: as `load`; also if this JAX cannot run what another version wrote.
    """
    with _reading(directory):
        variables, about = _open(directory)
        serialised.check(about["calling_convention"])
        traced = {
            name: _read(directory, about, f"{name}.jaxexport")
            for name in serialised.STEPS
        }
        return serialised.deserialise(traced, variables, about)


def _evaluation(directory, method, image_size):
    """Return rules and calibration table of an evaluation of this very method."""
    if not directory:
        return [], None
    directory = pathlib.Path(directory)
    try:
        summary = json.loads((directory / "summary.json").read_text())
        config = json.loads((directory / workdir.CONFIG).read_text())
        table = exit_table.ExitTable.load(directory / CALIBRATION)
        budgets = [{key: row[key] for key in ROW} for row in summary["budgeted"]]
        found = {
            "classes": summary["classes"],
            "fuse": config["fuse"],
            "view.iou_threshold": config["view"]["iou_threshold"],
            "multiply-adds of the exits": table.cost.tolist(),
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`config.evaluation` is {str(directory)!r}, which holds no finished "
            f"evaluation ({type(error).__name__}: {error})"
        ) from None
    wanted = {
        "classes": method.classes,
        "fuse": method.fuse,
        "view.iou_threshold": method.iou_threshold,
        "multiply-adds of the exits": method.macs(image_size),
    }
    differs = [key for key in wanted if wanted[key] != found[key]]
    if differs:
        key = differs[0]
        raise ValueError(
            f"`config.evaluation` is {str(directory)!r}, which evaluated something "
            f"else: {key} is {found[key]} there, {wanted[key]} here"
        )
    return budgets, table


def _describe(method, image_size, resize) -> dict:
    """Return what metadata.json says of the method."""
    return {
        "export": FORMAT,
        "networks": {
            name: getattr(method, name).metadata["model"] for name in anchornet.NETWORKS
        },
        "classes": method.classes,
        "preprocessing": {
            "image_size": image_size,
            "resize": resize,
            "resize_rule": RESIZE,
            "mean": views.MEAN,
            "std": views.STD,
            "patch_size": method.patch_size,
            "glance_rule": GLANCE,
        },
        "inputs": method.inputs,
        "fuse": method.fuse,
        "iou_threshold": method.iou_threshold,
        "macs": method.macs(image_size),
        "platforms": serialised.PLATFORMS,
    }


def _remove_unnamed(directory: pathlib.Path) -> None:
    """Remove the files that metadata.json does not name: old ones, or of a failed save."""
    path = directory / "metadata.json"
    named = path.read_text() if path.exists() else ""
    for files in directory.glob("files_*"):
        if files.name not in named:
            shutil.rmtree(files, ignore_errors=True)


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
    return variables, about


def _read(directory, about, name) -> bytes:
    content = pathlib.Path(directory, about["files"], name).read_bytes()
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
