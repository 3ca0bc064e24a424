"""Every key of a config has a range; what is outside is named before anything runs."""

import importlib
import json
import math
import sys
import types

import pytest

from anchornet_jax.programs import checks, pipeline
from anchornet_jax.runtime import pretrained
from configs import anchornet, common
from tests.test_configs import CONFIGS, load

BAD = {
    "seed": [-1, 2**70, 1.5],
    "data.name": [""],
    "data.image_size": [-1, -5, 10**7],
    "data.augment": ["crop"],
    "data.resize": [-7, 100],
    "data.bad_images": ["ignore"],
    "train_split": ["", " "],
    "view.name": ["whole"],
    "view.k": [0, -3],
    "view.iou_threshold": [-0.1, 1.1, math.nan],
    "view.preset": ["few"],
    "view.branch": [-1],
    "batch_size": [0, -1],
    "accumulate": [0],
    "epochs": [-1.0, 0.0, math.nan, math.inf],
    "dtype": ["float8"],
    "optimizer.name": ["lamb"],
    "optimizer.learning_rate": [0.0, -0.1, math.nan, math.inf],
    "optimizer.schedule": ["flat"],
    "optimizer.warmup": [-0.1, 2.0],
    "optimizer.boundaries": [(0.6, 0.3), (0.3, 0.3), (30,), (0.0,), ("a",)],
    "optimizer.momentum": [5.0, -1.0, math.nan, 1.0],
    "optimizer.weight_decay": [-1.0, math.nan],
    "optimizer.rates": [{"patch": -1.0}, {"patch": "high"}],
    "fixed": [(1,)],
    "auxiliary": [-1.0],
    "ppo.discount": [1.1, -0.1],
    "ppo.deviation": [0.0],
    "label_smoothing": [1.0, -0.1],
    "mixup": [-1.0],
    "save_every_epochs": [0.0],
    "settle_batches": [-1],
    "log_every_steps": [0],
    "method.name": ["resnet"],
    "rule": ["foo"],
    "budgets": [0],
    "timing.images": [-1],
    "timing.batch_size": [0],
    "analysed_images": [-1],
    "num_classes": [-1],
    "budget": [-1.0, math.inf],
    "max_pixels": [0],
}


def set_key(tree, key, value):
    """Set what a dotted key leads to."""
    *path, last = key.split(".")
    for part in path:
        tree = tree[part]
    tree[last] = value


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in BAD.items() for value in values]
)
def test_what_is_not_allowed(key, value, tmp_path):
    config = common.get_config().to_dict()
    set_key(config, key, value)
    with pytest.raises(ValueError, match=f"`config.{key}` is ") as caught:
        checks.check(config)
    assert repr(value) in str(caught.value) and "; allowed are " in str(caught.value)
    whole = json.loads(json.dumps(anchornet.get_config().to_dict()))  # shares nothing
    set_key(whole["stages"]["patch"], key, value)
    with pytest.raises(ValueError, match=f"`config.stages.patch.{key}` is "):
        checks.check(whole)


def test_before_anything_else(tmp_path):
    """Also what is used at the end alone, such as the rule."""
    config = anchornet.get_config()
    config.stages.evaluate.rule = "foo"
    with pytest.raises(ValueError, match=r"`config.stages.evaluate.rule` is 'foo'"):
        pipeline.run(config, tmp_path / "run")
    config = anchornet.get_config("plates,resnet5")
    with pytest.raises(
        ValueError, match=r"`config.stages.full_image.model` is 'resnet5"
    ):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("file", "argument"), CONFIGS)
def test_the_configs_pass(file, argument, monkeypatch):
    for package, name in pretrained.PACKAGES.values():  # as if they were installed
        module = types.ModuleType(package)
        path = staticmethod(lambda: "weights.pth")
        setattr(module, name, type(name, (), {"get_model_file_path": path}))
        monkeypatch.setitem(sys.modules, package, module)
    checks.check(load(file, argument).to_dict())


def test_every_key_has_a_range():
    """But for those whose values another table knows."""
    elsewhere = {
        "model",  # models.MODELS, for programs that make one
        "method.networks",
        "references",
        "networks",
        "parts",  # models.PARTS as well
        "stages",
        "order",
    }
    config = common.get_config()
    keys = {
        f"{name}.{inner}" if hasattr(part, "keys") and part else name
        for name, part in config.items()
        for inner in (part.keys() if hasattr(part, "keys") and part else [""])
    }
    assert keys == set(checks.KEYS) | elsewhere
    others = ("predict", "convert")
    for name in others:
        config = importlib.import_module(f"configs.{name}").get_config()
        config.model = "resnet10"
        checks.check(config.to_dict())


@pytest.mark.parametrize("program", ["train", "evaluate", "export", "prepare"])
def test_images_as_they_are(program):
    """Neither for training nor for a method whose images are on the device."""
    config = common.get_config()
    config.program, config.data.image_size = program, 0
    config.method = common.method("large", {})
    config.references.other = common.static("")
    if program == "prepare":
        return checks.check(config.to_dict())
    with pytest.raises(ValueError, match="`config.data.image_size` is 0.*from 1"):
        checks.check(config.to_dict())
    if program != "train":
        del config.references.other
        checks.check(config.to_dict())
