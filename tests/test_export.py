import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import (
    engine,
    exit_table,
    export,
    fitting,
    results,
    serialised,
    stopping,
)
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import registry
from anchornet_jax.models.pixels import IMAGENET
from anchornet_jax.runtime import checkpoint, files, networks, workdir
from configs import common
from configs import export as export_config
from tests.tiny import tiny  # noqa: F401

SIZE = 127  # px: AnchorNet's grid is 5x5
CLASSES = ["a", "b", "c"]
RULE = stopping.ThresholdRule((0.4, 0.5))
METHOD = {"localizer": "anchornet", "glance": "tiny", "patch": "tiny"}


def make_network(name, size, seed):
    """Return a network with drawn weights; compiling `init` would take longer."""
    description = {"name": name, "num_classes": len(CLASSES)}
    model = models.create(**description)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        drawn = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim > 1:  # a kernel: outputs as large as inputs
            return 1.5 * drawn / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
        return abs(drawn) + 0.5 if path[-1].key in ("var", "scale") else 0.2 * drawn

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return networks.Network(
        model, variables, {"model": description, "classes": CLASSES}
    )


@pytest.fixture(scope="module")
def method():
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        members = {
            role: make_network(name, SIZE if role == "localizer" else 95, seed)
            for seed, (role, name) in enumerate(METHOD.items())
        }
        yield registry.create("anchornet", members, inputs=3, iou_threshold=0.8)


def register(patch):
    from tests.tiny import Tiny

    patch.setitem(models.MODELS, "tiny", (Tiny, {}))


def make_table(method):
    rng = np.random.default_rng(0)
    return exit_table.ExitTable(
        confidence=rng.random((40, 3)),
        predicted=rng.integers(0, 3, (40, 3)),
        label=rng.integers(0, 3, 40),
        cost=np.asarray(protocol.costs(method, SIZE), float),
    )


def point(macs):
    """Return the point of the rule that was fitted to a budget."""
    return results.Point(
        0.5, 0.9 * macs, [1.0, 0.0, 0.0], budget=macs, rule=RULE.to_json()
    )


@pytest.fixture(scope="module")
def exported(method, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "export"
    export.save(
        directory,
        method,
        image_size=SIZE,
        resize=160,
        budgets=[point(2e6)],
        calibration=make_table(method),
        config={"inputs": 3},
    )
    return directory


def told(rules):
    """Return rules as plain data, which can be compared."""
    return {budget: rule.to_json() for budget, rule in rules.items()}


def logits_of(method, images):
    """Return logits [B, T, N] and the boxes of networks in memory."""
    run = jax.jit(lambda v, x: protocol.run(method, v, x))
    logits, state = run(protocol.variables(method), images)
    return {"logits": logits, "boxes": method.regions(state, SIZE).boxes}


ELSEWHERE = """
import json, pathlib, socket, sys
def refuse(*_, **__):
    raise OSError("there is no network")
socket.getaddrinfo = socket.socket.connect = refuse
for name in ("tensorflow", "tensorflow_datasets", "clu", "torch"):
    sys.modules[name] = None
import jax
import numpy as np
import orbax.checkpoint as ocp
jax.config.update("jax_platforms", "cpu")
path, data = map(pathlib.Path, sys.argv[1:])
wanted = dict(np.load(data))
images = wanted.pop("images")

# The files alone, without this package.
about = json.loads((path / "metadata.json").read_text())
variables = ocp.StandardCheckpointer().restore(path / about["variables"])
file = path / about["metadata"]["files"] / "glance.jaxexport"
glance = jax.export.deserialize(bytearray(file.read_bytes()))
_, logits = glance.call({"glance": variables["glance"]}, images[:2])
assert not any(name.startswith("anchornet_jax") for name in sys.modules)

from anchornet_jax.inference import export
from tests import test_export

steps = export.load_steps(path)  # `tiny` is not registered here: no model code runs
_, found = steps.run[0](images[:2])
np.testing.assert_allclose(found, logits, 1e-5)
for rows in (1, 3, 8):
    found = steps.logits(images[:rows])
    np.testing.assert_allclose(found, wanted["logits"][:rows], 1e-4, 1e-4)

import pytest
test_export.register(pytest.MonkeyPatch())
method = export.load(path).method
found = test_export.logits_of(method, images)
np.testing.assert_array_equal(found["boxes"], wanted["boxes"])
np.testing.assert_allclose(found["logits"], wanted["logits"], 1e-4, 1e-4)
"""


def test_same_predictions_elsewhere(method, exported, tmp_path):
    """A fresh process, offline and without TensorFlow, from files that were moved."""
    shutil.copytree(exported, tmp_path / "moved")
    coarse = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 3), np.uint8)
    images = coarse.repeat(16, 1).repeat(16, 2)[:, :SIZE, :SIZE]
    wanted = logits_of(method, images)
    assert len(np.unique(wanted["boxes"], axis=0)) > 1  # images differ in something
    np.savez(tmp_path / "wanted.npz", images=images, **wanted)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "moved", tmp_path / "wanted.npz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_load(method, exported, tiny):  # noqa: F811
    found = export.load(exported)
    jax.tree.map(
        np.testing.assert_array_equal,
        protocol.variables(found.method),
        protocol.variables(method),
    )
    assert told(found.rules) == {2e6: RULE.to_json()}
    assert found.classes == protocol.classes(found.method) == CLASSES
    assert found.exits == ["glance", "look", "patch"]
    assert found.macs == protocol.costs(method, SIZE) and found.image_size == SIZE
    assert (found.method.inputs, found.method.iou_threshold) == (3, 0.8)
    table = make_table(method)
    np.testing.assert_array_equal(found.calibration.confidence, table.confidence)
    (fitted,) = fitting.fit(found.calibration, [table.cost[1]])
    assert fitted.rule.steps == 2
    about = json.loads((exported / "metadata.json").read_text())
    assert {"jax", "flax", "anchornet_jax"} <= set(about["versions"])
    about = about["metadata"]
    assert about["config"] == {"inputs": 3} and about["platforms"][1] == "cuda"
    sizes = {"localizer": SIZE, "glance": 95, "patch": 95}  # 2022, Table 1
    assert about["preprocessing"]["input_sizes"] == sizes
    for name, wanted in IMAGENET._asdict().items():
        assert about["preprocessing"][name] == {role: list(wanted) for role in METHOD}
    assert [step["places"] for step in about["steps"]] == [[0], [1], [2]]
    assert about["preprocessing"]["resize"] == 160


