import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import control, engine, exit_table, stopping, timing
from anchornet_jax.inference.exit_table import NEVER
from anchornet_jax.methods import anchornet, preprocessing, registry
from anchornet_jax.methods import method as protocol
from anchornet_jax.runtime import parallel
from anchornet_jax.runtime.networks import Network
from tests.tiny import Tiny

SIZE, COUNT = 127, 257


def network(model, size, seed):
    """Return a network of three classes; large weights make it sure or unsure."""
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, size, size, 3)))
    if "fc" in variables["params"] and isinstance(model, Tiny):
        variables["params"]["fc"]["kernel"] *= 8
    return Network(model, variables, {"classes": ["a", "b", "c"]})


@pytest.fixture(scope="module")
def method():
    """Return the method with random networks, four inputs."""
    members = {
        "localizer": network(models.create("anchornet", 3), SIZE, 0),
        "glance": network(Tiny(3), 95, 1),
        "patch": network(Tiny(3), 95, 2),
    }
    return registry.create("anchornet", members, inputs=4, iou_threshold=0.8)


@pytest.fixture(scope="module")
def images():
    """Return uint8 images whose colours vary from one to the next."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (COUNT, 1, 1, 3))
    noise = rng.integers(-60, 60, (COUNT, SIZE, SIZE, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tables(method, images):
    """Return {fuse: exit table of all images}."""

    return {
        fuse: table(dataclasses.replace(method, fuse=fuse), images)
        for fuse in anchornet.FUSE
    }


def table(made, images):
    """Return the exit table's arrays of a method, for all images."""
    run, rows = protocol.make_table(made), []
    variables = parallel.replicate(protocol.variables(made))
    padded = np.concatenate([images, images[: -len(images) % 52]])
    for start in range(0, len(padded), 52):
        batch = parallel.shard({"image": padded[start : start + 52]})
        rows.append(parallel.gather(run(variables, batch)))
    found = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    return {k: v[: len(images)] for k, v in found.items()}


def check(results, rule, found):
    """Compare with the table: same exit, class, confidence."""
    exits = rule.exits(found["confidence"][: len(results.exit)])
    at = np.arange(len(exits)), exits
    np.testing.assert_array_equal(results.exit, exits)
    np.testing.assert_array_equal(results.predicted, found["predicted"][at])
    np.testing.assert_allclose(results.confidence, found["confidence"][at], atol=1e-5)


