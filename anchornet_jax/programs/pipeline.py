"""The programs, and the one that runs several of them in order.

A pipeline is a dict of stages, each a whole config. Every stage has a directory of its
own inside the pipeline's; a finished stage is skipped, a killed one resumed. Paths in a
stage's config are relative to the pipeline's directory.
"""

import pathlib
import shutil
import time
from collections.abc import Sequence

import jax
from absl import logging

from anchornet_jax import models
from anchornet_jax.data import loading
from anchornet_jax.figures import report
from anchornet_jax.inference import export
from anchornet_jax.methods import registry
from anchornet_jax.models import multiply_adds
from anchornet_jax.programs import (
    analyses_2020,
    checks,
    compare,
    evaluate,
    predict,
    table_3_2020,
)
from anchornet_jax.runtime import (
    files,
    networks,
    pretrained,
    text,
    torch_import,
    workdir,
)
from anchornet_jax.training import train

SPLITS = ("train_split", "calibration_split", "test_split")


def prepare(config, directory) -> dict:
    """Download or generate the config's data set; look at each of its splits.

    Returns:
      {split: number of images} of all splits that the data set has.

    Raises:
      ValueError: as `loading.prepare`, or for a split whose images cannot be read.
    """
    source = loading.prepare(**config.data)
    for key in SPLITS:
        try:
            found = loading.inspect(source, config[key])
        except ValueError as error:
            raise ValueError(f"`config.{key}`: {error}") from None
        logging.info("%s %r: %s", key, config[key], _described(found))
    workdir.claim(directory, config.to_dict())
    splits = source.builder.info.splits
    return {split: info.num_examples for split, info in splits.items()}


def _described(found: dict) -> str:
    """Say what `loading.inspect` found in a line."""
    said = f"{found['images']} images"
    if "smallest" in found:
        low, high = (f"{found[k][1]}x{found[k][0]}" for k in ("smallest", "largest"))
        said += (
            f", the first {low}" + (f" to {high}" if low != high else "") + " pixels"
        )
    if classes := found.get("classes"):
        fewest, most = (end(classes, key=classes.get) for end in (min, max))
        said += f"; {len(classes)} classes, of each {classes[fewest]}"
        if classes[fewest] < classes[most]:
            low, high = text.printable(fewest), text.printable(most)
            said += f" ({low}) to {classes[most]} ({high})"
    return said


def convert(config, directory) -> dict:
    """Turn a file of PyTorch weights into `directory`/network, for `networks.load`.

    Of a method whose networks are published in one file, `config.method.name`, each role
    gets a directory. The classes have no names: such a file has none.

    Returns:
      `num_classes`, `parameters`, and by role the directory of each network, such as
      `network`.

    Raises:
      ValueError: for a file that cannot be read or is of another network, before
        anything is written.
    """
    if config.method.name:
        return _convert_method(config, directory)
    try:
        classes = config.num_classes or _classes(torch_import.read(config.source))
        description = {
            "name": config.model,
            "num_classes": classes,
            "dtype": config.dtype,
        }
        variables = torch_import.import_weights(
            config.source,
            models.create(**description),
            fresh_classifier=config.fresh_classifier,
            seed=config.seed,
        )
    except ImportError as error:
        raise ValueError(f"`config.source`: {error}") from error
    directory = workdir.claim(directory, config.to_dict())
    target = directory / train.NETWORK
    networks.save(target, description, variables, config=config.to_dict())
    result = {
        "network": str(target),
        "num_classes": classes,
        "parameters": multiply_adds.parameters(variables),
    }
    return result


def _convert_method(config, directory) -> dict:
    """Convert all networks of a method, see `convert`."""
    name, known = config.method.name, registry.PUBLISHED
    if name not in known or config.num_classes or config.fresh_classifier:
        raise ValueError(
            f"`config.method.name` is {name!r}, `config.num_classes` "
            f"{config.num_classes} and `config.fresh_classifier` "
            f"{config.fresh_classifier}; of a method's file allowed are {sorted(known)}, "
            "0 and False"
        )
    found = known[name](config.source, config.model)
    directory = workdir.claim(directory, config.to_dict())
    total = 0
    for role, (_, variables, about) in found.items():
        described = dict(about["model"])
        networks.save(directory / role, described, variables, config=config.to_dict())
        total += multiply_adds.parameters(variables)
    return {
        "num_classes": described["num_classes"],
        "parameters": total,
        **{role: str(directory / role) for role in found},
    }


