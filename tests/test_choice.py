"""How many patches, and how far apart: chosen on the calibration images."""

import jax
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.data import loading
from anchornet_jax.inference import exit_table, export, fitting, results
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import registry
from anchornet_jax.programs import evaluate
from anchornet_jax.runtime import networks, parallel
from configs import common
from tests import tiny as tiny_network
from tests.tiny import Tiny, TinyScales, drawn, tiny  # noqa: F401

THRESHOLDS = [0.1, 0.6]


def create(**arguments):
    """Return a method with three sizes of patches, on images of 60 pixels."""

    def network(model, size, seed):
        about = {"classes": ["a", "b", "c"]}
        return networks.Network(model, drawn(model, size, seed), about)

    members = {
        "localizer": network(TinyScales(3), 60, 0),
        "glance": network(Tiny(3), 20, 1),
        "patch": network(Tiny(3), 20, 2),
    }
    return registry.create("anchornet", members, **arguments)


def test_the_choice_is_made_anew_on_the_same_state():
    """Of thresholds the tables of methods made with them; of inputs the first exits."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 8, 10, 10, 3), np.uint8).repeat(6, 2).repeat(6, 3)
    method = create(inputs=4, iou_threshold=0.3)
    own = parallel.replicate(protocol.variables(method), jax.local_devices()[:1])
    found = protocol.make_tables(method, THRESHOLDS, features=True)(
        own, {"image": images}
    )
    boxes = [np.asarray(found[f"{number} boxes"])[0] for number in (0, 1)]
    np.testing.assert_array_equal(boxes[0][:, :2], boxes[1][:, :2])  # the best stays
    assert (boxes[0] != boxes[1]).any()
    alone = create(inputs=3, iou_threshold=THRESHOLDS[1])  # has one exit less
    wanted = protocol.make_table(alone, features=True)(own, {"image": images})
    for name in ("confidence", "predicted", "boxes", "features"):
        part = found[f"1 {name}"][:, :, :3]
        np.testing.assert_allclose(part, wanted[name], atol=1e-5, err_msg=name)


def test_the_better_table_is_chosen():
    rng = np.random.default_rng(0)
    confidence = rng.random((600, 3))
    correct = rng.random((600, 3)) < confidence
    late = correct.copy()
    late[:, 2] = True  # one more exit is always right
    tables = {
        "two exits": exit_table.ExitTable(confidence[:, :2], [1, 2], correct[:, :2]),
        "poor": exit_table.ExitTable(confidence, [1, 2, 3], correct),
        "good": exit_table.ExitTable(confidence, [1, 2, 3], late),
    }
    assert fitting.best(tables, [1.5, 2.0]) == "good"
    equal = {"one": tables["poor"], "other": tables["poor"]}
    assert fitting.best(equal, [1.5]) == "one"


@pytest.fixture
def config(data_dir, tmp_path, tiny, monkeypatch):  # noqa: F811
    """Return the config of an evaluation of tiny networks on disk."""
    monkeypatch.setitem(
        models.MODELS, "tiny_anchornet", (tiny_network.TinyAnchorNet, {})
    )
    source = loading.prepare("plates/small", data_dir=data_dir, image_size=127)
    names, members = source.classes, {}
    for seed, role in enumerate(("localizer", "glance", "patch")):
        kind, size = ("tiny_anchornet", 127) if role == "localizer" else ("tiny", 95)
        about = {"name": kind, "num_classes": len(names)}
        variables = drawn(models.create(**about), size, seed)
        networks.save(tmp_path / role, about, variables, classes=names)
        members[role] = str(tmp_path / role)
    made = tiny_network.config(data_dir, program="evaluate")
    made.data.image_size, made.timing.images, made.budgets = 127, 0, 4
    made.test_split, made.calibration_split = "test[:16]", "calibration[:32]"
    made.method = common.method("anchornet", members, inputs=3, iou_threshold=0.3)
    return made


@pytest.mark.slow
def test_program(config, tmp_path):
    """What is chosen is evaluated, said, and exported."""
    config.choice.inputs, config.choice.iou_threshold = (3, 2), (0.7,)
    found = evaluate.evaluate(config, tmp_path / "evaluate")
    assert found["method"]["iou_threshold"] == 0.7
    inputs = found["method"]["inputs"]
    assert inputs in (2, 3) and len(found["exits"]) == inputs
    table = exit_table.ExitTable.load(tmp_path / "evaluate" / "calibration.npz")
    assert table.confidence.shape == (32, inputs)
    assert table.feature_names[:2] == ("margin", "entropy")
    made = common.get_config()
    made.program, made.evaluation = "export", str(tmp_path / "evaluate")
    export.export(made, tmp_path / "export")
    there = export.load(tmp_path / "export").method
    assert (there.inputs, there.iou_threshold) == (inputs, 0.7)
    assert results.read(tmp_path / "evaluate").budgeted[0].decided_by == (
        "thresholds on confidence"
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("inputs", (2, 90), "`config.choice` holds {'inputs': 90, .*: `k` is 89"),
        ("budget", 1.0, "`config.choice.budget` is 1.0; the cheapest exit costs"),
        ("iou_threshold", (2.0,), "`iou_threshold` is 2.0; allowed is 0 to 1"),
    ],
)
def test_choices_that_cannot_be(config, tmp_path, key, value, message):
    config.choice.inputs = (2, 3)
    config.choice[key] = value
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_without_such_a_choice(config, tmp_path):
    config.method = common.static(config.method.networks.glance, 95)
    config.choice.inputs = (2, 3)
    with pytest.raises(ValueError, match="static has no regions that are chosen so"):
        evaluate.evaluate(config, tmp_path / "run")
