"""GFNet's three trainings: what learns, what it loses, and the whole pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import engine
from anchornet_jax.inference.exit_table import NEVER
from anchornet_jax.methods import preprocessing, registry
from anchornet_jax.models import gfnet, multiply_adds
from anchornet_jax.models.resnet import ResNet
from anchornet_jax.programs import pipeline
from anchornet_jax.runtime import checkpoint, parallel
from anchornet_jax.runtime import networks as disk
from anchornet_jax.training import gfnet as trainings
from anchornet_jax.training import optimizers, ppo, train, train_step
from configs import gfnet as gfnet_config
from tests.test_gfnet_method import ENCODER, HIDDEN, PATCH, SIZE, networks
from tests.test_optimizers import PLAIN
from tests.tiny import Tiny, drawn

COUNT, INPUTS = 4, 2
LABELS = np.arange(COUNT, dtype=np.int32) % 3
VARIABLES = ("params", "batch_stats")


@pytest.fixture(scope="module")
def given():
    """Return small networks by role; what sees images is mapped over the devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny_encoder", (ResNet, ENCODER))
        found = networks(False)
        for role in ("glance", "patch"):
            model = found[role].model.clone(axis_name=parallel.AXIS)
            found[role] = found[role]._replace(model=model)
        yield found


def method(given, places="random", **changes):
    roles = registry.METHODS["gfnet"].roles(places=places)
    own = {role: given[role] for role in roles}
    arguments = {"inputs": INPUTS, "patch_size": PATCH, "places": places, **changes}
    return registry.create("gfnet", own, **arguments)


def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)


def variables(given, roles):
    """Return the variables of roles, with statistics also where there are none."""
    return {
        role: {kind: given[role].variables.get(kind, {}) for kind in VARIABLES}
        for role in roles
    }


def value(objective, given):
    """Return the sums of a batch on one device, at the networks as they are."""
    learns = variables(given, objective.trained)
    frozen = variables(given, set(given) - set(learns))

    def sums(frozen, batch):
        keys = parallel.image_keys(jax.random.key(0), COUNT)
        return objective.loss(learns, frozen, *batch, keys)[0]

    mapped = parallel.predict_step(sums)(frozen, (images()[None], LABELS[None]))
    return {name: float(column[0]) for name, column in mapped.items()}


def runner(objective, given, devices=1):
    """Return `run(saved=None)`, two steps; between them states are saved and restored."""
    optimizer = optimizers.create(
        9, **{**PLAIN, "learning_rate": 0.05, "momentum": 0.9}
    )
    learns = variables(given, objective.trained)
    frozen = variables(given, set(given) - set(learns))
    chosen = jax.local_devices()[:devices]
    step = parallel.train_step(
        train_step.make_train_step(objective, optimizer, 0), devices=chosen
    )
    shape = devices, COUNT // devices
    batch = {"image": images(), "label": LABELS}
    batch = {k: x.reshape(*shape, *x.shape[1:]) for k, x in batch.items()}

    def run(saved=None):
        state = train_step.create_state(objective, optimizer, 0, learns)
        for number in (1, 2):
            state, sums = step(*parallel.replicate((state, frozen), chosen), batch)
            state = jax.device_get(state)
            if saved is not None:
                saved.save(number, state)
                _, state = saved.restore(state)
        return state, jax.device_get(sums)

    return run


def same(one, other, **close):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), one, other)


def moved(given, state):
    """Return the roles any of whose parameters or statistics are others now."""
    return {
        role
        for role, own in state.variables().items()
        if any(
            np.any(a != b)
            for a, b in zip(
                jax.tree.leaves(own), jax.tree.leaves(variables(given, [role])[role])
            )
        )
    }


def keys(t):
    """Return the images' own keys for input t."""
    own = (jax.random.fold_in(jax.random.key(0), place) for place in range(COUNT))
    return [jax.random.fold_in(key, t) for key in own]


def drawn_around(given, maps, state, t):
    """Return actions around the policy's, its state and its values."""
    actor = given["policy"]
    state, means, values = actor.model.apply(actor.variables, maps, state)
    noise = np.array([jax.random.normal(key, (2,)) for key in keys(t)])
    return np.clip(means + 0.1 * noise, 0, 1), state, values


def cross_entropy(logits):
    scores = np.asarray(jax.nn.log_softmax(logits))
    return -scores[np.arange(COUNT), LABELS]


def cut(actions):
    """Return the patches at actions as their encoder sees them."""
    corners = np.floor(actions * (SIZE - PATCH)).astype(int)
    pairs = zip(images(), corners)
    found = [image[y : y + PATCH, x : x + PATCH] for image, (y, x) in pairs]
    return preprocessing.normalise(np.array(found))


