"""What the code computed before it was rearranged; whatever changes must reproduce it.

`python -m tests.test_golden_results` writes the trained parameters anew, only when they
are meant to change; the export of format 1 cannot be made any more. Numbers were made on
an x86-64 CPU; other CPUs add up in another order, so they are compared to a few digits.
"""

import pathlib

import jax
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import export
from anchornet_jax.methods import method, registry, views
from anchornet_jax.runtime import networks, parallel
from anchornet_jax.training import objectives, optimizers, train_step
from tests.tiny import Tiny, TinyAnchorNet, drawn

RESULTS = pathlib.Path(__file__).parent / "golden" / "results"
SIZE, COUNT = 127, 8
CLASSES = ["a", "b", "c"]
OPTIMIZER = {
    "learning_rate": 0.05,
    "schedule": "cosine",
    "warmup": 0.25,
    "boundaries": (),
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
}
TRAININGS = {  # name: (network, view, what else is different)
    "full": ("tiny", "full", {}),
    "resized": ("tiny", "resized", {}),
    "patches": ("tiny", "patches", {"k": 2, "iou_threshold": 0.8}),
    "random": ("tiny", "random", {"k": 2}),
    "step": ("tiny", "full", {"schedule": "step", "boundaries": (0.5,)}),
    "accumulate": ("tiny", "full", {"accumulate": 2}),
    "anchornet": ("anchornet", "full", {}),
}


def images():
    """Return uint8 images [B, H, W, 3] whose colours vary."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (COUNT, 1, 1, 3))
    noise = rng.integers(-60, 60, (COUNT, SIZE, SIZE, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def localizer():
    """Return a small localiser and its variables."""
    model = TinyAnchorNet(len(CLASSES))
    return model, drawn(model, SIZE)


def trained(name):
    """Return the variables after four training steps, on four devices."""
    network, view, changes = TRAININGS[name]
    own, frozen = localizer()
    model = (
        Tiny(len(CLASSES), axis_name=parallel.AXIS)
        if network == "tiny"
        else models.create(network, len(CLASSES), axis_name=parallel.AXIS)
    )
    where = {k: v for k, v in changes.items() if k in ("k", "iou_threshold")}
    settings = OPTIMIZER | {k: v for k, v in changes.items() if k in OPTIMIZER}
    optimizer = optimizers.create(4, **settings)
    size = SIZE if view == "full" else own.field.size
    seen = views.make(view, own, **where)
    objective = objectives.classification(model, seen, size)
    state = train_step.create_state(
        objective, optimizer, 0, {objectives.NETWORK: drawn(model, size, 1)}
    )
    step = parallel.train_step(
        train_step.make_train_step(
            objective, optimizer, 0, changes.get("accumulate", 1)
        )
    )
    batch = {"image": images(), "label": np.arange(COUNT, dtype=np.int32) % 3}
    state, frozen = parallel.replicate((state, frozen))
    for _ in range(4):
        state, _ = step(state, frozen, parallel.shard(batch))
    return state.variables()[objectives.NETWORK]


def compressed(variables):
    """Return {path: array}; of large arrays two sums, which all entries change."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(variables))
    found = {}
    for path, leaf in leaves:
        if leaf.size > 2000:
            signs = np.random.default_rng(0).choice([-1.0, 1.0], leaf.shape)
            leaf = np.array([(leaf * signs).sum(), (leaf.astype(float) ** 2).sum()])
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
    return found


def test_trainings():
    """Parameters after a few steps of every kind of training."""
    with np.load(RESULTS / "trained.npz") as file:
        wanted = dict(file)
    assert {name.split(":")[0] for name in wanted} == set(TRAININGS)
    for name in TRAININGS:
        found = compressed(trained(name))
        assert len(found) == sum(key.startswith(f"{name}:") for key in wanted)
        for path, leaf in found.items():
            np.testing.assert_allclose(
                leaf, wanted[f"{name}:{path}"], 1e-3, 1e-4, err_msg=f"{name}:{path}"
            )


def make_method():
    """Return a method whose networks are drawn, three inputs."""
    own, variables = localizer()
    glance, patch = (drawn(Tiny(len(CLASSES)), 95, seed) for seed in (1, 2))

    def network(name, model, variables):
        about = {"model": {"name": name, "num_classes": 3}, "classes": CLASSES}
        return networks.Network(model, variables, about)

    members = {
        "localizer": network("tiny_anchornet", own, variables),
        "glance": network("tiny", Tiny(3), glance),
        "patch": network("tiny", Tiny(3), patch),
    }
    return registry.create("anchornet", members, inputs=3, iou_threshold=0.8)


def table_of(made):
    """Return confidence and class at every exit."""
    variables = parallel.replicate(method.variables(made))
    batch = parallel.shard({"image": images()})
    found = parallel.gather(method.make_table(made)(variables, batch))
    return {name: found[name] for name in ("confidence", "predicted")}


@pytest.fixture
def registered(monkeypatch):
    """Register the networks of the old export."""
    monkeypatch.setitem(models.MODELS, "tiny", (Tiny, {}))
    monkeypatch.setitem(models.MODELS, "tiny_anchornet", (TinyAnchorNet, {}))


def test_export_of_format_1(registered):
    """An export that the first format wrote gives what it gave then."""
    found = export.load(RESULTS / "export_1")
    with np.load(RESULTS / "export_1.npz") as file:
        wanted = dict(file)
    for name, value in table_of(found.method).items():
        np.testing.assert_allclose(value, wanted[name], 1e-4, 1e-5)
    assert found.classes == CLASSES and found.image_size == SIZE
    assert found.macs == wanted["macs"].tolist()
    ((budget, rule),) = found.rules.items()
    assert budget == wanted["budget"] and rule.to_json()["rule"] == "thresholds"
    np.testing.assert_allclose(rule.parameters, wanted["thresholds"])
    assert found.calibration.confidence.shape == (40, 3)


def write():
    """Write the golden files of this module."""
    arrays = {
        f"{name}:{path}": leaf
        for name in TRAININGS
        for path, leaf in compressed(trained(name)).items()
    }
    np.savez_compressed(RESULTS / "trained.npz", **arrays)


if __name__ == "__main__":
    from tests import conftest  # noqa: F401, four devices

    write()
