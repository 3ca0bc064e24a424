"""The program `table_3_2020`: what Table 3 of 2020 reports, from networks that know nothing."""

import json

import jax
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.data import loading
from anchornet_jax.methods import localize, preprocessing
from anchornet_jax.models import multiply_adds
from anchornet_jax.programs import pipeline, table_3_2020
from anchornet_jax.runtime import networks
from tests import tiny as tiny_networks
from tests.tiny import tiny  # noqa: F401

SIZES = (12, 20, 28)
SIDE = 64


@pytest.fixture
def config(data_dir, tmp_path, monkeypatch, tiny):  # noqa: F811
    """Return a config of the program on 32 images, with random networks in `tmp_path`."""
    monkeypatch.setitem(models.MODELS, "scales", (tiny_networks.TinyScales, {}))
    config = tiny_networks.config(data_dir, program="table_3_2020", batch_size=8)
    config.data.image_size = SIDE
    config.view.update(k=2, iou_threshold=0.5)
    names = {"localizer": ("scales", SIDE), "full_image": ("tiny", SIDE)}
    names |= {f"b{size}": ("tiny", size) for size in SIZES}
    for seed, (name, (model, size)) in enumerate(names.items(), 3):
        module = models.create(model, 10)
        variables = tiny_networks.drawn(module, size, seed)
        path = tmp_path / name
        networks.save(path, {"name": model, "num_classes": 10}, variables)
        config.networks[name] = str(path)
    return config


def by_hand(config):
    """Classify image after image, patch after patch; return rows of plain numbers."""
    source = loading.prepare(**config.data)
    found = {
        name: networks.load(path) for name, path in config.networks.items() if path
    }
    classify = {
        size: jax.jit(lambda x, n=found[f"b{size}"]: n.model.apply(n.variables, x)[0])
        for size in SIZES
    }
    rows = []
    for batch in loading.evaluation(source, "test", batch_size=8):
        images = batch["image"].reshape(-1, SIDE, SIDE, 3)
        place = localize.localize(
            *found["localizer"][:2], images, k=2, iou_threshold=0.5
        )
        for i, image in enumerate(images):
            size = SIZES[int(place.branch[i])]
            total = 0
            for (y, x), valid in zip(np.asarray(place.corners[i]), place.valid[i]):
                if valid:
                    cut = preprocessing.normalise(
                        image[None, y : y + size, x : x + size]
                    )
                    total += np.asarray(jax.nn.softmax(classify[size](cut)))[0]
            label = int(batch["label"].reshape(-1)[i])
            count = int(place.valid[i].sum())
            rows.append(
                (
                    size,
                    count,
                    total.argmax() == label,
                    int((total > total[label]).sum()) < 5,
                )
            )
    return rows


def test_equals_one_patch_at_a_time(config, tmp_path):
    summary = pipeline.run_stage(config, tmp_path / "run")
    rows = by_hand(config)
    assert len(rows) == 32 and summary["overall"]["images"] == 32
    one = {
        size: multiply_adds.model_macs(models.create("tiny", 10), size)
        for size in SIZES
    }
    localizer = multiply_adds.model_macs(models.create("scales", 10), SIDE)
    seen = 0
    for size, found in summary["branches"].items():
        own = [row for row in rows if row[0] == int(size)]
        seen += len(own) > 0
        assert (found["images"], found["share"]) == (len(own), len(own) / 32)
        if own:
            counts, right, top5 = (np.mean([row[n] for row in own]) for n in (1, 2, 3))
            assert found["patches"] == pytest.approx(counts)
            assert found["accuracy"] == pytest.approx(right)
            assert found["top5"] == pytest.approx(top5)
            assert found["macs"] == pytest.approx(counts * one[int(size)])
            spent = found["macs_with_localizer"] - found["macs"]
            assert spent == pytest.approx(localizer)
        else:
            assert found["accuracy"] is None and found["macs_with_localizer"] is None
    assert seen >= 2
    overall = summary["overall"]
    assert overall["accuracy"] == pytest.approx(np.mean([row[2] for row in rows]))
    assert overall["macs"] == pytest.approx(
        np.mean([row[1] * one[row[0]] for row in rows])
    )
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["branches"] == summary["branches"]


def test_group_runs_full_batches_and_forgets_nobody(tiny):  # noqa: F811
    module = models.create("tiny", 3)
    variables = tiny_networks.drawn(module, 12)
    group = table_3_2020.Group(
        networks.Network(module, variables, {}), 12, batch_size=8
    )
    pixels = np.random.default_rng(0).integers(0, 256, (11, 12, 12, 3), np.uint8)
    for owner, image in zip([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1], pixels):
        group.add(owner, image)
    group.flush()
    logits, _ = module.apply(variables, preprocessing.normalise(pixels))
    wanted = np.asarray(jax.nn.softmax(logits))
    for owner in range(3):
        np.testing.assert_allclose(
            group.sums[owner], wanted[owner::3].sum(0), rtol=1e-5
        )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("networks.b20", "", "`config.networks.b20` is empty; give the network for"),
        ("networks.localizer", "", "`config.networks.localizer` is empty"),
        ("networks.full_image", "", "`config.networks.full_image` is empty"),
        ("view.preset", "few", "`preset` is 'few'; choose one of"),
        ("view.preset", "many", "`branches` holds 12"),
        ("batch_size", 6, "`batch_size` is 6"),
    ],
)
def test_bad_config_writes_nothing(config, tmp_path, key, value, message):
    part, *path = config, *key.split(".")
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        table_3_2020.table_3_2020(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_others_choose_among_patches_of_the_same_size(config, tmp_path, monkeypatch):
    """By the same rule, for the same networks; the centre's patch is the centre's."""
    config.view.k = 1
    summary = pipeline.run_stage(config, tmp_path / "run")
    row = summary["overall"]
    assert set(row["rivals"]) == set(localize.HEURISTICS)
    centre = row["rivals"]["centre"]
    assert centre["macs_with_localizer"] == centre["macs"] == row["macs"]
    localizer, source = (
        networks.load(config.networks.localizer),
        loading.prepare(**config.data),
    )
    right = 0
    for batch in loading.evaluation(source, "test", batch_size=8):
        images = batch["image"].reshape(-1, SIDE, SIDE, 3)
        chosen = localize.localize(*localizer[:2], images, k=1, iou_threshold=0.5)
        for image, branch, label in zip(images, chosen.branch, batch["label"].ravel()):
            size = SIZES[int(branch)]
            heuristic = localize.of_size(localize.Heuristic("centre"), size)
            place = localize.localize(heuristic, None, image[None], k=1)
            ((y, x),) = np.asarray(place.corners[0])
            own = networks.load(config.networks[f"b{size}"])
            cut = preprocessing.normalise(image[None, y : y + size, x : x + size])
            right += int(own.model.apply(own.variables, cut)[0].argmax()) == label
    assert centre["accuracy"] == pytest.approx(right / 32)
