"""The rivals of 2020 from training to export, as their configs have it, with few steps."""

import numpy as np
import pytest

from anchornet_jax.inference import engine
from anchornet_jax.inference.results import Evaluation
from anchornet_jax.programs import pipeline
from configs import bagnet, saccader

SIZE = 127  # px


def short(config, data_dir):
    """Return a config with pictures of 127 pixels and a few steps of each training."""
    for stage in config.stages.values():
        stage.data.update(name="plates/small", data_dir=data_dir)
        stage.data.update(image_size=SIZE, resize=SIZE)
        stage.batch_size, stage.epochs, stage.save_every_epochs = 16, 0.2, 0.2
        stage.budgets, stage.timing.images = 3, 0
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (saccader.get_config("plates"), ["represent", *5 * ["glimpse"]]),
        (bagnet.get_config("plates,resnet10"), ["glance", "look", *3 * ["patch"]]),
    ],
    ids=["saccader", "bagnet"],
)
def test_pipeline(config, steps, data_dir, tmp_path):
    """It ends in a report, and in an export that answers as the evaluation counted."""
    config = short(config, data_dir)
    found = Evaluation.from_json(pipeline.pipeline(config, tmp_path))
    assert (tmp_path / "report.html").exists()
    classifier = engine.load(tmp_path / "export", inputs=2, batch_size=4)
    assert [step.name for step in classifier.method.steps] == steps
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
    result = classifier.classify(images)
    assert np.isfinite(result.confidence).all()
    assert set(result.exit) == {1} and len(found.anytime) == len(steps)
