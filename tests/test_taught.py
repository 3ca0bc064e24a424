"""A localiser that learns from a classifier where to look, and how it is read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.methods import localize, preprocessing, registry, views
from anchornet_jax.models import attribution, multiply_adds
from anchornet_jax.models.receptive_field import ReceptiveField
from anchornet_jax.runtime import networks
from anchornet_jax.training import objectives, train, train_step
from anchornet_jax.training.objectives import NETWORK
from tests import tiny

SIZE, CLASSES = 40, 3
FIELD = ReceptiveField(16, 4)


class Pupil(nn.Module):
    """One linear convolution: a patch's evidence is the patch's alone."""

    num_classes: int
    axis_name: str | None = None
    dtype: str = "float32"

    field, fields = FIELD, (FIELD,)

    @nn.compact
    def __call__(self, images, *, train=False):
        """Return logits, and the evidence they are the mean of."""
        conv = nn.Conv(self.num_classes, 2 * (16,), 4, "VALID", name="conv")
        evidence = conv(images)
        return evidence.mean((1, 2)), {"evidence": (evidence,)}

    @staticmethod
    def evidence(variables, out):
        """Return it."""
        return out["evidence"]


class Teacher(nn.Module):
    """A map of two channels, a mean, a classifier."""

    num_classes: int
    axis_name: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train=False):
        """Return logits and the last map."""
        x = nn.relu(nn.Conv(2, (8, 8), 8, name="conv")(images))
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2))), {"features": x}


def batch(count=4):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    return images, jnp.asarray(rng.integers(0, CLASSES, count), jnp.int32)


def objective(**arguments):
    return objectives.taught(Pupil(CLASSES), Teacher(CLASSES), SIZE, **arguments)


def softmax(values):
    values = np.exp(values - values.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def test_loss_against_the_recipe():
    """The recipe of `taught`'s docstring in plain NumPy, window by window."""
    images, labels = batch()
    known = tiny.drawn(Teacher(CLASSES), SIZE, 1)
    state = train_step.create_state(objective(), optax.sgd(0.1), 0)
    sums, _ = objective().loss(
        state.variables(), known, images, labels, jax.random.split(jax.random.key(0), 4)
    )
    pixels = preprocessing.normalise(images)
    logits, out = Teacher(CLASSES).apply(known, pixels)
    kernel = known["params"]["fc"]["kernel"]
    _, seen = Pupil(CLASSES).apply(state.variables()[NETWORK], pixels)
    evidence = np.asarray(seen["evidence"][0], float)
    total = 0
    for i, label in enumerate(np.asarray(labels)):
        cam = out["features"][i] @ kernel[:, label]  # [5, 5]
        cam = jax.image.resize(cam, (SIZE, SIZE), "bilinear")
        means = np.array(
            [
                [cam[y : y + 16, x : x + 16].mean() for x in range(0, 25, 4)]
                for y in range(0, 25, 4)
            ]
        ).reshape(-1)
        where = softmax(2 * (means - means.mean()) / means.std())
        own = evidence[i].reshape(-1, CLASSES)
        answer = softmax(own.mean(0))
        total -= 0.5 * np.log(answer[label])
        total -= 0.5 * (softmax(np.asarray(logits[i])) * np.log(answer)).sum()
        for maps in (own[:, label], np.log(np.exp(own).sum(-1))):
            total -= 0.3 * (where * np.log(softmax(maps))).sum()
    np.testing.assert_allclose(sums["loss"], total, rtol=1e-4)
    assert sums["count"] == sums["images"] == 4


def test_score_is_where_not_what():
    """The teacher's evidence where the pupil's is strongest, whatever class it names."""
    images, labels = batch()
    known = tiny.drawn(Teacher(CLASSES), SIZE, 1)
    pupil = tiny.drawn(Pupil(CLASSES), SIZE, 2)
    key = jax.random.split(jax.random.key(0), 4)
    found = objective().score({NETWORK: pupil}, known, images, labels, key)
    _, seen = Pupil(CLASSES).apply(pupil, preprocessing.normalise(images))
    field = Pupil(CLASSES).field
    _, where = objectives.teach(Teacher(CLASSES), known, images, labels, field, 2.0)
    for one, maps, own in zip(found, where, np.asarray(seen["evidence"][0], float)):
        place = np.log(np.exp(own).sum(-1)).argmax()
        np.testing.assert_allclose(one, maps[place] / maps.max(), rtol=1e-5)
    assert 0 < found.min() < found.max() <= 1