def thresholds(found, kind):
    """Return thresholds far from every confidence, so that rounding decides nothing."""
    rng = np.random.default_rng(5)
    if kind == "all leave":
        return stopping.ThresholdRule((-1.0, -1.0, -1.0))
    if kind == "none leaves":
        return stopping.ThresholdRule((NEVER, NEVER, NEVER))
    chosen = []
    for column in found["confidence"].T[:-1]:
        values = np.sort(column)
        at = rng.integers(len(values) // 4, 3 * len(values) // 4)
        gap = at + np.argmax(np.diff(values[at : at + 20]))
        chosen.append(float((values[gap] + values[gap + 1]) / 2))
    return stopping.ThresholdRule(tuple(chosen))


@pytest.mark.parametrize(
    ("fuse", "batch_size", "in_flight", "devices"),
    [
        ("logits", 1, 1, 1),
        ("logits", 7, 7, 1),
        ("logits", 16, 40, 4),
        ("probabilities", 16, 64, 1),
        ("logits", 257, 257, 1),
    ],
)
def test_equals_the_table(method, tables, images, fuse, batch_size, in_flight, devices):
    found = tables[fuse]
    count = 20 if batch_size == 1 else COUNT
    classifier = engine.Classifier(
        dataclasses.replace(method, fuse=fuse),
        thresholds(found, "none leaves"),
        image_size=SIZE,
        batch_size=batch_size,
        in_flight=in_flight,
        devices=jax.local_devices()[:devices],
    )
    for kind in ("random", "all leave", "none leaves"):
        classifier.rule = thresholds(found, kind)
        results = classifier.classify(images[:count])
        assert len(results.exit) == count
        check(results, classifier.rule, found)
        if kind == "random" and count == COUNT:
            assert set(results.exit) == {0, 1, 2, 3}


@pytest.fixture(scope="module")
def compiled(method):
    """Return a small classifier on one device."""
    return engine.Classifier(
        method,
        stopping.ThresholdRule((0.9, 0.9, 0.9)),
        image_size=SIZE,
        batch_size=8,
        devices=jax.local_devices()[:1],
    )


@pytest.fixture
def classifier(compiled):
    """Return it with its first rule, compiled once for all tests."""
    compiled.rule = stopping.ThresholdRule((0.9, 0.9, 0.9))
    return compiled


@pytest.mark.parametrize("count", [0, 1, 5, 9])
def test_streams_shorter_than_a_batch(classifier, images, count):
    assert len(classifier.classify(images[:count]).exit) == count
    assert len(list(classifier.stream(images[:count]))) == count


def test_array_on_a_device_and_stream_equal_an_array(classifier, images):
    wanted = classifier.classify(images[:21])
    assert len(set(wanted.exit)) > 1
    for name, value in classifier.classify(jnp.asarray(images[:21]))._asdict().items():
        np.testing.assert_array_equal(value, getattr(wanted, name))
    for i, result in enumerate(classifier.stream(iter(images[:21]))):
        assert result == (wanted.predicted[i], wanted.confidence[i], wanted.exit[i]) + (
            None,
            None,
        )


def test_three_programs_whatever_the_exits(classifier, images):
    for rule in [(0.5, 0.9, 0.4), (-1.0, 0.9, 0.9), (NEVER,) * 3]:
        classifier.rule = stopping.ThresholdRule(rule)
        for count in (3, 8, 30):
            classifier.classify(images[:count])
    assert classifier.traced == {"glance": 1, "look": 1, "patch": 1}


def launches(classifier, images):
    """Classify; return the results and how often each step was launched for them."""
    before = classifier.launched.copy()
    results = classifier.classify(images)
    return results, classifier.launched - before


def test_no_step_runs_for_images_that_have_left(classifier, images):
    classifier.rule = stopping.ThresholdRule((-1.0, 0.9, 0.9))
    _, launched = launches(classifier, images[:24])
    assert launched == {"glance": 3}


def test_launches_are_full(classifier, images):
    """A long stream needs hardly more launches than its work divided by the batch."""
    classifier.rule = stopping.ThresholdRule((0.9, 0.9, 0.9))
    results, launched = launches(classifier, images)
    past = results.exit[results.exit > 0]
    later = past[past > 1] - 1
    needed = -(-COUNT // 8) + -(-len(past) // 8) + -(-later.sum() // 8)
    assert needed <= launched.total() <= needed + 3


@pytest.fixture
def held(tables):
    """Return control of a budget, fitted to the first hundred images."""
    confidence = tables["logits"]["confidence"][:100]
    correct = np.eye(100, 4)  # is not asked for
    half = exit_table.ExitTable(confidence, [1, 2, 3, 4], correct=correct)
    return control.Control(half, 2.0, stand_in)


def test_a_stream_under_control(classifier, tables, images, held):
    """It ends as in the table, and goes on as it had begun."""
    confidence = tables["logits"]["confidence"][100:]
    wanted = held.exits(confidence, under_way=classifier.in_flight)
    assert (wanted != held.rule.exits(confidence)).any()
    classifier.rule = held
    np.testing.assert_array_equal(classifier.classify(images[100:]).exit, wanted)
    rest = classifier.stream(images[150:], known=wanted[:50].tolist())
    assert [one.exit for one in rest] == wanted[50:].tolist()


@pytest.mark.slow
def test_control_of_several_devices(method, tables, images, held):
    """However the launches are timed, the stream is the same."""
    devices = jax.local_devices()[:3]
    classifier = engine.Classifier(
        method, held, image_size=SIZE, batch_size=4, devices=devices
    )
    wanted = held.exits(tables["logits"]["confidence"][100:], under_way=3 * 16)
    for _ in range(2):
        np.testing.assert_array_equal(classifier.classify(images[100:]).exit, wanted)


def stand_in(data):
    """Yield rules whose thresholds lie between confidences, cheapest first."""
    for share in np.linspace(0, 1, 20):
        values = np.quantile(data.confidence[:, :3], [share], 0, method="nearest")[0]
        yield stopping.ThresholdRule(values + 1e-4)


def test_stream_is_lazy(classifier, images):
    """No more images are taken than may be in flight, before results come out."""
    taken = []

    def source():
        for i in range(200):
            taken.append(i)
            yield images[i]

    stream = classifier.stream(source())
    next(stream)
    assert len(taken) <= classifier.in_flight + classifier.batch_size


def test_details(method, tables, images):
    found = tables["logits"]
    classifier = engine.Classifier(
        method,
        stopping.ThresholdRule((NEVER,) * 3),
        image_size=SIZE,
        batch_size=8,
        details=True,
        devices=jax.local_devices()[:1],
    )
    results = classifier.classify(images[:12])
    np.testing.assert_array_equal(results.boxes, found["boxes"][:12])
    np.testing.assert_array_equal(results.logits.argmax(-1), found["predicted"][:12])
    classifier.rule = stopping.fixed(2, 4)
    for i, result in enumerate(classifier.stream(images[:12])):
        np.testing.assert_allclose(result.logits[:2], results.logits[i, :2], 1e-4, 1e-5)
        assert np.isnan(result.logits[2:]).all()
        np.testing.assert_array_equal(result.boxes[:2], results.boxes[i, :2])
        assert (result.boxes[2:] == -1).all()
    classifier.rule = stopping.fixed(1, 4)
    assert (classifier.classify(images[:3]).boxes[:, 1:] == -1).all()


def test_milliseconds(classifier):
    cost = classifier.milliseconds(repeats=1)
    assert cost.shape == (4,) and (np.diff(cost) > 0).all() and cost[0] > 0
    steps = np.diff(cost)
    assert steps[0] > steps[1] == pytest.approx(steps[2])  # AnchorNet, then patches


def test_bfloat16(method, tables, images):
    classifier = engine.Classifier(
        method,
        stopping.fixed(4, 4),
        image_size=SIZE,
        batch_size=16,
        dtype="bfloat16",
        devices=jax.local_devices()[:1],
    )
    found = classifier.classify(images[:32]).confidence
    wanted = tables["logits"]["confidence"][:32, -1]
    assert 0 < np.abs(found - wanted).max() < 0.1


def test_stream_that_breaks(classifier, images):
    def source():
        yield from images[:13]
        raise OSError("disk gone")

    results = []
    with pytest.raises(engine.StreamError, match="item 13") as error:
        results.extend(classifier.stream(source()))
    assert len(results) == 13 and isinstance(error.value.__cause__, OSError)


@pytest.mark.parametrize(
    "bad", [np.zeros((SIZE, 99, 3), np.uint8), np.zeros((SIZE, SIZE, 3), np.float32)]
)
def test_wrong_image(classifier, images, bad):
    with pytest.raises(ValueError, match=r"`images` are .*; needed: uint8 \[B, 127"):
        classifier.classify(bad[None])
    results = []
    with pytest.raises(ValueError, match=r"`images` item 2 is .*; needed: uint8 \[127"):
        results.extend(classifier.stream([images[0], images[1], bad, images[2]]))
    assert len(results) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"batch_size": 2.5}, "`batch_size` is 2.5; allowed are whole numbers from 1"),
        ({"batch_size": 8, "in_flight": 4}, "`in_flight` is 4; .* from 8, the batch"),
        ({"max_wait": 0}, "`max_wait` is 0"),
        ({"rule": stopping.ThresholdRule((0.5,))}, "`rule` decides 1 times; 4 exits"),
        ({"image_size": 90}, "90x90 pixels.*95x95"),
        ({"dtype": "int7"}, "`dtype` is 'int7'"),
    ],
)
def test_bad_arguments(method, changes, message):
    arguments = {"rule": stopping.ThresholdRule((0.5,) * 3), "image_size": SIZE}
    with pytest.raises(ValueError, match=message):
        engine.Classifier(method, **{**arguments, **changes})


