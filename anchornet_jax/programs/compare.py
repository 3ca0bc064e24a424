"""Finished evaluations of any methods, drawn into one figure and one table.

    python main.py --config=configs/compare.py --config.runs=runs/a,runs/b

Accuracy against multiply-adds, and against milliseconds. Milliseconds of different days
or machines do not compare: `config.remeasure` times all methods again, in turn, in one
process.
"""

import dataclasses
import glob
import pathlib

import jax
import numpy as np
from absl import logging

from anchornet_jax.data import loading
from anchornet_jax.figures import comparison, published
from anchornet_jax.inference import export, results, stopping, timing
from anchornet_jax.inference.results import Evaluation
from anchornet_jax.methods import method as protocol
from anchornet_jax.runtime import files, workdir


def compare(config, directory) -> dict:
    """Compare the evaluations in `config.runs`.

    Writes `compare.json`, `compare.html` and the figures, as PNG and SVG.

    Returns:
      What `compare.json` holds: {name of the run: its `results.Evaluation`}.

    Raises:
      ValueError: for no directory, one that holds no evaluation, evaluations of
        different data, or what cannot be measured, before anything is written.
    """
    paths = _paths(config.runs)
    others = _parts(config.published)
    found = {name: results.read(path) for name, path in _named(paths).items()}
    _check(found)
    if unknown := sorted(set(others) - set(published.FIGURES)):
        raise ValueError(
            f"`config.published` holds {unknown}; choose from {[*published.FIGURES]}"
        )
    again = _assembled(config, _named(paths), found) if config.remeasure else None
    directory = workdir.claim(directory, config.to_dict())
    if again:
        found = _measured(found, *again, config.timing.batch_size)
    made = {name: one.to_json() for name, one in found.items()}
    if jax.process_index() == 0:
        files.write_json(directory / "compare.json", made)
        page = comparison.write(directory, found, others)
        logging.info("wrote %s", page)
    return made


def _parts(text: str) -> list[str]:
    """Split a text with commas between."""
    return [part for part in map(str.strip, text.split(",")) if part]


def _paths(runs: str) -> list[pathlib.Path]:
    """Return the directories that `config.runs` names.

    Raises:
      ValueError: for none, or a pattern that nothing fits.
    """
    found = []
    for part in _parts(runs):
        pattern = bool(glob.has_magic(part)) and not pathlib.Path(part).exists()
        fitting = sorted(glob.glob(part)) if pattern else [part]
        if not fitting:
            raise ValueError(f"`config.runs` holds {part}, which no directory fits")
        found += map(pathlib.Path, fitting)
    if not found:
        raise ValueError(
            "`config.runs` is empty; give directories, with commas between"
        )
    return found


def _named(paths) -> dict[str, pathlib.Path]:
    """Name runs by the part of their paths that tells them apart."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"`config.runs` names {names}; each run once")
    return dict(zip(names, paths))


def _check(found: dict[str, Evaluation]) -> None:
    """Refuse evaluations that were not made on the same data."""
    (first, *_) = found.values()
    for name, one in found.items():
        if (one.data, one.classes) != (first.data, first.classes):
            raise ValueError(
                f"`config.runs` holds {name}, evaluated on {one.data} with "
                f"{len(one.classes)} classes; the first is of {first.data} with "
                f"{len(first.classes)}"
            )


def _assembled(config, paths, found) -> tuple[dict[str, protocol.Method], np.ndarray]:
    """Return the methods of all runs, and images uint8 [B, H, W, 3] for all of them."""
    timing.check(**config.timing)
    if not config.timing.images:
        raise ValueError("`config.timing.images` is 0; `config.remeasure` needs some")
    configs = {name: _config(path) for name, path in paths.items()}
    (first, *_) = configs.values()
    for name, one in configs.items():
        for key in ("image_size", "resize"):
            if one["data"][key] != first["data"][key]:
                raise ValueError(
                    f"`config.runs` holds {name}, whose `data.{key}` is "
                    f"{one['data'][key]}; the first has {first['data'][key]}, and "
                    "`config.remeasure` times all on the same images"
                )
    size = first["data"]["image_size"]
    methods = {
        name: export.assemble(
            one["method"] | export.fitted_arguments(found[name]), size
        )
        for name, one in configs.items()
    }
    return methods, _images(first, config.timing.images)


def _measured(found, methods, images, batch_size: int) -> dict[str, Evaluation]:
    """Time the methods of all runs in turn, on the same images."""
    ways = {}
    for name, method in methods.items():
        rules = [stopping.from_json(point.rule) for point in found[name].budgeted]
        classifier = timing.prepare(method, images, batch_size, rules)
        ways[name, "budgeted"] = classifier, rules
        ways[name, "anytime"] = classifier, timing.fixed(method)
    times = timing.measure(ways, images)
    device = jax.local_devices()[0].device_kind
    return {
        name: dataclasses.replace(
            one,
            budgeted=results.with_time(one.budgeted, times[name, "budgeted"]),
            anytime=results.with_time(one.anytime, times[name, "anytime"]),
            references={},  # were not measured in this session
            exit_time_ms=None,  # nor was this
            device=device,
        )
        for name, one in found.items()
    }


def _config(path: pathlib.Path) -> dict:
    """Return the config of an evaluation, or of the last one inside a pipeline.

    Raises:
      ValueError: if there is none.
    """
    config = workdir.read_config(path)
    if config["program"] == "pipeline":
        programs = {name: one["program"] for name, one in config["stages"].items()}
        stages = [name for name in config["order"] if programs[name] == "evaluate"]
        config = workdir.read_config(path / stages[-1]) if stages else config
    if config["program"] != "evaluate":
        raise ValueError(
            f"{path} holds a run of {config['program']}, not an evaluation"
        )
    return config


def _images(config, count: int) -> np.ndarray:
    """Return the first test images of an evaluation."""
    source = loading.prepare(**config["data"])
    batch_size = jax.device_count() * 8
    return loading.first_images(source, config["test_split"], count, batch_size)
