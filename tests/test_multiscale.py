"""The localiser of 2020: its tables, its decision, its preset selections, its claims."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.methods import localize, patches
from anchornet_jax.models import (
    anchornet_2020,
    attribution,
    multiply_adds,
    receptive_field,
)
from anchornet_jax.training import objectives
from tests import tiny

TABLE_1 = [  # 2020, Table 1: IR of the next row, and RF
    (111, 3),
    (55, 7),
    (27, 15),
    (27, 15),
    (27, 15),
    (27, 15),
    (27, 15),
    (27, 15),
    (25, 31),
    (23, 47),
]
TABLE_2 = [  # 2020, Table 2, in the same way; the last is the attention branch's
    [(21, 63), (21, 63), (21, 63)],
    [(21, 63), (17, 95), (17, 95)],
    [(19, 79), (15, 111), (15, 111)],
]
SIDE = 119  # px: grids of 8, 4 and 2 locations
NAME = "anchornet_multiscale_third"
CLASSES = jnp.array([3, 0, 1])


def shapes(side):
    return jax.ShapeDtypeStruct((1, side, side, 3), "float32")


def test_tables():
    head = (anchornet_2020.STEM, *anchornet_2020.HEAD)
    for rows, table in zip(anchornet_2020.BRANCHES, TABLE_2):
        fields = receptive_field.accumulate(
            (r.kernel, r.stride) for r in (*head, *rows)
        )
        found = [(field.grid(224, 224)[0], field.size) for field in fields]
        assert found == TABLE_1 + table
    # 2020, Sec. 3.2: fields and stride.
    fields = [
        (field.size, field.stride)
        for field in anchornet_2020.MultiScaleAnchorNet.fields
    ]
    assert fields == [(63, 8), (95, 8), (111, 8)]


def test_counts():
    """2020, Sec. 1: 1.6 M parameters, 0.5 G multiply-adds; exactly as documented."""
    model = models.create("anchornet_multiscale", num_classes=1000)
    images = shapes(224)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    with jax.disable_jit():  # traced in line: half the time
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        macs = multiply_adds.macs(model.apply, variables, images)
        with_training = multiply_adds.macs(
            lambda *a: train(*a)[0][0], variables, images
        )
    assert multiply_adds.parameters(variables) == 1_550_313
    assert macs == 485_516_200
    training = [
        multiply_adds.parameters(tree)
        for name, tree in variables["params"].items()
        if name.endswith("_training")
    ]
    assert training == 3 * [97_000]  # 96 channels to 1,000 classes, with biases
    assert with_training - macs == 3 * 96_000  # absent from the inference program


@functools.cache
def applied(name):
    """Return logits, maps and the attribution to `CLASSES`, of one compiled program."""
    model = models.create(name, num_classes=4)
    variables = tiny.drawn(model, SIDE)
    images = jax.random.normal(jax.random.key(1), (3, SIDE, SIDE, 3))

    @jax.jit
    def run(variables, images):
        found = attribution.attribution(model, variables, images, CLASSES)
        logits, out = model.apply(variables, images)
        return logits, out, found, model.classify(variables, out)

    return run(variables, images)


def test_logits_are_those_of_the_chosen_branch():
    logits, out, *_ = applied(NAME)
    grids = [maps.shape for maps in out["evidence"]]
    assert grids == [(3, 8, 8, 4), (3, 4, 4, 4), (3, 2, 2, 4)]  # (119 - RF) // 8 + 1
    classes, branch = anchornet_2020.decide(jax.nn.softmax(out["branch_logits"]))
    np.testing.assert_array_equal(branch, out["branch"])
    np.testing.assert_array_equal(classes, logits.argmax(-1))
    np.testing.assert_allclose(logits, out["branch_logits"][np.arange(3), branch])


@pytest.mark.parametrize("name", [NAME, "anchornet"])
def test_averaging_before_the_classifier_changes_nothing(name):
    logits, out, _, (own, branch) = applied(name)
    np.testing.assert_allclose(own, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(branch, out.get("branch", np.zeros(3)))


def test_contributions_are_the_evidence():
    _, out, found, _ = applied(NAME)
    for maps, wanted in zip(found.contributions, out["evidence"]):
        wanted = np.asarray(wanted)[np.arange(3), :, :, CLASSES]
        np.testing.assert_allclose(maps, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [NAME, "anchornet"])
def test_localisation_computes_no_map_of_all_channels(name):
    """Of all 77 classes or 512 features: XLA drops what only `__call__` returns."""
    model = models.create(name, num_classes=77)
    variables = jax.eval_shape(lambda: tiny.drawn(model, SIDE))
    images = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), jnp.uint8)
    find = jax.jit(functools.partial(localize.localize, model))
    text = find.lower(variables, images).compile().as_text()
    maps = re.findall(r"f32\[2,(?!1,1)\d+,\d+,(\d+)\]", text)
    assert maps and not {"77", "512"} & set(maps)


def test_attention_is_equations_1_to_5():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4))
    softmax = lambda v: np.exp(v) / np.exp(v).sum()
    weights = softmax(g)  # Eq. 1
    channels = [sum((x[:, :, c] * weights).ravel()) for c in range(5)]  # Eq. 2
    channels = softmax(np.array(channels))  # Eq. 3
    spatial = softmax((x * channels).sum(-1))  # Eqs. 4, 5
    found = anchornet_2020.attend(jnp.asarray(x)[None], jnp.asarray(g)[None])
    np.testing.assert_allclose(found[0], spatial, rtol=1e-5)


def test_attention_has_mean_one():
    for spatial in applied(NAME)[1]["attention"]:
        np.testing.assert_allclose(spatial.mean((1, 2)), 1, rtol=1e-5)
        assert spatial.std() > 1e-2


def test_training_has_six_heads():
    """Each branch and each attention branch learns from the label (2020, Sec. 3.2)."""
    model = models.create(NAME, num_classes=4)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    with jax.disable_jit():  # traced in line: half the time
        variables = jax.eval_shape(model.init, jax.random.key(0), shapes(SIDE))
        (logits, _), _ = jax.eval_shape(train, variables, shapes(SIDE))
    assert logits.shape == (1, 6, 4)
    loss = objectives.cross_entropy(jnp.zeros((3, 1, 6, 4)), jnp.array([0, 1, 2]))
    np.testing.assert_allclose(loss, np.full((3, 1), 6 * np.log(4)), rtol=1e-6)


def oracle(probabilities):
    """2020, Eqs. 6 to 8, written plainly for one image: three lists of probabilities."""
    y = [row.index(max(row)) for row in probabilities]
    p = [max(row) for row in probabilities]
    gamma = next((c for c in y if sum(c == other for other in y) >= 2), None)
    if gamma is None:
        gamma = y[p.index(max(p))]
    scores = [(p[j] == probabilities[j][gamma]) * p[j] for j in range(3)]
    return gamma, scores.index(max(scores))


@pytest.mark.parametrize("levels", [None, 4, 2])
def test_decide_equals_the_equations(levels):
    """Few levels of logits make ties, within a branch and between branches."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 3, 4))
    if levels:
        logits = rng.integers(levels, size=(500, 3, 4))
    probabilities = np.asarray(jax.nn.softmax(logits.astype(np.float32)))
    classes, branch = jax.jit(anchornet_2020.decide)(probabilities)
    wanted = [oracle(image.tolist()) for image in probabilities]
    np.testing.assert_array_equal(np.stack([classes, branch], 1), wanted)
    assert len(set(wanted)) > 8  # of 12: the cases are there