@pytest.mark.parametrize("rule", ["budget", "thresholds", "inputs"])
def test_classifier_of_an_export(exported, tiny, rule):  # noqa: F811
    table = export.load(exported).calibration
    value = {"budget": table.cost[1], "thresholds": [0.4, 0.6], "inputs": 2}[rule]
    classifier = engine.load(exported, **{rule: value}, batch_size=4)
    wanted = {
        "budget": fitting.fit(table, [table.cost[1]], "thresholds")[0].rule,
        "thresholds": stopping.ThresholdRule([0.4, 0.6]),
        "inputs": stopping.fixed(2, 3),
    }[rule]
    assert classifier.rule.to_json() == wanted.to_json()
    assert classifier.image_size == SIZE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of `budget`, `thresholds` and `inputs`"),
        ({"budget": 1e9, "inputs": 2}, "give one of `budget`"),
        ({"inputs": 4}, "`inputs` is 4; allowed is 1 to 3"),
        ({"thresholds": [0.5] * 4}, "`rule` decides 4 times; 3 exits need 2"),
        ({"thresholds": [float("nan")] * 2}, "`thresholds` of exit 1 is nan"),
        ({"budget": 1.0}, "`budgets` holds 1.0; the cheapest exit costs"),
        ({"budget": 1.0, "hold": True}, "`budgets` holds 1.0; the cheapest exit"),
        ({"inputs": 2, "hold": True}, "`hold` is True, but there is no `budget`"),
    ],
)
def test_classifier_that_cannot_be(exported, tiny, given, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        engine.load(exported, **given)


def test_control_of_a_budget(exported, tiny):  # noqa: F811
    """In multiply-adds, or in milliseconds that were measured."""
    found = export.load(exported)
    classifier = engine.load(exported, budget=2e6, hold=True, batch_size=4)
    assert classifier.rule.budget == 2e6 and classifier.rule.steps == 2
    assert classifier.rule.rule.name == "thresholds"  # as those exported
    held = found.control(2.5, [1.0, 2.0, 3.0])
    assert (held.unit, held.budget) == ("ms", 2.5)
    table = found.calibration.with_cost([1.0, 2.0, 3.0], "ms")
    (wanted,) = fitting.fit(table, [2.5], "thresholds")
    assert held.rule.to_json() == wanted.rule.to_json()


def test_rule_of_a_budget(exported, tiny):  # noqa: F811
    """An exported one as it is, any other fitted, of the same kind."""
    found = export.load(exported)
    exported_rules = {2e6: RULE, 1e6: stopping.ThresholdRule((0.1, 0.1))}
    found = found._replace(rules=exported_rules)
    assert [found.rule(b) for b in (0, 2e6, 1e6)] == [
        (2e6, RULE),
        (2e6, RULE),
        (1e6, exported_rules[1e6]),
    ]
    budget = float(found.calibration.cost[1])
    for kind, rule in (
        ("thresholds", RULE),
        ("value", stopping.ValueRule([[0] * 3, [0] * 4])),
    ):
        (wanted,) = fitting.fit(found.calibration, [budget], kind)
        fitted = found._replace(rules={2e6: rule}).rule(budget)
        assert fitted[0] == budget
        assert fitted[1].to_json() == wanted.rule.to_json()


def test_budget_without_evaluation(method, tmp_path, tiny):  # noqa: F811
    export.save(tmp_path / "export", method, image_size=SIZE)
    with pytest.raises(ValueError, match="no rules .* make it with `config.evaluation"):
        engine.load(tmp_path / "export", budget=1e9)
    with pytest.raises(ValueError, match="must be given together"):
        export.save(tmp_path / "new", method, image_size=SIZE, budgets=[point(1)])
    assert not (tmp_path / "new").exists()


def change(path, **changes):
    """Change what metadata.json says."""
    about = json.loads((path / "metadata.json").read_text())
    about["metadata"].update(changes)
    files.write_sealed(path / "metadata.json", about)


def flip(path, name):
    """Flip a bit in the middle of a file."""
    (file,) = path.glob(f"files_*/{name}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "read", "message"),
    [
        (
            lambda path: change(path, export=3),
            (export.load, export.load_steps),
            "format 3, which is newer than what anchornet_jax .* please update",
        ),
        (
            lambda path: change(path, calling_convention=99),
            (export.load_steps,),
            "convention 99 of jax.export, .*; please update JAX, or use `export.load`",
        ),
        (
            lambda path: change(path, calling_convention=1),
            (export.load_steps,),
            "convention 1 .* please export again",
        ),
        (
            lambda path: flip(path, "look.jaxexport"),
            (export.load_steps,),
            "damaged: look.jaxexport is not what was saved",
        ),
        (
            lambda path: flip(path, "calibration.npz"),
            (export.load,),
            "damaged: calibration.npz is not what was saved",
        ),
        (
            lambda path: shutil.rmtree(next(path.glob("files_*"))),
            (export.load, export.load_steps),
            "damaged: FileNotFoundError",
        ),
        (
            lambda path: shutil.rmtree(next(path.glob("variables_*"))),
            (export.load, export.load_steps),
            "damaged",
        ),
        (
            lambda path: change(path, networks={}),
            (export.load,),
            "`networks.localizer` is empty",
        ),
        (
            lambda path: (path / "metadata.json").unlink(),
            (export.load, export.load_steps),
            "not one of `save_variables`",
        ),
    ],
)
def test_unreadable(exported, tmp_path, tiny, damage, read, message):  # noqa: F811
    path = tmp_path / "export"
    shutil.copytree(exported, path)
    damage(path)
    for function in read:
        with pytest.raises(ValueError, match=f"(?s){path}.*{message}"):
            function(path)


def test_network_is_no_export(tmp_path):
    networks.save(tmp_path, {"name": "tiny"}, {"params": {"w": np.ones(1)}})
    with pytest.raises(ValueError, match="a network or something else, but no export"):
        export.load(tmp_path)


def test_whole_or_not_at_all(method, exported, tmp_path, tiny, monkeypatch):  # noqa: F811
    path = tmp_path / "export"
    shutil.copytree(exported, path)
    before = sorted(path.rglob("*"))
    monkeypatch.setattr(
        serialised, "serialise", lambda *_: {"glance.jaxexport": b"traced"}
    )
    with monkeypatch.context() as full:

        def fail(*_):
            raise OSError("no space left on device")

        full.setattr(checkpoint, "save_variables", fail)
        with pytest.raises(OSError, match="no space"):
            export.save(path, method, image_size=SIZE)
    assert sorted(path.rglob("*")) == before
    assert told(export.load(path).rules) == {2e6: RULE.to_json()}
    with pytest.raises(ValueError, match="JSON"):
        export.save(path, method, image_size=SIZE, config={"a": object()})
    assert sorted(path.rglob("*")) == before

    export.save(path, method, image_size=SIZE)
    assert [p.name for p in path.glob("files_*/*")] == ["glance.jaxexport"]
    assert export.load(path).rules == {} and export.load(path).calibration is None


def evaluated(directory, method, exits, budgeted, table):
    """Write a method's networks and an evaluation of it; return the export's config."""
    name = registry.name(method)
    described = {"name": name, **method.arguments, "networks": {}}
    for role, network in method.networks.items():
        described["networks"][role] = str(directory / role)
        networks.save(
            directory / role,
            network.metadata["model"],
            network.variables,
            classes=CLASSES,
        )
    config = common.get_config()
    config.program = "evaluate"
    config.data.update(image_size=SIZE, resize=160)
    config.method = described
    evaluation = workdir.claim(directory / "evaluate", config.to_dict())
    summary = results.Evaluation(
        data="plates",
        classes=CLASSES,
        method={
            "name": name,
            **method.arguments,
            "networks": export.digests(method),
        },
        exits=exits,
        anytime=[results.Point(0.5, 1e6, [1 / len(exits)] * len(exits)) for _ in exits],
        budgeted=budgeted,
    )
    files.write_sealed(evaluation / "summary.json", summary.to_json())
    table.save(evaluation / "calibration.npz")
    config = export_config.get_config()
    config.evaluation = str(evaluation)
    return config


@pytest.fixture
def config(method, tmp_path, tiny):  # noqa: F811
    """Return the config of an export, of an evaluation on disk and its networks."""
    exits = ["glance", "look", "patch"]
    return evaluated(tmp_path, method, exits, [point(2e6)], make_table(method))


def test_one_exit(method, tmp_path, tiny):  # noqa: F811
    """Nothing was fitted: all images leave there, whatever the budget."""
    static = registry.create("static", {"network": method.networks["glance"]})
    (cost,) = protocol.costs(static, SIZE)
    table = exit_table.ExitTable(np.ones((4, 1)), [cost], correct=np.ones((4, 1), bool))
    config = evaluated(tmp_path, static, ["whole image"], [], table)
    found = export.load(export.export(config, tmp_path / "export")["export"])
    for budget in (0, cost, 1e12):
        spent, rule = found.rule(budget)
        assert (spent, rule.steps) == (cost, 0)
    with pytest.raises(ValueError, match="`budget` is 1, but the export has no rules"):
        found.rule(1)
    classifier = engine.load(tmp_path / "export", budget=2 * cost, batch_size=4)
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    assert not classifier.classify(images).exit.any()


def test_program(config, method, tmp_path):
    """Made of the evaluation alone: method, networks, preprocessing, rules."""
    result = export.export(config, tmp_path / "export")
    assert result["macs"] == protocol.costs(method, SIZE)
    assert result["budgets_macs"] == [2e6]
    found = export.load(result["export"])
    assert told(found.rules) == {2e6: RULE.to_json()} and found.calibration is not None
    assert found.image_size == SIZE
    assert found.metadata["preprocessing"]["resize"] == 160  # not this config's 256
    assert found.metadata["config"]["program"] == "export"


def test_evaluation_that_was_moved(config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in (*METHOD, "evaluate"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    config.evaluation = str(tmp_path / "elsewhere" / "evaluate")
    result = export.export(config, tmp_path / "export")
    assert export.load(result["export"]).image_size == SIZE


def test_networks_that_are_not_those_evaluated(config, method, tmp_path):
    """Exchanged, with equal shapes, or trained anew since."""
    for role in ("glance", "patch"):
        (tmp_path / role).rename(tmp_path / f"{role}_")
    (tmp_path / "glance_").rename(tmp_path / "patch")
    (tmp_path / "patch_").rename(tmp_path / "glance")
    with pytest.raises(ValueError, match="evaluated something else: networks is"):
        export.export(config, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation", "", "`config.method`: `method` is ''; choose one of"),
        ("evaluation", "/nowhere", "'/nowhere', which holds no evaluation"),
        ("method.name", "static", "evaluated something else: `method` is"),
    ],
)
def test_bad_config_writes_nothing(config, tmp_path, key, value, message):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        export.export(config, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_evaluation_that_is_not_finished(config, tmp_path):
    (tmp_path / "evaluate" / "summary.json").unlink()
    with pytest.raises(ValueError, match="which holds no finished evaluation"):
        export.export(config, tmp_path / "export")


def test_steps_of_format_1():
    from tests.test_golden_results import RESULTS

    with pytest.raises(ValueError, match="format 1, .* `export.load` reads it"):
        export.load_steps(RESULTS / "export_1")
