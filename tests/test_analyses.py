"""The analyses of 2020: areas and masks by hand, and the program with its figures."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.data import loading
from anchornet_jax.figures import figures_2020
from anchornet_jax.methods import localize, patches, preprocessing
from anchornet_jax.models import multiply_adds
from anchornet_jax.programs import analyses_2020, pipeline
from anchornet_jax.runtime import networks
from tests import test_saccader
from tests import tiny as tiny_networks
from tests.tiny import tiny  # noqa: F401

OWN = analyses_2020.OWN
SIZES = (12, 20, 28)
SIDE = 64


def test_cover():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (4, 3, 2)).astype(np.int32)
    valid, size = rng.random((4, 3)) < 0.7, np.array([3, 5, 8, 5])
    found = analyses_2020.cover(
        jnp.asarray(corners), jnp.asarray(valid), jnp.asarray(size), 24, 30
    )
    for b in range(4):
        wanted = np.zeros((24, 30), bool)
        for k, (y, x) in enumerate(corners[b]):
            if valid[b, k]:
                wanted[y : y + size[b], x : x + size[b]] = True
            np.testing.assert_array_equal(found[b, k], wanted)


def test_edges_of_a_step_and_of_nothing():
    images = np.full((2, 8, 9, 3), 100, np.uint8)
    images[0, :, 5:] = 180
    found = np.asarray(localize.edges(images))
    wanted = np.zeros((2, 8, 9))
    wanted[0, :, 4:6] = 4 * 80  # Sobel: 1 + 2 + 1 times the step, on both sides of it
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.fixture
def config(data_dir, tmp_path, monkeypatch, tiny):  # noqa: F811
    """Return a config of the program on 32 images, with random networks."""
    monkeypatch.setitem(models.MODELS, "scales", (tiny_networks.TinyScales, {}))
    known = {size: patches.Selection(2, 0.5, 0.5) for size in SIZES}
    monkeypatch.setitem(patches.PRESETS, analyses_2020.SEPARATE, known)
    config = tiny_networks.config(data_dir, program="analyses_2020", batch_size=8)
    config.data.image_size, config.view.k = SIDE, 2
    for seed, name in enumerate(("localizer", "full_image"), 3):
        model = {"localizer": "scales", "full_image": "tiny"}[name]
        module = models.create(model, 10)
        variables = tiny_networks.drawn(module, SIDE, seed)
        networks.save(tmp_path / name, {"name": model, "num_classes": 10}, variables)
        config.networks[name] = str(tmp_path / name)
    return config


def test_program(config, tmp_path):
    summary = pipeline.run_stage(config, tmp_path / "run")
    source = loading.prepare(**config.data)
    batches = list(loading.evaluation(source, "test", batch_size=8))
    images = np.concatenate([b["image"].reshape(-1, SIDE, SIDE, 3) for b in batches])
    label = np.concatenate([b["label"].reshape(-1) for b in batches])
    localizer, full = (
        networks.load(config.networks[name]) for name in ("localizer", "full_image")
    )
    classify = lambda pixels: np.asarray(
        full.model.apply(full.variables, preprocessing.normalise(pixels))[0].argmax(-1)
    )
    one = localize.localize(*localizer[:2], images, k=1)
    for j, size in enumerate(SIZES):
        chosen = np.asarray(one.branch) == j
        row = summary["table_4"][str(size)]
        assert row["images"] == chosen.sum()
        assert row["localized"].keys() == set(summary["figure_6"])
        if chosen.any():
            cut = np.asarray(patches.crop(images, one.corners, size))[chosen, 0]
            wanted = (classify(cut) == label[chosen]).mean()
            assert row["localized"][OWN] == pytest.approx(wanted)
    two = localize.localize(*localizer[:2], images, k=2, iou_threshold=0.3)
    mask = np.zeros((len(images), SIDE, SIDE), bool)
    for k in range(2):
        for i, (y, x) in enumerate(np.asarray(two.corners)[:, k]):
            size = SIZES[int(two.branch[i])] * bool(two.valid[i, k])
            mask[i, y : y + size, x : x + size] = True
        row = summary["figure_6"][OWN][k]
        assert row["area"] == pytest.approx(mask.mean())
        covered, masked = images * mask[..., None], images * ~mask[..., None]
        assert row["covered"] == pytest.approx((classify(covered) == label).mean())
        assert row["masked"] == pytest.approx((classify(masked) == label).mean())
    for rows in summary["figure_6"].values():  # more patches cover more
        assert rows[0]["area"] < rows[1]["area"]
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["figure_6"] == summary["figure_6"]
    for figure in ("3_patches", "4_confused", "5_attention", "6_area"):
        for suffix in ("png", "svg"):
            assert (
                tmp_path / "run" / f"figure_{figure}.{suffix}"
            ).stat().st_size > 1000


def test_the_centre_is_the_centre():
    """Of each branch: the others choose among patches of the same sizes."""
    images = np.zeros((2, 118, 118, 3), np.uint8)  # grids of 15, 9 and 3: odd
    model = localize.of_sizes(localize.Heuristic("centre"), (6, 54, 102))
    _, _, maps = localize.look(model, None, images)
    for field, heatmap in zip(model.fields, maps, strict=True):
        corners, _ = patches.select(heatmap, field, k=1)
        grid = field.grid(118, 118)[0]
        assert heatmap.shape == (2, grid, grid) and grid % 2
        np.testing.assert_array_equal(corners[:, 0], grid // 2 * field.stride)


@pytest.mark.slow
def test_rivals(config, tmp_path, monkeypatch):
    """A network of one branch stands beside the others, and what it costs is said."""
    monkeypatch.setitem(models.MODELS, "small", test_saccader.TINY)
    module, path = models.create("small", 10), tmp_path / "small"
    description = {"name": "small", "num_classes": 10}
    networks.save(path, description, tiny_networks.drawn(module, SIDE))
    config.networks.saccader, config.analysed_images = str(path), 8
    summary = pipeline.run_stage(config, tmp_path / "run")
    names = {OWN, "saccader", *localize.HEURISTICS}
    assert names <= set(figures_2020.LOCALIZERS)
    assert set(summary["figure_6"]) == set(summary["localizer_macs"]) == names
    macs = summary["localizer_macs"]
    assert macs["saccader"] == multiply_adds.model_macs(module, SIDE)
    assert macs["edges"] == 0 < macs[OWN]
    config.networks.bagnet = config.networks.localizer
    with pytest.raises(ValueError, match="`config.networks.bagnet` is .* not localise"):
        pipeline.run_stage(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("localizer", "", "`config.networks.localizer` is empty"),
        ("full_image", "", "`config.networks.full_image` is empty"),
        ("localizer", "one branch", "has one branch; the analyses are of"),
    ],
)
def test_bad_config_writes_nothing(config, tmp_path, key, value, message):
    if value:
        value = str(tmp_path / "one")
        module = models.create("anchornet", 10)
        variables = tiny_networks.drawn(module, 95)
        networks.save(value, {"name": "anchornet", "num_classes": 10}, variables)
    config.networks[key] = value
    with pytest.raises(ValueError, match=message):
        analyses_2020.analyses_2020(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
