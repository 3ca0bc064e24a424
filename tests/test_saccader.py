"""Saccader: its cell by hand, its method, and its three trainings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from anchornet_jax import models
from anchornet_jax.inference import engine, export, folding, stopping
from anchornet_jax.inference.exit_table import NEVER
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import preprocessing, registry, views
from anchornet_jax.models import Network, multiply_adds, saccader
from anchornet_jax.runtime import parallel
from anchornet_jax.training import objectives, optimizers, train_step
from anchornet_jax.training import saccader as trainings
from tests.test_optimizers import PLAIN
from tests.tiny import Tiny, drawn

SIZE, COUNT, GLIMPSES = 32, 8, 4  # px, images, T
CELLS, FIELD = 36, (9, 4)
BAG = {"squares": (1, 1), "stem": (3,), "low": 6, "centred": True, "width": 4}
BAG |= {"depths": (1, 1)}
TINY = (saccader.Saccader, {"glimpses": GLIMPSES, "bag": tuple(BAG.items())})
CLASSES = ["a", "b", "c"]


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def by_hand(cell, mixed, glimpses):
    """Return the cells that one image's map [L, C] visits, as Sec. 3 has it."""
    visited, cells, all_scores = np.zeros(len(mixed)), [], []
    for _ in range(glimpses):
        spatial = softmax(mixed @ cell[:, 0] / np.sqrt(mixed.shape[1]) - 1e5 * visited)
        channels = softmax(spatial @ mixed)
        scores = mixed @ channels - 1e5 * visited
        cells.append(int(scores.argmax()))
        visited[cells[-1]] = 1
        all_scores.append(scores)
    return cells, all_scores


def test_cell_by_hand():
    """Logits and choices of all glimpses; every cell is visited once at most."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(3, 4, 5, 7)).astype(np.float32)
    cell = rng.normal(size=(7, 1)).astype(np.float32)
    walk = jax.jit(lambda *maps: list(saccader.walk(*maps, 20, saccader.best)))
    found = walk(cell, mixed)
    for i, flat in enumerate(mixed.reshape(3, 20, 7).astype(float)):
        cells, scores = by_hand(cell, flat, 20)
        assert sorted(cells) == list(range(20))
        assert [int(chosen[i]) for _, chosen in found] == cells
        for (one, _), wanted in zip(found, scores):
            seen = np.isneginf(one[i])
            np.testing.assert_array_equal(seen, wanted < -1e4)
            np.testing.assert_allclose(one[i][~seen], wanted[~seen], rtol=1e-4)


def test_counts():
    """35.5 M and 19.5 G, with the logits of all cells (counted of the public code)."""
    model = models.create("saccader", 1001)
    assert model.field == (77, 8) and model.field.grid(224, 224) == (19, 19)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    )
    assert round(multiply_adds.parameters(variables) / 1e6, 1) == 35.5
    own = multiply_adds.model_macs(model, 224)
    assert round((own + (361 - 6) * 512 * 1001) / 1e9, 1) == 19.5


def images():
    """Return uint8 images whose colours vary from cell to cell."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (COUNT, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    noise = rng.integers(-30, 30, (COUNT, SIZE, SIZE, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def method():
    """Return the method with a network of drawn weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny_saccader", TINY)
        description = {"name": "tiny_saccader", "num_classes": len(CLASSES)}
        model = models.create(**description)
        metadata = {"model": description, "classes": CLASSES}
        network = Network(model, drawn(model, SIZE), metadata)
        yield registry.create("saccader", {"network": network}, glimpses=GLIMPSES)


@pytest.fixture(scope="module")
def table(method):
    """Return the exit table's arrays for all images, on four devices."""
    variables = parallel.replicate(protocol.variables(method))
    batch = parallel.shard({"image": images()})
    return parallel.gather(protocol.make_table(method)(variables, batch))


