"""The exits of one network as a method: table, engine and export say the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from anchornet_jax import models
from anchornet_jax.inference import engine, export, folding, stopping
from anchornet_jax.inference.exit_table import NEVER
from anchornet_jax.inference.results import Evaluation
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import preprocessing, registry, views
from anchornet_jax.models import Network, msdnet, multiply_adds, ranet
from anchornet_jax.programs import pipeline
from anchornet_jax.runtime import parallel
from anchornet_jax.training import objectives, train_step
from configs import msdnet as msdnet_config
from tests.tiny import Tiny, drawn

SIZE, COUNT = 32, 21
CLASSES = ["a", "b", "c"]
TINY = {
    "tiny_msdnet": (
        msdnet.MSDNet,
        {"base": 2, "step": 1, "exits": 3, "channels": 4, "growth": 4}
        | {"factors": (1, 2)},
    ),
    "tiny_ranet": (
        ranet.RANet,
        {"channels": 4, "growth": 4, "blocks": 2, "step": 1, "factors": (2, 1)}
        | {"strided": 0},
    ),
}


@pytest.fixture(scope="module", params=TINY)
def method(request):
    """Return the method with a network of drawn weights, some of them large."""
    with pytest.MonkeyPatch.context() as patch:
        for name, row in TINY.items():
            patch.setitem(models.MODELS, name, row)
        description = {"name": request.param, "num_classes": len(CLASSES)}
        model = models.create(**description)
        metadata = {"model": description, "classes": CLASSES}
        network = Network(model, drawn(model, SIZE), metadata)
        yield registry.create("multi_exit", {"network": network})


@pytest.fixture(scope="module")
def images():
    """Return uint8 images whose colours vary from one to the next."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (COUNT, 1, 1, 3))
    noise = rng.integers(-60, 60, (COUNT, SIZE, SIZE, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def table(method, images):
    """Return the exit table's arrays for all images, on four devices."""
    batch = parallel.shard({"image": np.concatenate([images, images[:3]])})
    variables = parallel.replicate(protocol.variables(method))
    found = parallel.gather(protocol.make_table(method)(variables, batch))
    return {key: column[:COUNT] for key, column in found.items()}


def rule(table):
    """Return thresholds between two confidences, about half the images leaving."""
    chosen = []
    for column in table["confidence"].T[:-1]:
        values = np.sort(column)[COUNT // 4 : -COUNT // 4]
        gap = np.argmax(np.diff(values))
        chosen.append(float(values[gap : gap + 2].mean()))
    return stopping.ThresholdRule(tuple(chosen))


def check(results, rule, table):
    """Compare with the table: same exit, class, confidence."""
    exits = rule.exits(table["confidence"][: len(results.exit)])
    at = np.arange(len(exits)), exits
    np.testing.assert_array_equal(results.exit, exits)
    np.testing.assert_array_equal(results.predicted, table["predicted"][at])
    np.testing.assert_allclose(results.confidence, table["confidence"][at], atol=1e-4)


def test_table_is_the_network(method, images, table):
    """Exit by exit the logits of the network called whole."""
    network = method.networks["network"]
    pixels = preprocessing.normalise(images)
    _, out = jax.jit(network.model.apply)(network.variables, pixels)
    confidence, predicted = protocol.decide(out["exit_logits"])
    np.testing.assert_allclose(table["confidence"], confidence, atol=1e-4)
    np.testing.assert_array_equal(table["predicted"], predicted)
    assert not {"boxes", "heatmap"} & table.keys()


@pytest.mark.parametrize(
    ("batch_size", "in_flight", "devices"), [(1, 1, 1), (5, 8, 1), (4, 8, 3)]
)
def test_engine_equals_the_table(method, images, table, batch_size, in_flight, devices):
    classifier = engine.Classifier(
        method,
        rule(table),
        image_size=SIZE,
        batch_size=batch_size,
        in_flight=in_flight,
        devices=jax.local_devices()[:devices],
    )
    results = classifier.classify(images)
    check(results, classifier.rule, table)
    assert len(set(results.exit)) > 1
    # Nobody who left was computed further; every exit is one program.
    if batch_size == 1:
        stayed = [sum(results.exit >= k) for k in range(len(method.steps))]
        wanted = {step.name: n for step, n in zip(method.steps, stayed) if n}
        assert classifier.launched == wanted
    classifier.rule = stopping.ThresholdRule((NEVER,) * (len(method.steps) - 1))
    check(classifier.classify(images), classifier.rule, table)
    assert set(classifier.traced.values()) == {1}


def test_export_equals_the_table(method, images, table, tmp_path):
    """The traced steps alone, and the engine of what was read, image by image."""
    export.save(tmp_path / "export", method, image_size=SIZE)
    steps = export.load_steps(tmp_path / "export")
    for batch in (images, images[:1]):
        confidence, predicted = protocol.decide(steps.logits(batch))
        np.testing.assert_allclose(
            confidence, table["confidence"][: len(batch)], atol=1e-4
        )
        np.testing.assert_array_equal(predicted, table["predicted"][: len(batch)])
    thresholds = rule(table).parameters
    classifier = engine.load(
        tmp_path / "export", thresholds=thresholds, batch_size=6, in_flight=9
    )
    check(classifier.classify(images), classifier.rule, table)


def test_folding_leaves_no_statistics(method):
    """Every BatchNorm stands behind a convolution of its own."""
    folded = folding.fold_method(method, SIZE)
    assert "batch_stats" not in folded.networks["network"].variables
    half = folding.fold_method(method, SIZE, "bfloat16")
    state = half.start(2, SIZE)
    assert {leaf.dtype for leaf in state.values()} == {jnp.dtype("bfloat16")}
    logits, state = jax.eval_shape(
        functools.partial(protocol.run, half),
        protocol.variables(half),
        jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.uint8),
    )
    assert logits.dtype == jnp.float32


def test_costs_names_and_pixels(method):
    """The exits' costs add up to the whole network's."""
    model = method.networks["network"].model
    costs = protocol.costs(method, SIZE)
    assert costs[-1] == multiply_adds.model_macs(model, SIZE)
    assert len(costs) == model.exits and costs == sorted(set(costs))
    names = [f"exit {k + 1}" for k in range(model.exits)]
    assert protocol.exit_names(method.steps) == names
    assert not protocol.keeps_pixels(method)
    assert method.arguments == {} and registry.name(method) == "multi_exit"
    assert method.regions({}, SIZE) is None


def test_network_with_one_exit():
    network = Network(Tiny(3), drawn(Tiny(3), SIZE), {"classes": CLASSES})
    with pytest.raises(ValueError, match="`networks.network` is a Tiny, which has one"):
        registry.create("multi_exit", {"network": network})


def test_every_exit_learns(method):
    """The loss is the sum of the exits' cross-entropies, and each of them falls."""
    model = method.networks["network"].model.clone(axis_name=parallel.AXIS)
    objective = objectives.classification(model, views.make("full", None), SIZE)
    optimizer = optax.sgd(0.05, momentum=0.9)
    state = parallel.replicate(train_step.create_state(objective, optimizer, 0))
    step = parallel.train_step(train_step.make_train_step(objective, optimizer, 0))
    rng = np.random.default_rng(0)
    label = np.arange(16) % 3
    image = rng.integers(0, 60, (16, SIZE, SIZE, 3)).astype(np.uint8)
    image += (80 * label).astype(np.uint8)[:, None, None, None]
    batch = parallel.shard({"image": image, "label": label.astype(np.int32)})

    @jax.jit
    def losses(state):
        """Return each exit's cross-entropy [E], normalised by the batch's statistics."""
        (logits, _), _ = method.networks["network"].model.apply(
            state.variables()["network"],
            preprocessing.normalise(image),
            train=True,
            mutable="batch_stats",
        )
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.broadcast_to(label[:, None], logits.shape[:2])
        ).mean(0)

    before = losses(jax.device_get(state))
    state, sums = step(state, None, batch)
    np.testing.assert_allclose(sums["loss"] / sums["count"], before.sum(), rtol=1e-4)
    for _ in range(12):
        state, _ = step(state, None, batch)
    after = losses(jax.device_get(state))
    assert before.shape == (model.exits,) and (after < 0.8 * before).all()


def test_pipeline(data_dir, tmp_path, monkeypatch):
    """Training, evaluation and export as the config says, on a few images."""
    monkeypatch.setitem(models.MODELS, "msdnet_small", TINY["tiny_msdnet"])
    config = msdnet_config.get_config()
    config.data.update(name="plates/small", data_dir=data_dir)
    config.data.update(image_size=64, resize=64)  # px; fewer than 224 are faster
    for stage in config.stages.values():
        stage.batch_size, stage.epochs, stage.budgets = 16, 0.5, 3
        stage.timing.images, stage.timing.batch_size = 12, 4
    found = Evaluation.from_json(pipeline.pipeline(config, tmp_path / "run"))
    assert found.exits == ["exit 1", "exit 2", "exit 3"]
    assert found.box_coverage is None and len(found.exit_time_ms) == 3
    name, whole = found.reference()
    assert name == "whole network" and whole.cost == found.anytime[-1].cost
    assert whole.accuracy == found.anytime[-1].accuracy
    assert (tmp_path / "run" / "report.html").is_file()
    read = export.load(tmp_path / "run" / "export")
    assert [*read.rules] == [point.budget for point in found.budgeted]
    assert read.macs == [point.cost for point in found.anytime]
