"""Runs that are killed at random moments, and files in which a bit flips.

`KILLS=30 FLIPS=500 python -m pytest -n 0 tests/test_damage.py` kills each program 30
times and flips 500 bits; the suite does less of it.
"""

import functools
import json
import multiprocessing
import os
import re
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from anchornet_jax import models
from anchornet_jax.figures import examples
from anchornet_jax.inference import export, results
from anchornet_jax.programs import pipeline
from anchornet_jax.runtime import checkpoint, networks, workdir
from configs import compare as compare_config
from configs import convert as convert_config
from configs import predict as predict_config
from tests import torch_writer
from tests.test_convert import make_state
from tests.test_pipeline import small_demo
from tests.tiny import Tiny, TinyAnchorNet, tiny  # noqa: F401

KILLS = int(os.environ.get("KILLS", "2"))  # of each program
FLIPS = int(os.environ.get("FLIPS", "40"))
PATIENCE_S = 300  # with a process that a busy machine keeps waiting
SPAWN = multiprocessing.get_context("spawn")


def demo_config(directory, data_dir):
    """Return the whole way from training to export, without what a clock says."""
    config = small_demo(data_dir)
    for stage in config.stages.values():
        stage.timing.images = 0
        stage.data.image_size = stage.data.resize = 127
    return config


def compared(directory, data_dir):
    config = compare_config.get_config()
    config.runs = f"{directory / 'demo'},{directory / 'again'}"
    return config


def converted(directory, data_dir):
    config = convert_config.get_config()
    config.source, config.model = str(directory / "weights.pth"), "tiny"
    return config


def predicted(directory, data_dir):
    config = predict_config.get_config()
    config.export = str(directory / "demo" / "export")
    config.images = f"{directory / 'photos'}/*.png"
    return config


CONFIGS = {
    "demo": demo_config,
    "compare": compared,
    "convert": converted,
    "predict": predicted,
}


def run(program, inputs, data_dir, directory, begun):
    """Run a program as a process of its own does; say when all is imported."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    models.MODELS["tiny"] = (Tiny, {})
    models.MODELS["anchornet"] = (TinyAnchorNet, {})
    begun.set()
    pipeline.run(CONFIGS[program](inputs, data_dir), directory)


def start(*arguments):
    """Start a program (`run` tells the arguments); return when it has begun."""
    begun = SPAWN.Event()
    process = SPAWN.Process(target=run, args=(*arguments, begun), daemon=True)
    process.start()
    assert begun.wait(PATIENCE_S)
    return process


def end(process):
    process.join(PATIENCE_S)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def inputs(data_dir, tmp_path_factory):
    """Return a directory with what the programs need, made without a kill."""
    directory = tmp_path_factory.mktemp("inputs")
    child = start("demo", directory, data_dir, directory / "demo")
    begun = time.monotonic()
    end(child)
    seconds = time.monotonic() - begun
    shutil.copytree(directory / "demo", directory / "again")
    torch_writer.write(directory / "weights.pth", make_state())
    (directory / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (150, 140, 3), np.uint8)
        Image.fromarray(pixels).save(directory / "photos" / f"{number}.png")
    return directory, seconds


def plain(value, directory):
    """Return JSON without what differs from run to run: times, drawn names, seals."""
    if isinstance(value, dict):
        left_out = ("seconds", "time_ms", "sha256", "variables", "files")
        return {k: plain(v, directory) for k, v in value.items() if k not in left_out}
    if isinstance(value, list):
        return [plain(one, directory) for one in value]
    return value.replace(str(directory), ".") if isinstance(value, str) else value


def content(directory):
    """Return {name: what is in it} of all that a run leaves to be read."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = re.sub("_[0-9a-f]{8}/", "/", str(path.relative_to(directory)))
        kind = path.suffix
        if {"checkpoints", "variables"} & {part.split("_")[0] for part in path.parts}:
            continue  # read below, or of a training alone
        if kind == ".json" and (path.parent / "metadata.json").exists():
            leaves = jax.tree.leaves(checkpoint.load_variables(path.parent)[0])
            found[f"{name} variables"] = [leaf.tobytes() for leaf in leaves]
        if kind in (".json", ".jsonl"):
            lines = path.read_text() if kind == ".jsonl" else None
            values = lines.splitlines() if lines else [path.read_text()]
            found[name] = [plain(json.loads(v), directory) for v in values]
        elif kind == ".npz":
            with np.load(path) as arrays:
                found[name] = {k: arrays[k].tobytes() for k in arrays.files}
        elif kind == ".html":
            found[name] = None  # shows the seconds
        elif path.is_file() and "tfevents" not in name and name[-5:] != ".lock":
            found[name] = path.read_bytes()
    return found