def test_without_a_teachers_word_it_is_classification():
    """With neither its classes nor its places the loss is that of the papers."""
    images, labels = batch()
    keys = jax.random.split(jax.random.key(0), 4)
    known = tiny.drawn(Teacher(CLASSES), SIZE, 1)
    plain = objectives.classification(
        Pupil(CLASSES), views.make("full", Pupil(CLASSES)), SIZE
    )
    state = train_step.create_state(plain, optax.sgd(0.1), 0)
    wanted, _ = plain.loss(state.variables(), None, images, labels, keys)
    alone = objective(classes=0.0, places=0.0)
    found, _ = alone.loss(state.variables(), known, images, labels, keys)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)
    np.testing.assert_allclose(
        alone.predict(state.variables(), known, images, keys),
        plain.predict(state.variables(), None, images, keys),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1.1}, "`classes` is 1.1, `places` 0.3"),
        ({"places": -1.0}, "`places` -1.0"),
        ({"sharpness": -1.0}, "`sharpness` -1.0; allowed are 0 to 1, and 0 or more"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        objective(**arguments)


@pytest.mark.parametrize("model", [Teacher(3), tiny.TinyScales(3)])
def test_pupils_that_cannot_be_taught(model):
    with pytest.raises(ValueError, match="a teacher needs a pupil that localises"):
        objectives.taught(model, Teacher(3), SIZE)


def test_class_map_needs_one_classifier():
    variables = {"params": {"a": {"kernel": np.ones((2, 3))}, "b": {}}}
    features = jnp.ones((1, 2, 2, 2))
    found = attribution.class_map(variables, features, jnp.array([1]))
    np.testing.assert_array_equal(found, np.full((1, 2, 2), 2))
    variables["params"]["b"] = {"kernel": np.ones((2, 5))}
    with pytest.raises(ValueError, match="hold 2 linear layers of 2 channels"):
        attribution.class_map(variables, features, jnp.array([1]))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet10", "densenet121"])
def test_teachers_have_a_class_map(name):
    """The mean of the class map is the logit, less the bias of the classifier."""
    model = models.create(name, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    out = jax.eval_shape(model.apply, variables, jnp.zeros((1, 64, 64, 3)))[1]
    jax.eval_shape(
        attribution.class_map, variables, out["features"], jnp.zeros(1, jnp.int32)
    )


def test_evidence_is_what_contributions_take_apart():
    """All classes at once, for each class; their means are the logits."""
    model = models.create("anchornet", CLASSES)
    variables = tiny.drawn(model, 111, 0)
    out = {"extracted": jax.random.normal(jax.random.key(0), (2, 3, 3, 96))}
    logits, _ = model.classify(variables, out)
    (evidence,) = model.evidence(variables, out)
    np.testing.assert_allclose(evidence.mean((1, 2)), logits, rtol=1e-3, atol=1e-3)
    for label in range(CLASSES):
        (one,) = model.contributions(variables, out, jnp.full(2, label))
        np.testing.assert_allclose(evidence[..., label], one, rtol=1e-3, atol=1e-3)


def test_agnostic_heatmap():
    """Evidence for any class chooses the patch, whichever class is predicted."""
    model, variables = (
        tiny.TinyAnchorNet(CLASSES),
        tiny.drawn(tiny.TinyAnchorNet(CLASSES), 127),
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 127, 127, 3), np.uint8)
    found = localize.localize(model, variables, images, heatmap="agnostic")
    _, out = model.apply(variables, preprocessing.normalise(images))
    wanted = jax.nn.logsumexp(out["evidence"][0], -1)
    np.testing.assert_allclose(found.heatmap, wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="`heatmap` is 'any'; choose one of"):
        localize.localize(model, variables, images, heatmap="any")
    with pytest.raises(ValueError, match="`heatmap` is 'any'; choose one of"):
        views.make("patches", model, heatmap="any")


def test_multiply_adds_of_the_agnostic_heatmap():
    """289 locations of 224 px, 96 channels, each class: nothing else is added."""
    model = models.create("anchornet", 18)
    assert localize.heatmap_macs(model, "predicted", 224) == 0
    assert localize.heatmap_macs(model, "agnostic", 224) == 17 * 17 * 96 * 18
    members = {
        role: models.Network(own, {}, {})
        for role, own in (
            ("localizer", model),
            ("glance", tiny.Tiny(18)),
            ("patch", tiny.Tiny(18)),
        )
    }
    plain, agnostic = (
        registry.METHODS["anchornet"](members, heatmap=kind).macs(224)
        for kind in ("predicted", "agnostic")
    )
    assert agnostic[1] - plain[1] == 17 * 17 * 96 * 18
    assert plain[1] - plain[2] == multiply_adds.model_macs(model, 224)
    assert [a - b for a, b in zip(agnostic, plain) if a != b] == [17 * 17 * 96 * 18]


@pytest.fixture
def taught_config(data_dir, tmp_path, monkeypatch):
    """Return a config of the pupil on `plates/small`, and its teacher's directory."""
    for name, kind in (("pupil", Pupil), ("teacher", Teacher)):
        monkeypatch.setitem(models.MODELS, name, (kind, {}))

    def save(classes):
        networks.save(
            tmp_path / "teacher",
            {"name": "teacher", "num_classes": len(classes)},
            tiny.drawn(Teacher(len(classes)), 224) | {"batch_stats": {}},
            classes=classes,
        )

    save(list("0123456789"))
    config = tiny.config(data_dir, model="pupil", teacher=str(tmp_path / "teacher"))
    return config, save


def test_training_with_a_teacher(taught_config, tmp_path):
    """The loss falls, and the teacher is as it was."""
    config, _ = taught_config
    config.epochs, config.batch_size = 0.5, 16
    config.optimizer.learning_rate = 1e-4
    before = networks.load(config.teacher).variables
    result = train.train(config, tmp_path / "run")
    assert 0 <= result["accuracy"] <= 1
    assert networks.load(result["network"]).model.num_classes == 10
    jax.tree.map(
        np.testing.assert_array_equal, before, networks.load(config.teacher).variables
    )


def test_teachers_that_do_not_fit(taught_config):
    config, save = taught_config
    config.view.name = "resized"
    with pytest.raises(ValueError, match="with the view 'resized' .* 'full' and 0"):
        train.plan(config)
    config.view.name = "full"
    save(list("abcdefghij"))
    with pytest.raises(
        ValueError, match="trained for 10 classes, named .*'a', 'b', 'c'"
    ):
        train.plan(config)
    save(list("012"))
    with pytest.raises(ValueError, match="trained for 3 classes"):
        train.plan(config)