@dataclasses.dataclass(frozen=True, eq=False)
class Growing:
    """A method of three exits whose later steps read their state alone.

    `steps` are two programs; `count` is left as it is by the first step, so a slot must
    not keep what an earlier image had there.
    """

    networks: dict

    @property
    def steps(self):
        first = protocol.Step("first", ("network",), self._first)
        later = protocol.Step("later", ("network",), self._later, reads_pixels=False)
        return (first, later, later)

    def start(self, count, image_size):
        return {
            "map": jnp.zeros((count, 3), jnp.float32),
            "count": jnp.zeros((count, 1), jnp.float32),
        }

    def macs(self, image_size):
        return [1, 1, 1]

    def input_sizes(self, image_size):
        return {"network": image_size}

    def regions(self, state, image_size):
        return None

    def _first(self, variables, pixels, rows, state, t):
        seen = pixels if rows is None else pixels[rows]
        logits, _ = self.networks["network"].model.apply(
            variables["network"], preprocessing.normalise(seen)
        )
        return {**state, "map": logits}, logits

    def _later(self, variables, pixels, rows, state, t):
        count = state["count"] + 1
        logits = state["map"] * count + t[:, None]
        return {**state, "count": count}, jnp.sin(logits) * 3


def test_steps_that_read_no_pixels(images):
    """Slots keep no pixels then, and nothing of an earlier image."""
    made = Growing({"network": network(Tiny(3), SIZE, 3)})
    assert not protocol.keeps_pixels(made)
    found = table(made, images[:104])
    classifier = engine.Classifier(
        made,
        stopping.ThresholdRule(np.median(found["confidence"][:, :2], 0)),
        image_size=SIZE,
        batch_size=8,
        details=True,
        devices=jax.local_devices()[:1],
    )
    results = classifier.classify(images[:104])
    exits = classifier.rule.exits(found["confidence"])
    same = results.exit == exits  # one image stands on each median
    assert set(results.exit) == {0, 1, 2} and same.mean() > 0.95
    at = np.flatnonzero(same), exits[same]
    np.testing.assert_array_equal(results.predicted[same], found["predicted"][at])
    np.testing.assert_allclose(
        results.confidence[same], found["confidence"][at], atol=1e-4
    )
    assert classifier.traced == {"first": 1, "later": 1}
    assert (results.boxes == -1).all()