def seen(network, pixels, learns):
    """Return an encoder's logits and last map, in training or not."""
    model = network.model.clone(axis_name=None)
    if learns:
        run = lambda *own: model.apply(*own, train=True, mutable=["batch_stats"])[0]
    else:
        run = model.apply
    logits, out = jax.jit(run)(network.variables, pixels)
    return logits, out["features"]


@pytest.mark.parametrize(("places", "fixed"), [("random", ()), ("policy", ("glance",))])
def test_networks_by_hand(given, places, fixed):
    """Answers and own heads of both inputs, each patch where key or policy says."""
    known = method(given, places)
    objective = trainings.networks(known, auxiliary=3.0, fixed=fixed)
    zeros = jnp.zeros((COUNT, HIDDEN))
    memory, maps, wanted = zeros, None, 0.0
    for role in ("glance", "patch"):
        if role == "glance":
            pixels = known.glance_pixels(images())
        elif places == "random":
            pixels = cut(np.array([jax.random.uniform(key, (2,)) for key in keys(1)]))
        else:
            pixels = cut(drawn_around(given, maps, zeros, 1)[0])
        own, maps = seen(given[role], pixels, learns=role not in fixed)
        memory, logits = given["classifier"].model.apply(
            given["classifier"].variables, maps.mean((1, 2)), memory
        )
        wanted += (cross_entropy(logits) + 3 * cross_entropy(own)).sum() / INPUTS
    found = value(objective, given)
    assert set(objective.trained) == set(trainings.LEARN) - set(fixed)
    np.testing.assert_allclose(found["loss"], wanted, rtol=1e-4)
    assert found["count"] == found["images"] == COUNT
    assert found["correct"] == (logits.argmax(-1) == LABELS).sum()


def test_policy_by_hand(given):
    """Returns, advantage and critic; the ratio is 1, so that clipping does nothing."""
    inputs = 3
    known = method(given, "policy", inputs=inputs)
    classifier = given["classifier"]
    memory, state = jnp.zeros((COUNT, HIDDEN)), jnp.zeros((COUNT, HIDDEN))
    scores, values, pixels = [], [], known.glance_pixels(images())
    for t in range(inputs):
        role = "patch" if t else "glance"
        encode = jax.jit(lambda v, x, m=given[role].model: gfnet.encode(m, v, x))
        pooled, maps, _ = encode(given[role].variables, pixels)
        memory, logits = classifier.model.apply(classifier.variables, pooled, memory)
        scores.append(np.exp(-cross_entropy(logits)))
        actions, state, critic = drawn_around(given, maps, state, t + 1)
        values.append(critic)
        pixels = cut(actions)
    first, second = np.diff(scores, axis=0)
    gains = np.stack([first + 0.7 * second, second])
    gains = (gains - gains.mean()) / (gains.std(ddof=1) + 1e-5)
    values = np.array(values[: inputs - 1])
    bonus = 0.01 * (1 + np.log(2 * np.pi * 0.1**2))
    wanted = 0.5 * ((values - gains) ** 2).mean() - (gains - values).mean() - bonus
    found = value(trainings.policy(known), given)
    np.testing.assert_allclose(found["loss"] / found["count"], wanted, rtol=1e-4)
    tight = trainings.policy(known, settings=ppo.Settings(clip=0.0))
    assert value(tight, given) == pytest.approx(found, rel=1e-6)
    assert found["correct"] == (logits.argmax(-1) == LABELS).sum()


def test_what_learns_and_resumes(given, tmp_path):
    """Two devices as one; saved and restored, to the bit; each stage its own roles."""
    learned = {"glance", "patch", "classifier"}
    for name, objective, roles in (
        ("networks", trainings.networks(method(given)), learned),
        ("policy", trainings.policy(method(given, "policy")), {"policy"}),
    ):
        run = runner(objective, given)
        whole, sums = run()
        with checkpoint.Checkpoints(tmp_path / name) as saved:
            resumed, _ = run(saved)
        same(whole, resumed, rtol=0, atol=0)
        assert moved(given, whole) == roles and np.isfinite(sums["loss"])
        spread, shared = runner(objective, given, devices=2)()
        same(whole.params, spread.params, rtol=1e-3, atol=1e-4)
        same(sums, shared, rtol=1e-3, atol=1e-4)