def compare(found, wanted):
    """Check one thing after another, so that a difference is seen."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == value, name


@pytest.mark.parametrize("program", CONFIGS)
@pytest.mark.slow
def test_killed_at_random_moments(program, inputs, data_dir, tmp_path):
    directory, seconds = inputs
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rng = np.random.default_rng()
    if program == "demo":
        whole = directory / "demo"
    else:
        child = start(program, directory, data_dir, whole)
        begun = time.monotonic()
        end(child)
        seconds = time.monotonic() - begun
    wanted, kills = content(whole), 0
    while kills < KILLS:
        child = start(program, directory, data_dir, killed)
        child.join(rng.uniform(0, seconds))
        if child.is_alive():
            child.kill()
            child.join(PATIENCE_S)
            kills += 1
        else:  # finished before its time
            assert child.exitcode == 0
            compare(content(killed), wanted)
            shutil.rmtree(killed)
    end(start(program, directory, data_dir, killed))
    compare(content(killed), wanted)


def arrays(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), tree)


def read_export(directory):
    found, table = export.load(directory), export.load(directory).calibration
    steps = export.load_steps(directory)
    return (
        [arrays(one.variables) for one in found.method.networks.values()],
        {budget: rule.to_json() for budget, rule in found.rules.items()},
        [array.tobytes() for array in (table.confidence, table.correct, table.cost)],
        found.metadata,
        steps.metadata,
    )


def read_network(directory):
    found = networks.load(directory)
    return arrays(found.variables), found.metadata


def read_stage(directory):
    return workdir.read_config(directory), workdir.finished(directory)


def read_run(directory):
    found = results.read(directory)
    shown = examples.read(directory, len(found.classes), len(found.exits))
    return found, {name: array.tobytes() for name, array in shown.items()}


def newest_state(directory):
    """Return the arrays of the newest checkpoint, read as Orbax does."""
    steps = [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
    path = directory.absolute() / str(max(steps)) / "state"
    return ocp.StandardCheckpointer().restore(path)


def read_checkpoints(directory, template):
    """Return what a training would go on from; to set one aside is to notice it."""
    with checkpoint.Checkpoints(directory) as checkpoints:
        found = checkpoints.restore(template)
    if list(directory.glob("*.unreadable")):
        raise ValueError("a damaged one was set aside")
    return found[0], arrays(found[1])


def readers(demo):
    """Return (directory, who reads what is in it) for all of a run that is read."""
    found = [(".", read_run), (".", read_stage), ("export", read_export)]
    for path in sorted(demo.iterdir()):
        if (path / "result.json").exists():
            found.append((path.name, read_stage))
        if (path / "network").exists():
            found.append((f"{path.name}/network", read_network))
        if (path / "checkpoints").exists():
            template = newest_state(path / "checkpoints")
            read = functools.partial(read_checkpoints, template=template)
            found.append((f"{path.name}/checkpoints", read))
    return found


def files_of(directory, name):
    """Return the files of what is read as one: of a stage, not what lies below it."""
    deep = name.endswith(("network", "checkpoints", "export"))
    found = (directory / name).rglob("*") if deep else (directory / name).iterdir()
    return sorted(path for path in found if path.is_file())


@pytest.mark.slow
def test_flipped_bits(inputs, tmp_path, tiny):  # noqa: F811
    """A flipped bit in any file of a run changes nothing that is read, or is noticed.

    What is compared was read from the same place: configs name paths.
    """
    demo, copy = inputs[0] / "demo", tmp_path / "copy"
    rng, noticed = np.random.default_rng(), 0

    def read_copy(name, read, changed=None, data=b""):
        for path in files_of(demo, name):
            place = copy / path.relative_to(demo / name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data if path == changed else path.read_bytes())
        try:
            return read(copy)
        finally:
            shutil.rmtree(copy)

    known = [(*one, read_copy(*one)) for one in readers(demo)]
    for number in range(FLIPS):
        name, read, wanted = known[number % len(known)]
        paths = [path for path in files_of(demo, name) if path.stat().st_size]
        path = paths[rng.integers(len(paths))]
        data = bytearray(path.read_bytes())
        place = int(rng.integers(8 * len(data)))
        data[place // 8] ^= 1 << place % 8
        try:
            found = read_copy(name, read, path, bytes(data))
        except ValueError:
            noticed += 1
        else:
            assert found == wanted, f"bit {place} of {path}"
    assert noticed > FLIPS // 4