def _classes(state) -> int:
    """Count the classes: the outputs of the last linear layer of a state dict."""
    outputs = [
        len(array)
        for name, array in state.items()
        if name.endswith("weight") and array.ndim == 2
    ]
    if not outputs:
        raise ValueError(
            "`config.source` has no linear layer to tell the number of classes; "
            "give `config.num_classes`"
        )
    return outputs[-1]


def given(config, directory) -> dict:
    """Take what was trained elsewhere in the place of a training.

    In the place of one that trains several networks of `config.method`, `config.init_from`
    holds a directory for each role, such as a stage or a conversion writes; a role that is
    not there is left out.

    Returns:
      By role the directory of each network, such as `network`.

    Raises:
      ValueError: if `config.init_from` holds no network, or weights that are not there.
    """
    if not config.init_from:
        raise ValueError("`config.init_from` is empty; give a network's directory")
    found = {train.NETWORK: config.init_from}
    if config.objective in train.OF_A_METHOD:
        places = pathlib.Path(config.init_from).glob("*/metadata.json")
        known = registry.METHODS[config.method.name].roles(**_arguments(config.method))
        found = {p.parent.name: str(p.parent) for p in sorted(places)}
        found = {role: path for role, path in found.items() if role in known}
        if not found:
            raise ValueError(
                f"`config.init_from` is {config.init_from!r}, which has no directory of "
                f"a network that is named {', '.join(known)}"
            )
    taken = {role: _take(path) for role, path in found.items()}
    directory = workdir.claim(directory, config.to_dict())
    for role, network in taken.items():
        about = dict(network.metadata)
        described = about.pop("model")
        networks.save(directory / role, described, network.variables, **about)
    return {role: str(directory / role) for role in taken}


def _take(path):
    known = pretrained.named(path)
    return (pretrained.create if known else networks.load)(path)


def _arguments(method) -> dict:
    """Return what a config's method has beside its name and its networks."""
    return {k: v for k, v in method.items() if k not in ("name", "networks")}


INPUTS = ("init_from", "localizer", "teacher", "evaluation", "source")  # keys of paths
STAGES = {
    "prepare": prepare,
    "given": given,
    "convert": convert,
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "export": export.export,
    "table_3_2020": table_3_2020.table_3_2020,
    "analyses_2020": analyses_2020.analyses_2020,
}


@workdir.released()
def pipeline(config, directory) -> dict:
    """Run the unfinished ones of `config.stages`, end with a report.

    Writes each stage's files in `directory`/STAGE and, from the last `evaluate` stage,
    `summary.json`, `report.html` and its figures.

    Returns:
      What `summary.json` holds: the evaluation's summary and `seconds` of each stage
      (a stage that was killed and resumed counts from its last start).

    Raises:
      ValueError: for a config that cannot run.
    """
    if sorted(config.order) != sorted(config.stages):
        raise ValueError(
            f"`config.order` is {config.order}; it must name each of the stages "
            f"{sorted(config.stages)} once"
        )
    for name, one in config.stages.items():
        if one.program not in STAGES:
            raise ValueError(
                f"`config.stages.{name}.program` is {one.program!r}; "
                f"choose one of {sorted(STAGES)}"
            )
    _check_paths(config, pathlib.Path(directory))
    directory = workdir.claim(directory, config.to_dict())
    evaluated, summary, seconds, made = "", {}, {}, []
    for number, name in enumerate(config.order, 1):
        logging.info("stage %d of %d: %s", number, len(config.order), name)
        program, result = config.stages[name].program, stage(config, name, directory)
        seconds[name] = result["seconds"]
        if program == "prepare":
            _check_splits(config)
        if program == "evaluate":
            evaluated, summary = name, result
        if program == "export":
            made.append(directory / name)
    summary = {**summary, "seconds": seconds}
    if jax.process_index() == 0:
        if evaluated:
            shutil.copy(directory / evaluated / "examples.npz", directory)
        files.write_sealed(directory / "summary.json", summary)
        made = [directory / "summary.json", report.write(directory), *made]
        logging.info("wrote %s", ", ".join(str(path) for path in made))
    return summary