@pytest.mark.parametrize(
    ("side", "fit"), [(100, "B63, B95"), (64, "B63"), (40, "none")]
)
def test_too_small_an_image(side, fit):
    model = models.create("anchornet_multiscale", num_classes=3)
    with pytest.raises(
        ValueError, match=f"{side}x{side} pixels.* only {fit} would fit"
    ):
        jax.eval_shape(model.init, jax.random.key(0), shapes(side))


def test_presets():
    """2020, Sec. 4.1; locations of 21x21, 17x17 and 15x15 grids that are visited."""
    found = patches.preset("separate", (63, 95, 111))
    assert found == ((5, 0.3, 0.05), (3, 0.3, 0.04), (2, 0.3, 0.03))
    found = patches.preset("many", (63, 95, 111))
    assert found == ((24, 0.8, 0.3), (10, 0.8, 0.3), (8, 0.8, 0.3))


@pytest.mark.parametrize(
    ("name", "branches", "message"),
    [
        ("few", (63,), "`preset` is 'few'; choose one of"),
        ("many", (63, 79), r"`branches` holds 79; .* known .* \[63, 95, 111\]"),
    ],
)
def test_unknown_preset(name, branches, message):
    with pytest.raises(ValueError, match=message):
        patches.preset(name, branches)


@pytest.mark.parametrize("name", ["anchornet", NAME])
def test_contributions_add_up_to_the_logit(name):
    logits, out, found, _ = applied(name)
    branches = out.get("branch_logits", logits[:, None])  # [B, branches, N]
    assert len(found.contributions) == branches.shape[1]
    for j, contributions in enumerate(found.contributions):
        wanted = branches[np.arange(3), j, CLASSES]
        total = contributions.mean((1, 2))
        np.testing.assert_allclose(total, wanted, atol=1e-5, rtol=1e-5)
        assert contributions.std((1, 2)).min() > 1e-2
    np.testing.assert_array_equal(found.classes, CLASSES)
    np.testing.assert_array_equal(found.branch, out.get("branch", np.zeros(3)))
