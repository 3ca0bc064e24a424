import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax.programs import pipeline
from anchornet_jax.runtime import networks, torch_import
from anchornet_jax.training import train
from configs import convert
from tests.tiny import config as tiny_config
from tests.tiny import tiny  # noqa: F401


def make_state(classes=5):
    """Return `tiny` as PyTorch would hold it, without names that only training needs."""
    rng = np.random.default_rng(0)
    shapes = {"conv1.weight": (8, 3, 5, 5), "fc.weight": (classes, 8)}
    shapes |= {f"bn1.{leaf}": (8,) for leaf in ("weight", "bias", "running_mean")}
    shapes |= {"bn1.running_var": (8,), "fc.bias": (classes,)}
    return {name: rng.random(shape, np.float32) + 0.5 for name, shape in shapes.items()}


@pytest.fixture
def config(tiny, monkeypatch):  # noqa: F811
    """Return a config whose source is `make_state`."""
    config = convert.get_config()
    config.source, config.model = "weights.pth", "tiny"
    monkeypatch.setattr(torch_import, "read", lambda path: make_state())
    return config


def test_convert(config, tmp_path):
    result = pipeline.PROGRAMS["convert"](config, tmp_path / "run")
    assert result["num_classes"] == 5  # of the file
    # tests/tiny.py: convolution 8*3*5*5, BatchNorm 2*8, classifier 5*8 + 5
    assert result["parameters"] == 600 + 16 + 45
    network = networks.load(result["network"])
    state = make_state()
    params = network.variables["params"]
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)
    images = np.random.default_rng(1).random((2, 5, 5, 3), np.float32)
    logits, _ = network.model.apply(network.variables, images)
    # One window of 5x5 pixels: the network is a product, worked out by hand.
    x = np.einsum("bhwc,ochw->bo", images, state["conv1.weight"])
    x = (x - state["bn1.running_mean"]) / np.sqrt(state["bn1.running_var"] + 1e-5)
    x = np.maximum(x * state["bn1.weight"] + state["bn1.bias"], 0)
    wanted = x @ state["fc.weight"].T + state["fc.bias"]
    np.testing.assert_allclose(logits, wanted, rtol=1e-4)


def test_training_starts_from_it(config, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_import, "read", lambda path: make_state(classes=10))
    start = pipeline.convert(config, tmp_path / "run")["network"]
    changes = tiny_config(data_dir, init_from=start, epochs=0.25)
    changes.optimizer.learning_rate = 0.0  # nothing moves: it ends where it started
    result = train.train(changes, tmp_path / "trained")
    begin, end = networks.load(start), networks.load(result["network"])
    jax.tree.map(
        np.testing.assert_array_equal,
        end.variables["params"],
        begin.variables["params"],
    )


def test_fresh_classifier(config, tmp_path):
    config.num_classes, config.fresh_classifier = 7, True
    result = pipeline.convert(config, tmp_path / "run")
    assert result["num_classes"] == 7
    network = networks.load(result["network"])
    logits, _ = network.model.apply(network.variables, jnp.zeros((1, 16, 16, 3)))
    assert logits.shape == (1, 7)
    kernel = network.variables["params"]["conv1"]["kernel"]
    wanted = make_state()["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 7}, "needs `fresh_classifier`"),
        ({"model": "resnet18"}, "params/layer1_0/conv1/kernel"),
        ({"model": ""}, "`name` is ''; choose one of"),
    ],
)
def test_bad_conversion_writes_nothing(config, tmp_path, changes, message):
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        pipeline.convert(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_linear_layer(config, tmp_path, monkeypatch):
    state = {name: x for name, x in make_state().items() if "fc" not in name}
    monkeypatch.setattr(torch_import, "read", lambda path: state)
    with pytest.raises(ValueError, match="give `config.num_classes`"):
        pipeline.convert(config, tmp_path)


def test_missing_file_and_missing_reader(config, tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="`path` is 'weights.pth'; there is no such"):
        pipeline.convert(config, tmp_path)
    config.source = str(tmp_path / "weights.safetensors")
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="`config.source`: .*pip install safetensors"):
        pipeline.convert(config, tmp_path / "run")
