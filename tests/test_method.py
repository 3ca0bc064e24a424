"""The protocol and the methods: Algorithm 1, names, costs, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.methods import anchornet, localize, patches, preprocessing, registry
from anchornet_jax.methods import method as protocol
from anchornet_jax.models import Network, multiply_adds
from anchornet_jax.models.pixels import Pixels
from tests.tiny import Tiny, TinyAnchorNet, drawn

SIZE, COUNT = 127, 5
CLASSES = ["a", "b", "c"]


def network(model, size, seed):
    return Network(model, drawn(model, size, seed), {"classes": CLASSES})


MEMBERS = {
    "localizer": network(TinyAnchorNet(3), SIZE, 0),
    "glance": network(Tiny(3), 95, 1),
    "patch": network(Tiny(3), 95, 2),
}


def create(**arguments):
    return registry.create(
        "anchornet", MEMBERS, **{"inputs": 4, "iou_threshold": 0.8, **arguments}
    )


def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)


def algorithm_1(inputs, valid, fuse):
    """2022, Algorithm 1 for one image: confidence and class after each input."""
    total, seen, steps = 0, 0, []
    for logits, exists in zip(inputs, valid):
        if exists:
            p = np.exp(logits - logits.max())
            total = total + (logits if fuse == "logits" else p / p.sum())
            seen += 1
        if fuse == "logits":
            p = np.exp(total - total.max())
            p = p / p.sum()
        else:
            p = total / seen
        steps.append((p.max(), p.argmax()))
    return [list(column) for column in zip(*steps)]


def alone(role, pixels):
    """Return what a network says of normalised pixels."""
    member = MEMBERS[role]
    return np.asarray(member.model.apply(member.variables, pixels)[0])


@pytest.mark.parametrize("fuse", anchornet.FUSE)
def test_equals_algorithm_1(fuse):
    """Every input alone, one image at a time, added up in plain Python."""
    method = create(fuse=fuse)
    logits, state = protocol.run(method, protocol.variables(method), images())
    confidence, predicted = protocol.decide(logits)
    boxes = method.regions(state, SIZE).boxes
    found = localize.localize(
        *MEMBERS["localizer"][:2], images(), k=3, iou_threshold=0.8
    )
    for i, image in enumerate(images()):
        pixels = preprocessing.normalise(image[None])
        inputs = [alone("glance", patches.resize(pixels, 95))[0]]
        assert boxes[i, 0].tolist() == [0, 0, SIZE, SIZE]
        for k, (y, x) in enumerate(np.asarray(found.corners[i])):
            inputs.append(alone("patch", pixels[:, y : y + 95, x : x + 95])[0])
            wanted = [y, x, y + 95, x + 95] if found.valid[i, k] else [-1] * 4
            assert boxes[i, k + 1].tolist() == wanted
        valid = [True, *np.asarray(found.valid[i])]
        wanted = algorithm_1(inputs, valid, fuse)
        np.testing.assert_allclose(confidence[i], wanted[0], rtol=1e-4)
        np.testing.assert_array_equal(predicted[i], wanted[1])


def test_vote():
    """The localiser's own answer is an exit, and evidence beside glance and patches."""
    plain, method = create(), create(vote=True)
    run = lambda one: protocol.run(one, protocol.variables(one), images())
    (sums, state), (voted, own) = run(plain), run(method)
    np.testing.assert_array_equal(state["corners"], own["corners"])
    pixels = preprocessing.normalise(images(), MEMBERS["localizer"].model)
    logits = alone("localizer", pixels)
    np.testing.assert_allclose(voted[:, 0], sums[:, 0], rtol=1e-6)
    np.testing.assert_allclose(voted[:, 1], sums[:, 0] + logits, rtol=1e-5)
    wanted = sums[:, 1:] + logits[:, None]
    np.testing.assert_allclose(voted[:, 2:], wanted, rtol=1e-4, atol=1e-4)
    assert protocol.exit_names(method.steps)[:3] == ["glance", "localize", "patch 2"]
    assert method.steps[1].roles == ("localizer",)
    boxes, others = (
        np.asarray(m.regions(s, SIZE).boxes) for m, s in ((method, own), (plain, state))
    )
    assert (boxes[:, 1] == np.array([0, 0, SIZE, SIZE])).all()  # it saw the whole image
    np.testing.assert_array_equal(boxes[:, 2:], others[:, 1:])
    costs, without = (protocol.costs(one, SIZE) for one in (method, plain))
    assert costs[2:] == without[1:] and without[0] < costs[1] < costs[2]


