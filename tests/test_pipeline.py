"""Whole programs on the small embedded data set, with networks of two layers."""

import inspect
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.programs import evaluate, pipeline
from anchornet_jax.runtime import checkpoint, networks
from anchornet_jax.training import train
from configs import anchornet, common
from tests import tiny as tiny_network
from tests.tiny import tiny  # noqa: F401


def small_demo(data_dir):
    """Return the demo's config with `tiny` in place of the backbone, a few steps."""
    config = anchornet.get_config()
    for stage in config.stages.values():
        stage.data.update(name="plates/small", data_dir=data_dir)
        stage.data.update(image_size=160, resize=160)  # px; fewer than 224 are faster
        stage.batch_size, stage.epochs, stage.save_every_epochs = 16, 0.5, 0.25
        if stage.model == "resnet10":
            stage.model = "tiny"
        stage.budgets = 4
        methods = [stage.method, *stage.references.values()]
        for method in methods:
            if method.name == "anchornet":
                method.inputs = 3
        stage.timing.images, stage.timing.batch_size = 20, 8
        stage.view.k = 2
    return config


def test_resumed_equals_uninterrupted(data_dir, tmp_path, tiny, monkeypatch):  # noqa: F811
    """Stopped in the loop at two places and started again: the same parameters."""
    config = tiny_network.config(data_dir, settle_batches=2)
    whole = train.train(config, tmp_path / "whole")
    save = checkpoint.Checkpoints.save

    def save_and_die(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        if step in (2, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_and_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / "stopped")
    resumed = train.train(config, tmp_path / "stopped")
    one, other = (networks.load(r["network"]).variables for r in (whole, resumed))
    jax.tree.map(np.testing.assert_array_equal, one, other)


CHILD = """
import sys
from anchornet_jax import models
from anchornet_jax.training import train
from tests import tiny
models.MODELS["tiny"] = (tiny.Tiny, {})
data_dir, *directories = sys.argv[1:]
for directory in directories:
    train.train(tiny.config(data_dir, epochs=4.0), directory)
"""


@pytest.mark.slow
def test_killed_equals_uninterrupted(data_dir, tmp_path, tiny):  # noqa: F811
    """SIGKILL to a real process that has saved a state, then the same command again."""

    def start(*names):
        directories = [str(tmp_path / name) for name in names]
        command = [sys.executable, "-c", CHILD, data_dir, *directories]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    steps = tmp_path / "killed" / "checkpoints"
    child = start("killed")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if steps.exists() and os.listdir(steps):
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()
    child = start("killed", "whole")
    assert child.wait(120) == 0, child.stderr.read()
    one, other = (
        networks.load(tmp_path / name / train.NETWORK).variables
        for name in ("whole", "killed")
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_loss_that_is_no_number(data_dir, tmp_path, tiny):  # noqa: F811
    config = tiny_network.config(data_dir)
    config.optimizer.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match="at step [23]; no state"):
        train.train(config, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 6, "`batch_size` is 6; it must be a positive multiple of the 4"),
        ("accumulate", 3, "`config.accumulate` is 3; it must divide the 4 images"),
        ("dtype", "bf16", "`dtype` is 'bf16'; choose one of"),
        ("model", "resnet5", "`name` is 'resnet5'; choose one of"),
        ("train_split", "training", "`split` is 'training'; plates has"),
        ("data.name", "plate", "`name` is 'plate', which TFDS does not know"),
        ("data.image_size", 90, "90x90 pixels.*95x95"),
        ("view.name", "crop", "`view` is 'crop'; choose one of"),
        ("view.name", "patches", "`config.localizer` is empty"),
        ("init_from", "/nowhere", "'/nowhere'"),
        ("optimizer.schedule", "flat", "`schedule` is 'flat'"),
    ],
)
def test_bad_config_writes_nothing(data_dir, tmp_path, tiny, key, value, message):  # noqa: F811
    config = tiny_network.config(data_dir)
    if key == "data.image_size":
        config.model = "anchornet"
    part, *path = config, *key.split(".")
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["", "val"])
def test_splits_of_a_folder_are_found(given, tmp_path):
    """In all stages, and a key that is given stays; other data must name its own."""
    for split in ("train", "val", "test"):
        (tmp_path / "mine" / split / "ant").mkdir(parents=True)
        (tmp_path / "mine" / split / "ant" / "0.jpg").write_bytes(b"not read here")
    config = anchornet.get_config("folder,resnet10")
    config.data.name = f"folder:{tmp_path / 'mine'}"
    config.test_split = given
    found = pipeline._with_splits(config)
    for one in (found, *found.stages.values()):
        assert (one.train_split, one.calibration_split) == ("train", "val")
        assert one.test_split == (given or "test")
    config.data.name = "plates"
    with pytest.raises(ValueError, match="`config.train_split` is ''; allowed are"):
        pipeline.run(config, tmp_path / "run")