def test_static_method(images):
    """One network, one exit: what the network itself says."""
    made = registry.create("static", {"network": network(Tiny(3), SIZE, 4)})
    classifier = engine.Classifier(
        made, stopping.fixed(1, 1), image_size=SIZE, batch_size=8
    )
    own = made.networks["network"]
    wanted, _ = own.model.apply(own.variables, preprocessing.normalise(images[:20]))
    results = classifier.classify(images[:20])
    np.testing.assert_array_equal(results.predicted, wanted.argmax(-1))
    assert (results.exit == 0).all()


@pytest.mark.parametrize(
    ("costs", "wanted"),
    [
        ({8: 3.0, 16: 2.0, 32: 1.0, 64: 0.99}, 64),  # the last try is the cheapest
        ({8: 3.0, 16: 2.0, 32: 2.5}, 16),
        ({8: 3.0, 16: 2.0, 32: 1.0, 64: 0.5}, 64),  # and the most allowed
        ({8: 3.0, 16: 3.0}, 8),
    ],
)
def test_batch_size_is_chosen_by_cost(method, monkeypatch, costs, wanted):
    def milliseconds(classifier, repeats):
        return [0.1, costs[classifier.batch_size]]

    monkeypatch.setattr(engine.Classifier, "milliseconds", milliseconds)
    assert timing.choose_batch_size(method, SIZE, most=64) == wanted