def _with_splits(config):
    """Return a copy in which the splits of a folder that were left empty are found."""
    config, known = config.copy_and_resolve_references(), {}
    for one in (config, *config.stages.values()):
        name = one.data.name
        if all(one[key] for key in SPLITS) or not isinstance(name, str):
            continue
        if name not in known:
            known[name] = loading.find_splits(name)
        for key, split in known[name].items():
            one[key] = one[key] or split
    return config


def _check_splits(config) -> None:
    """Raise ValueError for a split that some stage needs and the data does not have."""
    for name, one in config.stages.items():
        source = loading.prepare(**one.data)
        for key in SPLITS:
            try:
                source.examples(one[key])
            except ValueError as error:
                raise ValueError(f"`config.stages.{name}.{key}`: {error}") from None


@workdir.released()
def stage(config, name: str, directory) -> dict:
    """Run one stage of a pipeline, after those that it needs, unless it is finished.

    Returns:
      As `run_stage`.
    """
    config = _with_splits(config)
    directory = workdir.claim(directory, config.to_dict())
    return run_stage(
        _resolved(config.stages[name], directory, config.order), directory / name
    )


@workdir.released()
def run_stage(config, directory) -> dict:
    """Run one program, unless `directory` holds its result already.

    Returns:
      The program's result and `seconds`, as `result.json` holds them.
    """
    result = workdir.finished(directory)
    if result is not None:
        workdir.claim(directory, config.to_dict())
        logging.info("finished before, see %s", directory)
        return result
    begun = time.monotonic()
    result = STAGES[config.program](config, directory)
    result["seconds"] = round(time.monotonic() - begun, 1)
    workdir.finish(directory, result)
    if jax.process_index() == 0:
        logging.info(
            "%s: wrote %s in %.0f s", config.program, directory, result["seconds"]
        )
    return result


def _resolved(config, directory: pathlib.Path, stages: Sequence[str]):
    """Return a copy in which what a stage makes is inside the pipeline's directory.

    Args:
      config: of one stage.
      directory: of the pipeline.
      stages: names of all; a path that begins with none of them stays as it was given.
    """
    config = config.copy_and_resolve_references()
    for _, part, key in _paths(config):
        if part[key].split("/")[0] in stages:
            part[key] = str(directory / part[key])
    return config


def _paths(config):
    """Return (name, part of the config, key) of each path to what was made before."""
    found = [(key, config, key) for key in INPUTS]
    found += [(f"networks.{key}", config.networks, key) for key in config.networks]
    methods = {"method": config.method} | {
        f"references.{name}": method for name, method in config.references.items()
    }
    for name, method in methods.items():
        networks = method.networks
        found += [(f"{name}.networks.{key}", networks, key) for key in networks]
    return found


def _check_paths(config, directory: pathlib.Path) -> None:
    """Raise ValueError for what no stage makes and is not there, if it is needed yet."""
    for name, one in config.stages.items():
        if workdir.finished(directory / name) is not None:
            continue
        for key, part, last in _paths(one):
            path = part[last]
            made = path.split("/")[0] in config.order or pretrained.named(path)
            if path and not made and not pathlib.Path(path).exists():
                raise ValueError(
                    f"`config.stages.{name}.{key}` is {path!r}, where nothing is; allowed "
                    f"is what exists, or what one of the stages {[*config.order]} makes"
                )


PROGRAMS = {
    **{name: run_stage for name in STAGES},
    "pipeline": pipeline,
    "predict": predict.predict,
    "compare": compare.compare,
}


@workdir.released()
def run(config, directory) -> dict:
    """Run `config.program`, the same on all hosts.

    Raises:
      ValueError: for an unknown program, a config that cannot run, or hosts that were
        started with different ones.
    """
    workdir.agree(directory, config.to_dict())
    config = _with_splits(config)
    checks.check(config.to_dict())
    if config.program not in PROGRAMS:
        raise ValueError(
            f"`config.program` is {config.program!r}; choose one of {sorted(PROGRAMS)}"
        )
    return PROGRAMS[config.program](config, directory)
