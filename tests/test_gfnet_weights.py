"""Published files of GFNet, in both layouts, and the names of its encoders."""

import collections
import json
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from anchornet_jax import models
from anchornet_jax.methods import gfnet_weights, registry
from anchornet_jax.models import gfnet, layers, multiply_adds
from anchornet_jax.models.efficientnet import EFFICIENT_B0, EfficientNet
from anchornet_jax.models.resnet import ResNet
from anchornet_jax.programs import pipeline
from anchornet_jax.runtime import networks as disk
from anchornet_jax.runtime import torch_import
from configs import convert
from configs import gfnet as gfnet_config
from tests import torch_writer
from tests.test_gfnet_method import ENCODER, PATCH, networks

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "peers_state_shapes.json").read_text())
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
LEAVES |= {"var": "running_var"}
# Beside the weights, in released files and in those of the training program.
RELEASED = {"model_name": "resnet_tiny", "patch_size": 32, "flops": [1.5, 2.5]}
RELEASED |= {"dynamic_threshold": np.ones((39, 3), np.float32)}
TRAINED = {"epoch": 3, "acc": 70.5, "best_acc": 71.0, "optimizer": {"state": {0: None}}}
TRAINED |= {"ppo_optimizer": None}


def as_torch(variables):
    """Return a network's state dict, as PyTorch names and lays it out."""
    found = collections.OrderedDict()
    for path, array in traverse_util.flatten_dict(variables).items():
        _, *modules, leaf = path
        if leaf == "kernel":
            array = np.moveaxis(array, (-1, -2), (0, 1))
        name = re.sub(r"(?<!^fc)_(?=\d)", ".", ".".join(modules))
        found[f"{name}.{LEAVES.get(leaf, leaf)}"] = np.ascontiguousarray(array)
    return found


def write(path, given, prefix, beside, without=()):
    """Write networks by role as one published file."""
    content = dict(beside)
    for role, key in gfnet_weights.KEYS.items():
        if role not in without:
            start = prefix if role in gfnet_weights.ENCODERS else ""
            state = as_torch(given[role].variables)
            content[key] = collections.OrderedDict(
                (start + name, array) for name, array in state.items()
            )
    torch_writer.write(path, content)


@pytest.fixture
def tiny(monkeypatch):
    for name in ("resnet_tiny", "tiny_encoder"):
        monkeypatch.setitem(models.MODELS, name, (ResNet, ENCODER))


@pytest.mark.parametrize(
    ("cascade", "prefix", "beside"),
    [(False, "module.", RELEASED), (True, "", TRAINED)],
    ids=["released", "trained"],
)
def test_convert_reads_both_layouts(cascade, prefix, beside, tiny, tmp_path):
    """All networks to the bit, and a method that is made of them."""
    given = networks(cascade)
    write(tmp_path / "a.pth.tar", given, prefix, beside)
    config = convert.get_config()
    config.method.name, config.model = "gfnet", "resnet_tiny"
    config.source = str(tmp_path / "a.pth.tar")
    result = pipeline.convert(config, tmp_path / "run")
    assert result["num_classes"] == 3
    found = {role: disk.load(result[role]) for role in gfnet_weights.KEYS}
    total = 0
    for role, network in found.items():
        jax.tree.map(
            np.testing.assert_array_equal, network.variables, given[role].variables
        )
        total += multiply_adds.parameters(network.variables)
    assert result["parameters"] == total
    stage = gfnet_config.get_config().stages.fine_tune
    stage.init_from = str(tmp_path / "run")
    taken = pipeline.given(stage, tmp_path / "taken")
    assert set(taken) == set(found)
    assert disk.load(taken["policy"]).metadata["model"]["name"] == "gfnet_policy"
    method = registry.create("gfnet", found, inputs=3, patch_size=PATCH)
    assert len(method.macs(48)) == 3


def test_policy_may_be_missing(tiny, tmp_path):
    """As in files of the first training."""
    given = networks(False)
    write(
        tmp_path / "a.pth", given, "", {**TRAINED, "policy": None}, without={"policy"}
    )
    assert set(gfnet_weights.read(tmp_path / "a.pth", "resnet_tiny")) == {
        "glance",
        "patch",
        "classifier",
    }