def test_weights():
    """Each source's sum has its weight at each exit; all 1 is the plain sum."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2, (5, 3)).tolist()
    sources = [0, 1, 2, 2, 2]
    plain, method = create(vote=True), create(vote=True, weights=weights)
    sums, found = (
        np.asarray(protocol.run(one, protocol.variables(one), images())[0])
        for one in (plain, method)
    )
    added = np.diff(sums, axis=1, prepend=0)  # [B, T, N]
    for t, row in enumerate(weights):
        wanted = sum(row[sources[u]] * added[:, u] for u in range(t + 1))
        np.testing.assert_allclose(found[:, t], wanted, rtol=1e-4, atol=1e-4)
    again = registry.create("anchornet", MEMBERS, **method.arguments)
    assert again.arguments == method.arguments


class Symmetric(Tiny):
    """A network that wants pixels from -1 to 1."""

    pixels = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_each_network_sees_by_its_own_pixels():
    """A patch network of another preprocessing finds the same patches in them."""
    patch = MEMBERS["patch"]._replace(model=Symmetric(3))
    method = registry.create(
        "anchornet", MEMBERS | {"patch": patch}, inputs=2, fuse="logits"
    )
    usual = registry.create("anchornet", MEMBERS, inputs=2, fuse="logits")
    (logits, state), (others, theirs) = (
        protocol.run(one, protocol.variables(one), images()) for one in (method, usual)
    )
    np.testing.assert_array_equal(state["corners"], theirs["corners"])
    np.testing.assert_array_equal(logits[:, 0], others[:, 0])  # the glance
    for i, image in enumerate(images()):
        y, x = np.asarray(state["corners"][i, 0])
        pixels = image[None, y : y + 95, x : x + 95] / np.float32(127.5) - 1
        added = patch.model.apply(patch.variables, pixels)[0][0]
        np.testing.assert_allclose(logits[i, 1] - logits[i, 0], added, atol=1e-4)


def test_costs():
    """The localiser is paid for by those who go past the glance alone."""
    one = multiply_adds.model_macs(MEMBERS["glance"].model, 95)
    own = multiply_adds.model_macs(MEMBERS["localizer"].model, SIZE)
    assert protocol.costs(create(), SIZE) == [
        one + t * one + own * (t > 0) for t in range(4)
    ]
    assert protocol.costs(heuristic("centre"), SIZE) == [one, 2 * one, 3 * one]


def test_names_and_programs():
    method = create()
    assert protocol.exit_names(method.steps) == ["glance", "look", "patch 2", "patch 3"]
    assert [step.name for step in protocol.distinct(method.steps)] == [
        "glance",
        "look",
        "patch",
    ]
    assert method.steps[1].roles == ("localizer", "patch")
    assert protocol.keeps_pixels(method) and registry.name(method) == "anchornet"
    again = registry.create("anchornet", MEMBERS, **method.arguments)
    assert again.arguments == method.arguments


def heuristic(name):
    members = {role: MEMBERS[role] for role in ("glance", "patch")}
    return registry.create("anchornet", members, inputs=3, localizer=name)


@pytest.mark.parametrize("name", localize.HEURISTICS)
def test_localisers_that_learned_nothing(name):
    """The same in whatever batch an image is; patches lie on the lattice."""
    method = heuristic(name)
    run = lambda x: protocol.run(method, protocol.variables(method), x)
    logits, state = run(images())
    alone, other = run(images()[2:3])
    np.testing.assert_allclose(alone[0], logits[2], 1e-4, 1e-5)
    np.testing.assert_array_equal(other["corners"][0], state["corners"][2])
    assert (state["corners"] % 8 == 0).all()
    if name == "centre":  # (127 - 95) / 2
        assert (state["corners"][:, 0] == 16).all()
    if name == "random":
        assert len(np.unique(state["corners"][:, 0], axis=0)) > 1


def test_edges_are_where_the_energy_is():
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    image[:, 100:, 100:] = 255 * (np.indices((27, 27)).sum(0) % 2)[None, ..., None]
    found = localize.localize(localize.Heuristic("edges"), None, image)
    assert found.corners.tolist() == [[[32, 32]]] and found.logits is None


def test_regions_tell_where_the_cells_lie():
    found = create().regions(create().start(2, SIZE), SIZE)
    # 5 locations 8 pixels apart; the first cell's middle is 95 / 2.
    np.testing.assert_array_equal(found.extent, [[43.5, 43.5, 83.5, 83.5]] * 2)
    assert found.heatmap.shape == (2, 5, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gfnett"}, "`method` is 'gfnett'; choose one of"),
        ({"k": 3}, "`k` is no argument of anchornet; choose from"),
        ({"inputs": 1}, "`inputs` is 1; allowed is 2 or more"),
        ({"fuse": "sum"}, "`fuse` is 'sum'; choose one of"),
        ({"localizer": "edge"}, "`localizer` is 'edge'; choose one of"),
        ({"localizer": "edges"}, "`networks` holds localizer; anchornet has the roles"),
    ],
)
def test_refused(arguments, message):
    arguments = dict(arguments)
    with pytest.raises(ValueError, match=message):
        registry.create(arguments.pop("name", "anchornet"), MEMBERS, **arguments)


def test_networks_that_are_missing_or_differ():
    with pytest.raises(ValueError, match="`networks.patch` is empty; give a trained"):
        registry.create("anchornet", MEMBERS | {"patch": None})
    with pytest.raises(ValueError, match="`networks.network`: .*'/nowhere'"):
        registry.load("static", {"network": "/nowhere"})
    other = Network(Tiny(3), MEMBERS["patch"].variables, {"classes": ["x", "y", "z"]})
    with pytest.raises(ValueError, match=r"different classes: .*patch: 3, named \['x'"):
        registry.create("anchornet", MEMBERS | {"patch": other})


def test_images_that_cannot_be():
    with pytest.raises(ValueError, match="`k` is 98"):
        protocol.check_images(create(inputs=99), SIZE)
    member = Network(models.create("anchornet", 3), {}, {"classes": CLASSES})
    variables = jax.eval_shape(
        member.model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3))
    )
    small = registry.create(
        "anchornet", MEMBERS | {"localizer": member._replace(variables=variables)}
    )
    with pytest.raises(ValueError, match="80x80 pixels"):
        protocol.check_images(small, 80)
