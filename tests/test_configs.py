"""Every config file loads, has no key of its own, and its docstring tells the truth."""

import importlib
import pathlib
import re

import pytest

from anchornet_jax import models
from anchornet_jax.methods import views
from anchornet_jax.programs import pipeline
from configs import common

ROOT = pathlib.Path(__file__).parent.parent
NETWORKS = ("resnet50", "densenet201")
CONFIGS = [  # (file, argument)
    ("anchornet", ""),
    ("anchornet", "multiscale"),
    ("demo", ""),
    ("demo_multiscale", ""),
    ("imagenette", ""),
    *(
        ("downstream", f"{network},{view}")
        for network in NETWORKS
        for view in ("full", "resized", "patches", "random", "b63", "b95", "b111")
    ),
    *((file, network) for file in ("dynamic", "scales") for network in NETWORKS),
]


def load(file, argument):
    """Return a config as main.py gets it."""
    module = importlib.import_module(f"configs.{file}")
    return module.get_config(*[argument] if argument else [])


def keys(tree, prefix=""):
    """Return the path of every value."""
    if not hasattr(tree, "items"):
        return {prefix}
    return {k for name, part in tree.items() for k in keys(part, f"{prefix}.{name}")}


def test_all_files_are_tested():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    # tests/test_convert.py and test_predict.py test those that train no network.
    others = {"__init__", "common", "convert", "predict"}
    assert files - others == {file for file, _ in CONFIGS}


@pytest.mark.parametrize(("file", "argument"), CONFIGS)
def test_config(file, argument):
    config = load(file, argument)
    known = keys(common.get_config())
    for stage in (config, *config.stages.values()):
        names = {k for k in keys(stage) if not k.startswith(".stages.")}
        assert names <= known and known - names <= {".stages", ".order"}
        assert stage.program in pipeline.PROGRAMS
        assert stage.model in models.MODELS
        assert stage.view.name in views.VIEWS


@pytest.mark.parametrize("file", sorted({file for file, _ in CONFIGS}))
def test_docstring_has_commands_that_work(file):
    text = importlib.import_module(f"configs.{file}").__doc__
    commands = re.findall(r"--config=(\S+?\.py):?(\S*) --workdir=runs/\w+", text)
    assert commands and len(commands) == text.count("--workdir")
    for path, argument in commands:
        assert path == f"configs/{file}.py"
        load(file, argument)
    for key in re.findall(r"--config\.([\w.]*\w)", text):
        assert f".{key}" in keys(common.get_config())
    assert "Data: " in text


@pytest.mark.parametrize("file", ["demo", "demo_multiscale", "imagenette"])
def test_stages_share_data_splits_and_seed(file):
    """So that one flag gives a pipeline another data set."""
    config = load(file, "").lock()
    config.update_from_flattened_dict(
        {
            "data.name": "folder:/mine",
            "data.resize": 300,
            "test_split": "val",
            "seed": 7,
        }
    )
    for stage in config.stages.values():
        stage = stage.copy_and_resolve_references().to_dict()
        assert stage["data"] == config.data.to_dict()
        assert stage["data"]["name"] == "folder:/mine"
        assert (stage["test_split"], stage["seed"]) == ("val", 7)


def test_localizer_of_2020():
    """2020, Sec. 4.1: batch, epochs, rate and its drops."""
    config = load("anchornet", "multiscale")
    assert (config.model, config.batch_size, config.epochs) == (
        "anchornet_multiscale",
        256,
        100,
    )
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.schedule) == (0.1, "step")
    assert optimizer.boundaries == (0.3, 0.6, 0.9) and not optimizer.nesterov


@pytest.mark.parametrize(("view", "size"), [("b63", 63), ("b95", 95), ("b111", 111)])
def test_stage_two_of_2020(view, size):
    """Sec. 4.1: the patches of the slacker settings, of each scale."""
    config = load("downstream", f"resnet50,{view}")
    assert config.localizer == load("scales", "resnet50").networks.anchornet
    found = dict(config.view)
    assert (found["name"], found["branch"], found["preset"]) == (
        "patches",
        size,
        "many",
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("view", ["resized", "patches", "random"])
def test_stage_two(network, view):
    """2022, Sec. 4.1; no Nesterov and k = 4 are the published implementation's."""
    config = load("downstream", f"{network},{view}")
    assert (config.model, config.view.name, config.view.k) == (network, view, 4)
    assert (config.batch_size, config.epochs) == (256, 30)
    assert config.init_from == f"runs/{network}_full/network"
    assert bool(config.localizer) == (view == "patches")
    optimizer = dict(config.optimizer)
    del optimizer["boundaries"]  # of the step schedule
    assert optimizer == {
        "learning_rate": 0.01,
        "schedule": "cosine",
        "warmup": 0.0,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
    }


def test_networks_are_looked_for_where_training_leaves_them():
    """The directories of the docstrings' commands are those that later runs read."""
    text = importlib.import_module("configs.downstream").__doc__
    directories = {"runs/anchornet", *re.findall(r"--workdir=(\S+)", text)}
    read = [load("dynamic", "resnet50").networks.to_dict()]
    read.append({"from": load("downstream", "resnet50,patches").init_from})
    for path in (path for paths in read for path in paths.values() if path):
        assert path.removesuffix("/network") in directories


@pytest.mark.parametrize(
    ("file", "argument"),
    [
        ("downstream", ""),
        ("downstream", "resnet50"),
        ("downstream", "resnet5,full"),
        ("downstream", "resnet50,crop"),
        ("downstream", "resnet50,full,full"),
        ("dynamic", ""),
        ("dynamic", "resnet50,full"),
        ("scales", "resnet10"),
    ],
)
def test_unknown_choice(file, argument):
    message = f"`argument` is '{argument}'; give .*resnet50, densenet201"
    with pytest.raises(ValueError, match=message):
        load(file, argument)