def test_method_by_hand(method, table):
    """Every exit: the mean of the class map over the cells that the cell visits."""
    network = method.networks["network"]
    params = network.variables["params"]
    pixels = preprocessing.normalise(images())
    logits, out = jax.jit(network.model.apply)(network.variables, pixels)
    own = params["representation"]["fc"]
    maps = np.asarray(out["extracted"]) @ own["kernel"] + own["bias"]
    maps = maps.reshape(COUNT, CELLS, len(CLASSES))
    answers, places = [], set()
    for i in range(COUNT):
        mixed = np.asarray(out["mixed"][i], float).reshape(CELLS, -1)
        cells, _ = by_hand(params["cell"], mixed, GLIMPSES)
        places.update(cells)
        assert out["cells"][i].tolist() == cells
        for cell, box in zip(cells, table["boxes"][i]):
            y, x = 4 * (cell // 6), 4 * (cell % 6)
            assert box.tolist() == [y, x, y + 9, x + 9]
        means = [maps[i, cells[: t + 1]].mean(0) for t in range(GLIMPSES)]
        answers.append(np.array(means))
        (heatmap,) = network.model.contributions(network.variables, out, None)
        best = np.argsort(-np.asarray(heatmap[i]).ravel())[:GLIMPSES]
        assert best.tolist() == cells
    assert len(places) > GLIMPSES
    answers = np.stack(answers)
    confidence, predicted = protocol.decide(answers)
    np.testing.assert_allclose(table["confidence"], confidence, atol=1e-4)
    np.testing.assert_array_equal(table["predicted"], predicted)
    np.testing.assert_allclose(logits, answers[:, -1], atol=1e-4)
    same, branch = network.model.classify(network.variables, out)
    np.testing.assert_allclose(same, logits, atol=1e-5)
    assert not branch.any() and table["heatmap"].shape == (COUNT, 6, 6)


def test_engine_and_export_equal_the_table(method, table, tmp_path):
    never = stopping.ThresholdRule((NEVER,) * (GLIMPSES - 1))
    some = stopping.ThresholdRule(
        (float(np.median(table["confidence"][:, 0])), 1.0, 1.0)
    )
    export.save(tmp_path / "export", method, image_size=SIZE)
    classifier = engine.load(
        tmp_path / "export", thresholds=never.parameters, batch_size=3, in_flight=5
    )
    for rule in (never, some):
        classifier.rule = rule
        found, exits = classifier.classify(images()), rule.exits(table["confidence"])
        at = np.arange(COUNT), exits
        np.testing.assert_array_equal(found.exit, exits)
        np.testing.assert_array_equal(found.predicted, table["predicted"][at])
        np.testing.assert_allclose(found.confidence, table["confidence"][at], atol=1e-4)


def test_costs_names_and_arguments(method):
    costs = protocol.costs(method, SIZE)
    own = multiply_adds.model_macs(method.networks["network"].model, SIZE)
    assert costs[-1] == own and len(costs) == GLIMPSES
    names = ["represent", "glimpse 1", "glimpse 2", "glimpse 3"]
    assert protocol.exit_names(method.steps) == names
    assert not protocol.keeps_pixels(method)
    assert method.arguments == {"glimpses": 4} and registry.name(method) == "saccader"
    folded = folding.fold_method(method, SIZE, "bfloat16")
    assert "batch_stats" not in folded.networks["network"].variables
    state = folded.start(2, SIZE)
    assert state["what"].dtype == state["mixed"].dtype == jnp.bfloat16


def test_refused(method):
    network = method.networks["network"]
    other = Network(Tiny(3), drawn(Tiny(3), SIZE), {"classes": CLASSES})
    with pytest.raises(ValueError, match="is a Tiny, which takes no glimpses"):
        registry.create("saccader", {"network": other})
    with pytest.raises(ValueError, match="`glimpses` is 0; allowed is 1 or more"):
        registry.create("saccader", {"network": network}, glimpses=0)
    many = registry.create("saccader", {"network": network}, glimpses=37)
    with pytest.raises(ValueError, match="`glimpses` is 37; at 32 pixels there are 36"):
        protocol.check_images(many, SIZE)
    with pytest.raises(ValueError, match="9x12 pixels, which gives 1 cells; 4"):
        network.model.init(jax.random.key(0), jnp.zeros((1, 9, 12, 3)))


def objective(name, axis_name=parallel.AXIS, **settings):
    model = models.create("tiny_saccader", 3, axis_name=axis_name)
    view = views.make("full", None)
    return trainings.OBJECTIVES[name](model, view, SIZE, **settings)


def train(name, variables, freeze, steps=12, rate=0.05):
    """Return the variables and the sums of each step, on four devices."""
    own = objective(name, freeze=freeze)
    optimizer = optimizers.create(
        steps, **{**PLAIN, "learning_rate": rate, "momentum": 0.9}, freeze=freeze
    )
    state = train_step.create_state(own, optimizer, 0, {"network": variables})
    state = parallel.replicate(state)
    step = parallel.train_step(train_step.make_train_step(own, optimizer, 0))
    label = (np.arange(COUNT) % 3).astype(np.int32)
    batch, history = parallel.shard({"image": images(), "label": label}), []
    for _ in range(steps):
        state, sums = step(state, None, batch)
        history.append(jax.device_get(sums))
    return jax.device_get(state).variables()["network"], history


def changed(before, after):
    """Return the names of modules whose parameters or statistics changed."""
    return {
        name
        for kind in before
        for name, tree in before[kind].items()
        if any(
            np.any(a != b)
            for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(after[kind][name]))
        )
    }


