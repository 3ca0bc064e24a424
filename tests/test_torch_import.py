"""Weights from PyTorch: the same numbers, from every kind of file, or a clear refusal."""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.models import layers
from anchornet_jax.runtime import torch_import
from tests import torch_writer
from tests.golden import recipe
from tests.selection import slow_but

GOLDEN = pathlib.Path(__file__).parent / "golden"
LOGITS = dict(np.load(GOLDEN / "torchvision_95px.npz"))
NETWORKS = sorted(LOGITS.keys() - {"seed", "image_seeds"})
FEW = ("resnet18", "resnext50_32x4d", "densenet121", "mobilenet_v3_large")
FEW += ("efficientnet_b0", "regnet_y_400mf")  # each family, and each kind of block


def make_state(name):
    """Return the state dict that `name` had when its logits were computed."""
    shapes = json.loads((GOLDEN / "state_shapes.json").read_text())[name]
    seed = int(LOGITS["seed"])
    return {key: recipe.tensor(seed, key, tuple(shapes[key])) for key in shapes}


def make_template(model):
    images = jax.ShapeDtypeStruct((1, 95, 95, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize("name", slow_but(FEW, NETWORKS))
def test_logits_equal_torchvision(name):
    model = models.create(name, num_classes=1000)
    variables = torch_import.convert(make_state(name), make_template(model))
    images = np.stack([recipe.image(int(s), 95) for s in LOGITS["image_seeds"]])
    # Compiles in less than half the time, and runs but once.
    fast = {"xla_backend_optimization_level": 0}
    apply = jax.jit(lambda *args: model.apply(*args)[0], compiler_options=fast)
    logits = apply(variables, recipe.normalised(images))
    error = np.abs(logits - LOGITS[name]).max() / np.abs(LOGITS[name]).max()
    assert error < 1e-4, error


def test_published_densenets_have_older_names():
    """Their files were written when torchvision's `norm1` was `norm.1`."""
    template = make_template(models.create("densenet121", num_classes=1000))
    state = make_state("densenet121")
    older = {
        key.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1", "conv.1")
        .replace("conv2", "conv.2"): array
        for key, array in state.items()
    }
    assert older.keys() != state.keys()
    new, old = (torch_import.convert(one, template) for one in (state, older))
    jax.tree.map(np.testing.assert_array_equal, new, old)


class Small(nn.Module):
    """A network with every kind of layer that a state dict can hold."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        x = layers.Conv(4, 3, stride=8, use_bias=True, name="stem_0")(images)
        x = layers.batch_norm(use_running_average=True, name="stem_1")(x)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


@functools.cache
def small_state(num_classes=5):
    shapes = {
        "stem.0.weight": (4, 3, 3, 3),
        "stem.0.bias": (4,),
        "stem.1.weight": (4,),
        "stem.1.bias": (4,),
        "stem.1.running_mean": (4,),
        "stem.1.running_var": (4,),
        "stem.1.num_batches_tracked": (),
        "fc.weight": (num_classes, 4),
        "fc.bias": (num_classes,),
    }
    return {name: recipe.tensor(0, name, shape) for name, shape in shapes.items()}


def convert_small(state, num_classes=5, **kwargs):
    return torch_import.convert(state, make_template(Small(num_classes)), **kwargs)


def test_layouts():
    state, variables = small_state(), convert_small(small_state())
    params, statistics = variables["params"], variables["batch_stats"]
    kernel = state["stem.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["stem_0"]["kernel"], kernel)
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)
    np.testing.assert_array_equal(params["stem_1"]["scale"], state["stem.1.weight"])
    variance = state["stem.1.running_var"]
    np.testing.assert_array_equal(statistics["stem_1"]["var"], variance)


def test_mismatch_lists_both_sides():
    state = {**small_state(), "head.0.weight": np.zeros((2, 2), np.float32)}
    state["stem.0.bias"] = np.zeros(3, np.float32)
    del state["fc.bias"]
    with pytest.raises(ValueError) as error:
        convert_small(state)
    lines = str(error.value).splitlines()[1:]
    assert sorted(lines) == [
        "+ params/head_0/kernel [2, 2]",
        "+ params/stem_0/bias [3]",
        "- params/fc/bias [5]",
        "- params/stem_0/bias [4]",
    ]


def test_only_known_leftovers_are_dropped():
    zeros = np.zeros((4, 4, 1, 1), np.float32)
    used = jax.tree.leaves(convert_small(small_state()))
    more = {**small_state(), "bneck.0.conv1.weight": zeros}  # AnchorNet's, unused
    assert len(jax.tree.leaves(convert_small(more))) == len(used)
    with pytest.raises(ValueError, match=r"\+ params/bneck_1/conv1/kernel"):
        convert_small({**small_state(), "bneck.1.conv1.weight": zeros})


def test_another_number_of_classes_only_when_asked():
    with pytest.raises(ValueError, match="fresh_classifier"):
        convert_small(small_state(), num_classes=7)
    fresh = convert_small(small_state(), num_classes=7, fresh_classifier=True)
    assert fresh["params"]["fc"]["kernel"].shape == (4, 7)
    same = convert_small(small_state())["params"]["stem_0"]
    jax.tree.map(np.testing.assert_array_equal, fresh["params"]["stem_0"], same)


def test_fresh_classifier_needs_all_else_to_fit():
    state = {**small_state(), "stem.1.weight": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"\+ params/stem_1/scale \[3\]"):
        convert_small(state, num_classes=7, fresh_classifier=True)


def test_same_number_of_classes_keeps_the_classifier():
    fresh = convert_small(small_state(), fresh_classifier=True)
    jax.tree.map(np.testing.assert_array_equal, fresh, convert_small(small_state()))


def test_import_initialises_a_fresh_classifier(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.touch()
    monkeypatch.setattr(torch_import, "read", lambda _: small_state())
    kwargs = {"fresh_classifier": True}
    kernels = [
        torch_import.import_weights(path, Small(7), seed=seed, **kwargs)["params"]["fc"]
        for seed in (0, 0, 1)
    ]
    assert {type(leaf) for leaf in jax.tree.leaves(kernels)} == {np.ndarray}
    one, again, other = (fc["kernel"] for fc in kernels)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


def test_missing_library(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        torch_import.read(tmp_path / "a.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="`path` is '.*a.pth'; there is no such file"):
        torch_import.read(tmp_path / "a.pth")


def assert_small(path):
    variables = torch_import.import_weights(path, Small(5))
    jax.tree.map(np.testing.assert_array_equal, variables, convert_small(small_state()))


@pytest.mark.parametrize("kind", torch_writer.KINDS)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", [None, *torch_import.WRAPPERS])
def test_torch_files(key, prefix, kind, tmp_path):
    state = {f"{prefix}{name}": array for name, array in small_state().items()}
    content = {key: state, "epoch": 3, "acc": 71.6} if key else state
    path = tmp_path / "weights.pth.tar"
    torch_writer.write(path, content, kind)
    assert_small(path)


@pytest.mark.parametrize("kind", torch_writer.KINDS)
def test_torch_half_precision(kind, tmp_path):
    state = {name: x.astype(jnp.bfloat16) for name, x in small_state().items()}
    torch_writer.write(tmp_path / "a.pth", state, kind)
    kernel = torch_import.import_weights(tmp_path / "a.pth", Small(5))["params"]["fc"]
    assert kernel["kernel"].dtype == np.float32


def test_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(small_state(), path)
    assert_small(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        torch_import.read(path)


@pytest.mark.parametrize("kind", torch_writer.KINDS)
def test_whole_module(kind, tmp_path):
    linear = torch_writer.Global("torch.nn.modules.linear", "Linear")
    torch_writer.write(tmp_path / "a.pth", torch_writer.Call(linear, ()), kind)
    with pytest.raises(ValueError, match=r"torch.*Linear.*state_dict\(\)"):
        torch_import.read(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 hello"])
def test_damaged_torch_file(content, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        torch_import.read(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", torch_writer.KINDS)
@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"net": {"fc": "text"}}])
def test_not_a_state_dict(content, kind, tmp_path):
    torch_writer.write(tmp_path / "a.pth", content, kind)
    with pytest.raises(ValueError, match="no state dict"):
        torch_import.read(tmp_path / "a.pth")
