"""What rules see beside the confidence: as computed, fitted, kept, and in the engine."""

import json

import jax
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import (
    control,
    engine,
    exit_table,
    export,
    fitting,
    results,
    stopping,
)
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import preprocessing, registry
from anchornet_jax.runtime import parallel
from tests.test_golden_results import SIZE, make_method
from tests.tiny import Tiny, TinyAnchorNet

COUNT = 24
NAMES = ("margin", "entropy", "agreement", "peak", "spread")


@pytest.fixture(scope="module")
def method():
    return make_method()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (COUNT, 1, 1, 3))
    noise = rng.integers(-60, 60, (COUNT, SIZE, SIZE, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def found(method, images):
    """Return the table's arrays, and the logits, of one device."""
    run = protocol.make_table(method, logits=True, features=True)
    own = parallel.replicate(protocol.variables(method), jax.local_devices()[:1])
    return {k: v[0] for k, v in run(own, {"image": images[None]}).items()}


@pytest.fixture(scope="module")
def table(method, found):
    rng = np.random.default_rng(1)
    return exit_table.ExitTable(
        found["confidence"],
        np.asarray(protocol.costs(method, SIZE), float),
        predicted=found["predicted"],
        label=rng.integers(0, 3, COUNT),
        features=found["features"],
        feature_names=protocol.features(method),
    )


@pytest.fixture(scope="module")
def rule(table):
    """Return a rule that every feature decides, and the exits of the table's images."""
    rng = np.random.default_rng(3)
    for _ in range(1000):
        weights = [rng.normal(0, 1, 3 + t + len(NAMES)) for t in range(2)]
        drawn = stopping.FeatureRule(weights, NAMES)
        exits = drawn.exits(table.confidence, table.seen)
        if min(np.bincount(exits, minlength=3)) >= 5 and _sure(drawn, table):
            return drawn, exits
    raise AssertionError("no rule lets some leave everywhere")


def _sure(rule, table):
    """Say whether rounding decides nothing."""
    for change in (1e-3, -1e-3):
        moved = [np.append(p[0] + change, p[1:]) for p in rule.parameters]
        other = stopping.FeatureRule(moved, NAMES)
        exits = other.exits(table.confidence, table.seen)
        if (exits != rule.exits(table.confidence, table.seen)).any():
            return False
    return True


def shape_of(heatmap):
    """Return peak and spread of one heatmap, place by place."""
    rows, columns = np.indices(heatmap.shape)
    above = np.maximum(heatmap - heatmap.mean(), 0)
    weight = above / above.sum()
    centre = (weight * rows).sum(), (weight * columns).sum()
    apart = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
    spread = np.sqrt((weight * apart).sum()) / heatmap.shape[0]
    return (heatmap.max() - heatmap.mean()) / heatmap.std(), spread


def test_features_are_what_they_say(method, images, found):
    assert protocol.features(method) == NAMES
    seen = dict(zip(NAMES, np.moveaxis(np.asarray(found["features"], float), -1, 0)))
    p = np.sort(np.asarray(jax.nn.softmax(found["logits"]), float))
    np.testing.assert_allclose(seen["margin"], p[..., -1] - p[..., -2], atol=1e-5)
    entropy = -(p * np.log(p.clip(1e-30))).sum(-1) / np.log(3)
    np.testing.assert_allclose(seen["entropy"], entropy, atol=1e-5)
    shapes = np.array([shape_of(np.asarray(one)) for one in found["heatmap"]])
    assert (seen["peak"][:, 0] == 0).all() and (seen["spread"][:, 0] == 0).all()
    for t in (1, 2):
        np.testing.assert_allclose(seen["peak"][:, t], shapes[:, 0], rtol=1e-3)
        np.testing.assert_allclose(seen["spread"][:, t], shapes[:, 1], rtol=1e-3)
    logits = np.asarray(found["logits"])
    own = np.diff(logits, axis=1, prepend=0.0).argmax(-1)  # of glance and patches
    localizer = method.networks["localizer"]
    pixels = preprocessing.normalise(images, localizer.model)
    says = np.asarray(localizer.model.apply(localizer.variables, pixels)[0]).argmax(-1)
    exists = np.asarray(found["boxes"])[:, :, 2] > 0
    for t in range(3):
        said = np.stack([own[:, 0], says, own[:, 1], own[:, 2]], 1)[
            :, : t + 1 + (t > 0)
        ]
        there = np.stack([exists[:, 0], exists[:, 0], exists[:, 1], exists[:, 2]], 1)
        there = there[:, : said.shape[1]]
        agrees = (said == logits[:, t].argmax(-1)[:, None]) & there
        np.testing.assert_allclose(
            seen["agreement"][:, t], agrees.sum(1) / there.sum(1), rtol=1e-6
        )
    assert len(np.unique(seen["agreement"][:, 2])) > 2


def test_two_classes_or_one():
    """The margin needs no second class."""
    static = registry.create("static", {"network": make_method().networks["glance"]})
    for logits in ([[2.0, 2.0]], [[3.0]]):
        see = jax.jit(lambda logits: protocol.observe(static, {}, logits))
        (values,) = np.asarray(see(np.array(logits)))
        wanted = (0, 1) if len(logits[0]) == 2 else (1, 0)
        np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_the_engine_sees_what_the_table_holds(method, images, table, rule):
    drawn, wanted = rule
    classifier = engine.Classifier(
        method, drawn, image_size=SIZE, batch_size=8, devices=jax.local_devices()[:1]
    )
    result = classifier.classify(images)
    np.testing.assert_array_equal(result.exit, wanted)
    at = np.arange(COUNT), wanted
    np.testing.assert_array_equal(result.predicted, table.predicted[at])
    np.testing.assert_allclose(result.confidence, table.confidence[at], atol=1e-5)
    classifier.rule = stopping.fixed(1, 3)  # sees less
    assert (classifier.classify(images).exit == 0).all()


def test_a_trace_leaves_by_such_a_rule(method, images, rule):
    drawn, wanted = rule
    found = protocol.make_trace(method)(images, drawn)
    np.testing.assert_array_equal(found["exit"], wanted)


def test_a_classifier_says_what_it_may_see(method, rule):
    given = {"image_size": SIZE, "batch_size": 8}
    plain = engine.Classifier(method, stopping.fixed(1, 3), **given)
    with pytest.raises(ValueError, match=r"`rule` sees agreement, .*made with .* \(\)"):
        plain.rule = rule[0]
    with pytest.raises(ValueError, match="`features` holds colour; the method offers"):
        engine.Classifier(method, rule[0], features=["colour"], **given)


def test_an_export_keeps_them(method, images, table, rule, tmp_path, monkeypatch):
    """Rule, table and what is observed; with the code of the models and without."""
    monkeypatch.setitem(models.MODELS, "tiny", (Tiny, {}))
    monkeypatch.setitem(models.MODELS, "tiny_anchornet", (TinyAnchorNet, {}))
    drawn, wanted = rule
    point = results.Point(0.5, 1.0, [1.0, 0, 0], budget=2e6, rule=drawn.to_json())
    export.save(tmp_path, method, image_size=SIZE, budgets=[point], calibration=table)
    steps, (state, logits) = export.load_steps(tmp_path), (None, None)
    confidence, seen = [], []
    for t, run in enumerate(steps.run):
        state, logits = run(images) if t == 0 else run(images, state)
        confidence.append(protocol.decide(logits)[0])
        seen.append(steps.observe(state, logits))
    columns = {name: np.stack([one[name] for one in seen], 1) for name in NAMES}
    exits = drawn.exits(np.stack(confidence, 1), columns)
    np.testing.assert_array_equal(exits, wanted)
    there = export.load(tmp_path)
    assert there.rule(2e6)[1].to_json() == drawn.to_json()
    np.testing.assert_array_equal(there.calibration.features, table.features)
    budget = float(table.cost[1])
    _, fitted = there.rule(budget)
    (again,) = fitting.fit(table, [budget], "features")
    assert fitted.to_json() == again.rule.to_json()
    assert there.control(budget).features == NAMES


def informative(n=4000, seed=0):
    """Return images of which a feature, but no confidence, says who needs the step."""
    rng = np.random.default_rng(seed)
    needs = rng.random((n, 2)) < 0.5
    correct = np.stack([~needs[:, 0], np.ones(n, bool), np.ones(n, bool)], 1)
    said = np.pad(np.where(needs, 1.0, 0.0), [(0, 0), (0, 1)])
    values = np.stack([rng.random((n, 3)), said + rng.normal(0, 0.1, (n, 3))], -1)
    return exit_table.ExitTable(
        rng.random((n, 3)),
        [1, 2, 3],
        correct,
        features=values,
        feature_names=("noise", "need"),
    )


def test_a_feature_that_tells_is_used():
    data = informative()
    methods = {name: name for name in ("value", "features")}
    methods |= {"need": fitting.features("need"), "noise": fitting.features("noise")}
    one = fitting.held_out(data, [1.5], methods)
    assert one["features"].accuracy[0] > 0.97 and one["need"].accuracy[0] > 0.97
    for name in ("value", "noise"):
        assert one[name].accuracy[0] == pytest.approx(0.75, abs=0.02)
    for found in one.values():
        assert found.fitted[0] >= found.accuracy[0] - 0.02
        assert found.mean_cost[0] == pytest.approx(1.5, abs=0.05)
        assert found.spread.shape == (1,)


def test_control_of_a_rule_that_sees_them():
    held = control.Control(informative(1000), 1.5, "features")
    data = informative(800, 1)
    exits = held.exits(data.confidence, data.seen)
    assert exit_table.score(data, exits).accuracy > 0.95
    assert data.cost[exits].mean() == pytest.approx(1.5, rel=0.01)


def test_without_features_the_rule_is_the_value_rule():
    data = informative(500)
    bare = exit_table.ExitTable(data.confidence, data.cost, data.correct)
    one, other = (fitting.fit(bare, [1.5], name)[0] for name in ("value", "features"))
    assert other.accuracy == one.accuracy and bare.seen == {}
    with pytest.raises(ValueError, match="`features` holds need; the table has none"):
        fitting.fit(bare, [1.5], fitting.features("need"))


def test_the_table_file_keeps_them(tmp_path):
    data = informative(5)
    data.save(tmp_path / "table.npz")
    again = exit_table.ExitTable.load(tmp_path / "table.npz")
    assert again.feature_names == ("noise", "need")
    np.testing.assert_array_equal(again.features, data.features)
    part = again.select([1, 3], exits=2)
    np.testing.assert_array_equal(part.seen["need"], data.features[[1, 3], :2, 1])
    bare = exit_table.ExitTable(data.confidence, data.cost, data.correct)
    bare.save(tmp_path / "bare.npz")
    assert set(np.load(tmp_path / "bare.npz")) == {
        *("confidence", "cost", "correct", "unit")
    }
    (tmp_path / "table.csv").write_text(
        "confidence_1,confidence_2,correct_1,correct_2,feature_top_k_1,feature_top_k_2\n"
        "0.5,0.75,0,1,3,4\n"
    )
    read = exit_table.ExitTable.load(tmp_path / "table.csv", cost=[1, 2])
    assert read.seen["top_k"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("features", "names", "message"),
    [
        (np.zeros((2, 2, 1)), ("a", "b"), r"has shape \(2, 2, 1\) and `feature_names`"),
        (np.zeros((2, 2, 2)), ("a", "a"), "F different names"),
        (None, ("a",), r"has shape \(\)"),
        (np.full((2, 2, 1), np.nan), ("a",), "nan as a of image 0 at exit 1"),
    ],
)
def test_features_that_cannot_be(features, names, message):
    with pytest.raises(ValueError, match=f"`features` .*{message}"):
        exit_table.ExitTable(
            np.ones((2, 2)),
            [1, 2],
            np.ones((2, 2)),
            features=features,
            feature_names=names,
        )


def test_rules_as_data():
    rule = stopping.FeatureRule([[0.5, -1, 0, 2]], ["need"])
    again = stopping.from_json(json.loads(json.dumps(rule.to_json())))
    assert again.to_json() == rule.to_json() and again.features == ("need",)
    half = rule.blend(stopping.FeatureRule([[0.5, -1, 0, 4]], ["need"]), [0.5])
    assert half.parameters[0].tolist() == [0.5, -1, 0, 3] and half.features == ("need",)
    seen = {"need": np.array([[0.0], [0.5]])}
    assert rule.leaves(0, [[0.0], [0.0]], seen).tolist() == [True, False]
    with pytest.raises(ValueError, match="`seen` has no need; the rule needs need"):
        rule.leaves(0, [[0.5]])
    with pytest.raises(ValueError, match="`data` is"):
        stopping.from_json({"rule": "features", "weights": [[1, 2, 3]]})
    point = results.Point(0.5, 1.0, [1.0], rule=rule.to_json())
    assert point.decided_by == "features on confidence, need"