def test_refused(tiny, tmp_path):
    given, path = networks(False), tmp_path / "a.pth"
    for encoder, message in (
        ("bagnet9", "`encoder` is 'bagnet9'; allowed are networks whose names begin"),
        ("resnet18", "do not match"),
        ("efficientnet_b0", "model_prime_state_dict of .* are no weights of efficient"),
    ):
        write(path, given, "", TRAINED)
        with pytest.raises(ValueError, match=message):
            gfnet_weights.read(path, encoder)
    for content, message in (
        ({"fc": {}}, "has no model_prime_state_dict; the published files of GFNet"),
        ([1, 2], "has no model_prime_state_dict"),
        ({"fc": {"bias": 3}}, "fc of .* is no state dict: keys"),
    ):
        torch_writer.write(path, content)
        with pytest.raises(ValueError, match=message):
            gfnet_weights.read(path, "resnet_tiny")
    for read, message in (
        (gfnet_weights.classifier, "`fc` is no classifier of GFNet: 'fc_2.weight'"),
        (lambda state: gfnet_weights.policy(state, 3), "`policy` is no policy"),
    ):
        with pytest.raises(ValueError, match=message):
            read({})
    config = convert.get_config()
    config.method.name, config.num_classes = "gfnet", 3
    with pytest.raises(ValueError, match="`config.num_classes` 3 and .* allowed are"):
        pipeline.convert(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    stage = gfnet_config.get_config().stages.policy
    stage.init_from = str(tmp_path)
    with pytest.raises(ValueError, match="which has no directory of a network that is"):
        pipeline.given(stage, tmp_path / "taken")


def timm_names(width, depth, classes):
    """Return {name: shape} of an EfficientNet as timm's old code has it."""
    wide = lambda channels: layers.make_divisible(channels * width)
    shapes = {}

    def conv_bn(conv, bn, out, given, kernel):
        shapes[f"{conv}.weight"] = (out, given, kernel, kernel)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{bn}.{leaf}"] = (out,)

    conv_bn("conv_stem", "bn1", wide(32), 3, 3)
    given = wide(32)
    for stage, row in enumerate(EFFICIENT_B0):
        for i in range(math.ceil(row.depth * depth)):
            block, middle = f"blocks.{stage}.{i}", given * row.expansion
            norms = iter(f"{block}.bn{n}" for n in (1, 2, 3))
            if stage:
                conv_bn(f"{block}.conv_pw", next(norms), middle, given, 1)
            conv_bn(f"{block}.conv_dw", next(norms), middle, 1, row.kernel)
            for name, sides in (("reduce", (given // 4, middle)), ("expand", ())):
                sides = sides or (middle, given // 4)
                shapes[f"{block}.se.conv_{name}.weight"] = (*sides, 1, 1)
                shapes[f"{block}.se.conv_{name}.bias"] = sides[:1]
            last = "conv_pwl" if stage else "conv_pw"
            conv_bn(f"{block}.{last}", next(norms), wide(row.out), middle, 1)
            given = wide(row.out)
    conv_bn("conv_head", "bn2", 4 * given, given, 1)
    return shapes | {
        "classifier.weight": (classes, 4 * given),
        "classifier.bias": (classes,),
    }


def test_names_of_efficientnet():
    """Every array has its place, by shape; of equal shapes, by value."""
    scales = {"width": 0.25, "depth": 0.4}
    shapes = timm_names(**scales, classes=3)
    state = {n: np.full(s, i, np.float32) for i, (n, s) in enumerate(shapes.items())}
    model = EfficientNet(3, **scales)
    pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    template = jax.eval_shape(model.init, jax.random.key(0), pixels)
    found = torch_import.convert(gfnet.efficientnet_state(state), template)
    params, statistics = found["params"], found["batch_stats"]
    for block, module, name in (
        ("features_1_0", "block_0_1", "blocks.0.0.bn1"),
        ("features_1_0", "block_2_1", "blocks.0.0.bn2"),
        ("features_6_1", "block_1_1", "blocks.5.1.bn2"),
        ("features_6_1", "block_3_1", "blocks.5.1.bn3"),
    ):
        own = params[block][module]["bias"], statistics[block][module]["var"]
        assert [a[0] for a in own] == [
            state[f"{name}.{k}"][0] for k in ("bias", "running_var")
        ]
    assert params["features_8_1"]["scale"][0] == state["bn2.weight"][0]
    assert (
        params["features_2_0"]["block_2"]["fc1"]["bias"][0]
        == (state["blocks.1.0.se.conv_reduce.bias"][0])
    )


def test_wider_mobilenet():
    """Told by the last map; a glance of 128 px takes 120 M multiply-adds."""
    last = {"blocks.6.0.conv.weight": np.empty((1200, 1, 1, 1))}
    _, own = gfnet_weights.FAMILIES["mobilenet"](last)
    model = models.create("mobilenet_v3_large", 1000, **own)
    assert round(multiply_adds.model_macs(model, 128) / 1e6) == 120
    own = SHAPES["gfnet_mobilenetv3_large_100_96"]["model.blocks.6.0.conv.weight"]
    assert own[0] == gfnet.V3_LAST
