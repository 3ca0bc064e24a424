"""The pipelines on large images, whole, with few images and small networks."""

import itertools

import numpy as np
import pytest
from PIL import Image

from anchornet_jax.inference import export, results
from anchornet_jax.programs import pipeline
from configs import compare, large, predict
from tests.tiny import tiny  # noqa: F401

SIDE, VIEW = 256, 160  # px


def shrunk(data, **own):
    """Return a pipeline of `configs/large.py` on a handful of images."""
    config = large.get_config(data)
    config.data.update(own)
    for stage in config.stages.values():
        stage.batch_size, stage.epochs = 8, 1.0
        stage.model = "tiny" if stage.model.startswith("resnet") else stage.model
        stage.budgets, stage.view.k = 3, 2
        stage.timing.images, stage.timing.batch_size = 8, 4
        if stage.data.image_size not in (0, SIDE):
            stage.data.update(image_size=VIEW, resize=VIEW)
        for method in (stage.method, *stage.references.values()):
            if method.name == "large":
                method.update(inputs=3, view=VIEW, views=2, zooms=1)
    return config


@pytest.mark.slow
def test_pipelines(tmp_path, tiny):  # noqa: F811
    """Train on megapixel digits, evaluate, export, predict, compare; then mixed sizes."""
    own = {"name": "megapixel_mnist/small", "data_dir": str(tmp_path / "tfds")}
    config = shrunk("megapixel_small", image_size=SIDE, **own)
    summary = pipeline.run(config, tmp_path / "digits")
    assert list(summary["seconds"]) == list(config.order)
    found = results.read(tmp_path / "digits")
    assert found.exits == ["glance", "look 1", "look 2", "patch 3", "patch 4"]
    assert set(found.references) == {"full image", "random patches"}
    assert found.images == 8
    full = found.references["full image"]
    assert full.anytime[0].time_ms > 0 and full.peak_bytes > 8 * SIDE**2 * 3
    assert found.peak_bytes > 0 and found.anytime[-1].time_ms > 0
    made = export.load(tmp_path / "digits" / "export")
    assert made.image_size == SIDE and made.macs == [p.cost for p in found.anytime]

    rng = np.random.default_rng(0)
    for split, digit in itertools.product(("train", "val", "test"), range(10)):
        path = tmp_path / "mixed" / split / str(digit) / "0.png"
        path.parent.mkdir(parents=True)
        sides = rng.integers(VIEW, 2 * SIDE, 2)
        pixels = rng.integers(0, 256, (*sides, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    config = predict.get_config()
    config.export = str(tmp_path / "digits" / "export")
    config.images = str(tmp_path / "mixed" / "test")
    config.pictures = False
    said = pipeline.run(config, tmp_path / "predicted")
    assert (said["images"], said["unreadable"]) == (10, 0)

    config = compare.get_config()
    config.runs = str(tmp_path / "digits")
    pipeline.run(config, tmp_path / "compared")
    figures = {path.stem for path in (tmp_path / "compared").glob("*.png")}
    assert figures == {"compare_cost", "compare_time", "compare_memory"}
    page = (tmp_path / "compared" / "compare.html").read_text()
    assert "attention sampling" in page

    config = shrunk("mixed", name=f"folder:{tmp_path / 'mixed'}")
    config.calibration_split, config.test_split = "val", "test"
    for stage in ("localizer", "glance", "patch"):
        network = tmp_path / "digits" / stage / "network"
        config.stages[stage].init_from = str(network)
    pipeline.run(config, tmp_path / "large_mixed")
    assert export.load(tmp_path / "large_mixed" / "export").image_size == 0
    assert results.read(tmp_path / "large_mixed").images == 10