def test_refused(given):
    random, policy = method(given), method(given, "policy")
    for objective, own, settings, message in (
        ("networks", random, {"fixed": trainings.LEARN}, "`fixed` is .* but not all"),
        ("networks", random, {"fixed": ("policy",)}, r"`fixed` is \('policy',\)"),
        ("networks", random, {"label_smoothing": 1.0}, "`label_smoothing` is 1.0"),
        ("policy", random, {}, "`places` is 'random' and `inputs` 2; where a policy"),
        ("policy", method(given, "policy", inputs=1), {}, "`inputs` 1; where"),
        ("policy", Tiny(3), {}, "`method` is a Tiny; this objective needs a GFNet"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(trainings, objective)(own, **settings)
    parts = [train_step.make_train_step, trainings.policy(policy), None, 0]
    with pytest.raises(
        ValueError, match="`accumulate` is 2; allowed is 1: returns are"
    ):
        parts[0](*parts[1:], accumulate=2)
    parts[0](trainings.networks(random), None, 0, accumulate=2)


def small(data_dir):
    """Return the config with tiny encoders, on a handful of plates."""
    config = gfnet_config.get_config("plates,resnet_tiny")
    config.data.update(
        name="plates/small", data_dir=data_dir, image_size=112, resize=112
    )
    for stage in config.stages.values():
        stage.batch_size, stage.epochs, stage.save_every_epochs = 16, 0.5, 0.25
        stage.budgets, stage.timing.images, stage.timing.batch_size = 3, 8, 4
        for part in stage.parts.values():
            part.update({"hidden": HIDDEN} if "hidden" in part else {})
        for one in (stage.method, *stage.references.values()):
            if one.name == "gfnet":
                one.inputs, one.patch_size = 3, 32
    return config


@pytest.fixture
def tiny_resnet(monkeypatch):
    monkeypatch.setitem(models.MODELS, "resnet_tiny", (ResNet, ENCODER))


def new(config, stage="warm_up"):
    """Return a stage's config, of which all networks are new."""
    config = config.stages[stage].copy_and_resolve_references()
    encoder = {"name": "resnet_tiny"}
    config.parts.update({"glance": encoder, "patch": encoder})
    for role in config.method.networks:
        config.method.networks[role] = ""
    return config


def test_plans_that_cannot_be(data_dir, tmp_path, tiny_resnet):
    network = models.create("resnet_tiny", 3)
    disk.save(
        tmp_path / "other",
        {"name": "resnet_tiny", "num_classes": 3},
        drawn(network, 32),
        classes=["a", "b", "c"],
    )
    for change, message in (
        ({"view.name": "resized"}, "`config.view.name` is 'resized'; with the obj"),
        ({"init_from": "/x"}, "`config.init_from` is '/x'; .* allowed is ''"),
        ({"method.name": "static"}, "`config.method.name` is 'static'; .* .'gfnet'"),
        ({"method.networks.patch": "/x"}, "`config.method.networks.patch`: "),
        (
            {"method.networks.patch": str(tmp_path / "other")},
            "networks.patch` is .* trained for 3 classes, named .'a', 'b', 'c'",
        ),
        ({"parts": {}}, "`config.method.networks.glance` is empty, and `config.parts`"),
        ({"fixed": ("glance",)}, "networks.glance` is empty; gfnet_networks does not"),
        ({"method.inputs": 0}, "`inputs` is 0; allowed is 1"),
    ):
        config = new(small(data_dir))
        for key, one in change.items():
            if key == "parts":
                config.parts = {}
            else:
                config.update_from_flattened_dict({key: one})
        with pytest.raises(ValueError, match=message):
            train.plan(config)


def test_a_training_of_new_networks(data_dir, tiny_resnet):
    """Counted as the method counts."""
    config = new(small(data_dir))
    plan = train.plan(config)
    assert set(plan.descriptions) == set(plan.objective.trained) == set(trainings.LEARN)
    assert not plan.start and not plan.frozen
    encoder = models.create("resnet_tiny", 10)
    macs = multiply_adds.model_macs(encoder, 32) - 16 * 10  # its head does not answer
    gru, head = 3 * HIDDEN * (16 + HIDDEN), HIDDEN * 10
    assert plan.macs == 3 * (macs + gru + head)


@pytest.mark.slow
def test_whole_pipeline(data_dir, tmp_path, tiny_resnet, monkeypatch):
    """Stopped in each training and started again, to report and export."""
    config, died = small(data_dir), []
    save = checkpoint.Checkpoints.save

    def save_and_die(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        stage = self._directory.parent.name
        if stage not in died:
            died.append(stage)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_and_die)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config, tmp_path / "run")
    summary = pipeline.run(config, tmp_path / "run")
    assert died == ["full_image", "glance", "warm_up", "policy", "fine_tune"]
    assert summary["exits"] == ["glance", "focus 1", "focus 2"]
    assert {"random places", "warmed up at random"} <= set(summary["references"])
    warm, last = (
        disk.load(tmp_path / f"run/{s}/patch") for s in ("warm_up", "fine_tune")
    )
    assert checkpoint.digest(warm.variables) != checkpoint.digest(last.variables)
    assert (tmp_path / "run" / "report.html").exists()
    classifier = engine.load(
        tmp_path / "run" / "export", thresholds=(NEVER,) * 2, batch_size=4
    )
    found = classifier.classify(np.zeros((3, 112, 112, 3), np.uint8))
    assert found.exit.tolist() == [2, 2, 2]