def test_three_phases(method):
    """Each phase learns, and changes what it is about alone."""
    first = method.networks["network"].variables
    second, history = train("saccader_representation", first, trainings.LOCATION)
    assert changed(first, second) == {"representation"}
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    third, history = train("saccader_location", second, trainings.REPRESENTATION)
    assert "representation" not in changed(second, third)
    assert {"mix", "cell", "where0_0", "where1_1_bn"} <= changed(second, third)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    last, history = train("saccader_joint", third, "")
    assert {"representation", "mix", "cell"} <= changed(third, last)
    assert all(np.isfinite(sums["loss"]) for sums in history)


def test_location_targets_by_hand(method):
    """The best cells of the predicted class, each chosen after those before it."""
    variables = method.networks["network"].variables
    freeze = trainings.REPRESENTATION
    sums, _ = jax.jit(objective("saccader_location", None, freeze=freeze).loss)(
        {"network": variables}, None, images()[:2], jnp.zeros(2, int), None
    )
    model = models.create("tiny_saccader", 3)
    keep = objectives.keep_statistics(freeze)
    with trainings.nn.intercept_methods(keep):
        (_, out), _ = model.apply(
            variables,
            preprocessing.normalise(images()[:2]),
            train=True,
            mutable=["batch_stats"],
        )
    own, wanted = variables["params"]["representation"]["fc"], 0.0
    for i in range(2):
        maps = np.asarray(out["extracted"][i] @ own["kernel"]).reshape(CELLS, 3)
        order = np.argsort(-maps[:, int(out["bag_logits"][i].argmax())])[:12]
        mixed = np.asarray(out["mixed"][i], float).reshape(CELLS, -1)
        cell, visited = variables["params"]["cell"][:, 0], np.zeros(CELLS)
        for target in order:
            spatial = softmax(mixed @ cell / np.sqrt(6) - 1e5 * visited)
            scores = mixed @ softmax(spatial @ mixed) - 1e5 * visited
            wanted -= np.log(softmax(scores)[target]) / 12
            visited[target] = 1
    np.testing.assert_allclose(sums["loss"], wanted, rtol=1e-3)
    assert sums["count"] == sums["images"] == 2


def test_reinforce_pulls_towards_what_was_right(monkeypatch):
    """Its gradient is that of -advantage times the log-probability, and nothing else."""
    scores = jnp.array([[0.3, -0.2, 0.1]])
    found = jax.grad(lambda s: trainings._log_probability(s, jnp.array([1])).sum())(
        scores
    )
    np.testing.assert_allclose(
        found[0], np.array([0, 1, 0]) - softmax(np.asarray(scores[0])), rtol=1e-5
    )


def test_settings_that_cannot_be(method):
    with pytest.raises(ValueError, match="`label_smoothing` is 0.0 and `mixup` 0.2"):
        objective("saccader_joint", mixup=0.2)
    with pytest.raises(ValueError, match="`model` is a Tiny; this objective needs"):
        trainings.location(Tiny(3), None, SIZE)
    own = objective("saccader_joint")
    with pytest.raises(ValueError, match="`accumulate` is 2; allowed is 1: the base"):
        train_step.make_train_step(own, optax.sgd(0.1), 0, accumulate=2)