def test_patches_that_cannot_be_reached(data_dir, tmp_path, tiny, monkeypatch):  # noqa: F811
    small = (tiny_network.TinyAnchorNet, {})
    monkeypatch.setitem(models.MODELS, "anchornet", small)
    anchornet = tiny_network.config(data_dir, model="anchornet", epochs=0.25)
    trained = train.train(anchornet, tmp_path / "anchornet")
    config = tiny_network.config(data_dir, localizer=trained["network"])
    config.view.update(name="patches", k=26)
    with pytest.raises(ValueError, match="`k` is 26; .* at most 25"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def main(*arguments):
    """Run main.py as a user would; return exit status and what it printed."""
    done = subprocess.run(
        [sys.executable, "main.py", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_evaluation_without_a_network_writes_nothing(data_dir, tmp_path):
    config = tiny_network.config(data_dir)
    with pytest.raises(
        ValueError, match="`config.method`: `method` is ''; choose one of"
    ):
        evaluate.evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "flag --config=None: Flag --config must have a value"),
        ("--config=configs/nope.py", "No such file or directory: 'configs/nope.py'"),
        ("--config=configs/nope.py --config.epochs=3", "directory: 'configs/nope.py'"),
        ("--config=configs/anchornet.py --config.epoch=3", 'Did you mean "epochs"'),
        ("--config=configs/anchornet.py --config.epochs=x", "float: 'x'"),
        ("--config=configs/anchornet.py --confg.epochs=3", "flag 'confg.epochs'"),
        ("--config=configs/anchornet.py:resnet50", "'resnet50'; give DATA,NETWORK"),
    ],
)
def test_main_refuses_what_it_does_not_know(tmp_path, arguments, message):
    status, printed = main(*arguments.split(), f"--workdir={tmp_path / 'run'}")
    assert status and message in printed
    assert "Traceback" not in printed and len(printed.splitlines()) < 4
    assert not (tmp_path / "run").exists()


def test_main_names_a_bad_argument(tmp_path):
    status, printed = main(
        "--config=configs/anchornet.py",
        "--config.data.name=imagenet2013",
        f"--workdir={tmp_path / 'run'}",
    )
    assert status and "`name` is 'imagenet2013'" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "key", ["stages.full_image.init_from", "stages.evaluate.method.networks.glance"]
)
def test_what_is_not_there_is_told_before_anything_runs(key, tmp_path):
    config = anchornet.get_config()
    config.update_from_flattened_dict({key: "runs/nowhere/network"})
    with pytest.raises(ValueError, match=f"`config.{key}` is 'runs/nowhere/network'"):
        pipeline.pipeline(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_key_has_a_comment():
    """configs/common.py is the manual: a key without a word beside it is not one."""
    for line in inspect.getsource(common.get_config).splitlines():
        if line.strip().startswith("config.") and " = " in line:
            assert "#" in line or "ConfigDict()" in line, line
