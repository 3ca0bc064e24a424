"""Networks give the numbers that PyTorch's give with the same weights."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from anchornet_jax import models, torch_import
from tests.golden import recipe

GOLDEN = pathlib.Path(__file__).parent / "golden"
LOGITS = dict(np.load(GOLDEN / "torchvision_95px.npz"))
NETWORKS = sorted(LOGITS.keys() - {"seed", "image_seeds"})


@functools.cache
def make_state(name):
    shapes = json.loads((GOLDEN / "state_shapes.json").read_text())[name]
    seed = int(LOGITS["seed"])
    return {key: recipe.tensor(seed, key, tuple(shapes[key])) for key in shapes}


def make_template(model):
    images = jax.ShapeDtypeStruct((1, 95, 95, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_torchvision(name):
    model = models.create(name, num_classes=1000)
    variables = torch_import.convert(make_state(name), make_template(model))
    images = np.stack([recipe.image(int(s), 95) for s in LOGITS["image_seeds"]])
    images = recipe.normalised(images)
    logits = jax.jit(lambda *args: model.apply(*args)[0])(variables, images)
    error = np.abs(logits - LOGITS[name]).max() / np.abs(LOGITS[name]).max()
    assert error < 1e-4, error
