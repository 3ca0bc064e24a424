"""Checkpoints survive crashes, damage and full disks; exports stand alone."""

import functools
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training import train_state

from anchornet_jax.runtime import checkpoint

# Children start in milliseconds: they are forked off a server that has imported this.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])

# Orbax leaves coroutines behind when it fails over damaged files.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

PATIENCE_S = 300  # with a process that a busy machine keeps waiting
SIDE = 300  # random numbers do not compress, so the array file has 360 kB


def make_state(step):
    """A state that tells of which step it is in every element."""
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    return {"params": {"kernel": noise + step}, "step": np.asarray(step)}


def assert_state(found, step):
    assert found is not None
    assert found[0] == step
    jax.tree.map(np.testing.assert_array_equal, found[1], make_state(step))


def save_steps(directory, metrics):
    with checkpoint.Checkpoints(directory) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, make_state(step), metric=metric)


def restore(directory):
    with checkpoint.Checkpoints(directory) as checkpoints:
        return checkpoints.restore(make_state(0))


def restore_best(directory):
    with checkpoint.Checkpoints(directory) as checkpoints:
        return checkpoints.restore_best(make_state(0))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def start(function, *args):
    process = SERVER.Process(target=function, args=args)
    process.start()
    return process


def run(function, *args):
    process = start(function, *args)
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def largest_file(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


# --- a training run's states


def test_train_state_returns_whole(tmp_path):
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 4, 8))},
        "scale": jnp.ones(8, "bfloat16"),
    }
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    create = functools.partial(train_state.TrainState.create, apply_fn=len, tx=tx)
    state = create(params=params).apply_gradients(grads=params)
    saved = {"state": state, "key": jax.random.PRNGKey(3), "best": 0.5, "none": None}
    template = saved | {"state": create(params=jax.tree.map(jnp.zeros_like, params))}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(template) is None
        assert checkpoints.restore_best(template) is None
        checkpoints.save(7, saved)
        step, found = checkpoints.restore(template)
    assert step == 7
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    assert found["state"].params["scale"].dtype == jnp.bfloat16
    assert found["state"].tx is tx
    jax.tree.map(np.testing.assert_array_equal, found, saved)


def test_newest_and_best_stay(tmp_path):
    save_steps(tmp_path, {1: 0.1, 2: 0.5, 3: 0.3, 4: None, 5: float("nan")})
    assert names(tmp_path) == ["2", "4", "5"]
    assert_state(restore(tmp_path), 5)
    assert_state(restore_best(tmp_path), 2)
    save_steps(tmp_path, {6: 0.5, 7: float("inf")})  # of equals the newest is the best
    assert names(tmp_path) == ["6", "7"]
    assert_state(restore_best(tmp_path), 6)
    save_steps(tmp_path, {8: 0.1, 9: 0.2, 10: 0.4})  # the best of an earlier process
    assert names(tmp_path) == ["10", "6", "9"]


def test_no_metric_no_best(tmp_path):
    save_steps(tmp_path, {1: None, 2: float("nan")})
    assert restore_best(tmp_path) is None
    assert_state(restore(tmp_path), 2)


def test_keep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ValueError, match="`keep` is 0"):
        checkpoint.Checkpoints(tmp_path, keep=0)
    relative = tmp_path.name
    with checkpoint.Checkpoints(relative, keep=1) as checkpoints:
        for step in range(3):
            checkpoints.save(step, make_state(step))
    assert names(tmp_path) == ["2"]


def test_steps_grow(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, make_state(5))
        checkpoints.save(5, make_state(6))
        with pytest.raises(ValueError, match="`step` is 4; it must be above 5"):
            checkpoints.save(4, make_state(4))
    assert_state(restore(tmp_path), 5)


def test_state_may_change_once_save_returns(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    on_device, in_numpy = jnp.zeros((1000, 1000)), np.zeros((1000, 1000))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, (on_device, in_numpy))
        for _ in range(3):
            on_device = step(on_device)
            in_numpy += 1
        _, found = checkpoints.restore((on_device, in_numpy))
    assert not np.any(found[0])
    assert not np.any(found[1])


def test_another_architecture_is_refused_and_kept(tmp_path):
    save_steps(tmp_path, {1: None})
    other = {"params": {"kernel": jax.ShapeDtypeStruct((2, 2), float), "bias": 1}}
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=f"{tmp_path}/1: `variables` do not") as caught,
    ):
        checkpoints.restore(other)
    assert str(caught.value).splitlines()[1:] == [
        "- params/bias []",
        "- params/kernel [2, 2]",
        "+ params/kernel [300, 300]",
        "+ step []",
    ]
    assert_state(restore(tmp_path), 1)


# --- damage


def flip_bit(step):
    path = largest_file(step / "state")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate_array(step):
    path = largest_file(step / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_array(step):
    largest_file(step / "state").unlink()


def remove_tree(step):
    (step / "state" / "_METADATA").unlink()


def garble_manifest(step):
    (step / "state" / "manifest.ocdbt").write_bytes(b"no manifest")


def garble_metrics(step):
    (step / "metrics" / "metrics").write_text('{"metric": 0.')


def remove_state(step):
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


DAMAGES = (
    flip_bit,
    truncate_array,
    remove_array,
    remove_tree,
    garble_manifest,
    garble_metrics,
    remove_state,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back(tmp_path, caplog, damage):
    save_steps(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3})
    damage(tmp_path / "3")
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert_state(checkpoints.restore(make_state(0)), 2)
        assert_state(checkpoints.restore_best(make_state(0)), 2)
        assert f"{tmp_path}/3 cannot be used" in caplog.text
        assert names(tmp_path) == ["2", "3.unreadable"]
        checkpoints.save(3, make_state(3))
    assert_state(restore(tmp_path), 3)


def test_everything_damaged(tmp_path, caplog):
    save_steps(tmp_path, {1: None, 2: None})
    for _ in range(2):  # the second time, <step>.unreadable is there already
        flip_bit(tmp_path / "2")
        truncate_array(tmp_path / "1")
        assert restore(tmp_path) is None
        assert names(tmp_path) == ["1.unreadable", "2.unreadable"]
        save_steps(tmp_path, {1: None, 2: None})


def test_what_is_no_checkpoint_is_set_aside(tmp_path, caplog):
    save_steps(tmp_path, {1: None, 2: None})
    (tmp_path / "7").write_text("a file")
    (tmp_path / "8").mkdir()
    (tmp_path / "9" / "photos").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    assert_state(restore(tmp_path), 2)
    assert caplog.text.count("cannot be used") == 3
    save_steps(tmp_path, {7: None, 8: None})
    assert_state(restore(tmp_path), 8)
    assert (tmp_path / "9.unreadable" / "photos").exists()
    assert (tmp_path / "notes").exists()


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / "5.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    save_steps(tmp_path, {6: None})
    assert names(tmp_path) == ["6"]


def save_forever(directory, pipe):
    """Save steps from the newest on, and tell each that is complete."""
    found = restore(directory)
    step = found[0] if found else 0
    with checkpoint.Checkpoints(directory) as checkpoints:
        while True:
            checkpoints.save(step := step + 1, make_state(step))
            checkpoints.wait()
            pipe.send(step)


def test_kill_at_any_moment(tmp_path, caplog):
    complete = 0
    for delay_ms in (0, 7, 15, 25, 40, 60, 85):
        ours, theirs = SERVER.Pipe()
        process = start(save_forever, tmp_path, theirs)
        assert ours.poll(PATIENCE_S)
        time.sleep(delay_ms / 1000)
        os.kill(process.pid, signal.SIGKILL)
        process.join(PATIENCE_S)
        while ours.poll():
            complete = ours.recv()
        found = restore(tmp_path)
        assert_state(found, found[0])
        assert complete <= found[0] <= complete + 1  # renamed, but not told yet
    assert "cannot be used" not in caplog.text  # a killed deletion leaves nothing odd


def save_on_full_disk(directory):
    """Fail to save step 3 and an export; a file of 100 kB is too much here."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    with pytest.raises(OSError, match=f"{directory} could not be written: .*large"):
        save_steps(directory, {3: None})
    with pytest.raises(OSError, match="export could not be written: .*large"):
        checkpoint.save_variables(directory / "export", make_state(3), {"step": 3})
    assert len(names(directory / "export")) == 2  # nothing of the new export is left
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert_state(restore(directory), 2)
    save_steps(directory, {4: None})


def test_full_disk(tmp_path):
    save_steps(tmp_path, {1: None, 2: None})
    checkpoint.save_variables(tmp_path / "export", make_state(2), {"step": 2})
    run(save_on_full_disk, tmp_path)
    assert_state(restore(tmp_path), 4)
    assert checkpoint.load_variables(tmp_path / "export")[1] == {"step": 2}
    assert names(tmp_path) == ["2", "4", "export"]


# --- other machines


def save_from_devices(directory, count):
    jax.config.update("jax_num_cpu_devices", count)
    mesh = jax.make_mesh((count,), ("batch",))
    replicated = jax.NamedSharding(mesh, jax.P())
    state = jax.device_put(make_state(1), replicated)
    assert len(state["step"].devices()) == count
    with checkpoint.Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state)
    checkpoint.save_variables(directory / "export", state, {})


def restore_on_devices(directory, count):
    jax.config.update("jax_num_cpu_devices", count)
    assert jax.device_count() == count
    assert_state(restore(directory), 1)
    variables, _ = checkpoint.load_variables(directory / "export")
    assert_state((1, variables), 1)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4)])
def test_another_number_of_devices(tmp_path, before, after):
    run(save_from_devices, tmp_path, before)
    run(restore_on_devices, tmp_path, after)


def train_on_two_hosts(directory, address, index):
    """Save and restore on both; only process 0 has something to read."""
    jax.distributed.initialize(address, num_processes=2, process_id=index)
    own = directory / str(index)  # as if the hosts shared no file system
    for _ in range(2):  # two stages in one process
        with checkpoint.Checkpoints(own) as checkpoints:
            found = checkpoints.restore(make_state(0))
            first = found[0] + 1 if found else 0
            for step in range(first, first + 3):
                checkpoints.save(step, make_state(step), metric=-step)
            assert_state(checkpoints.restore(make_state(0)), first + 2)
            assert_state(checkpoints.restore_best(make_state(0)), 0)
    checkpoint.save_variables(own / "export", make_state(1), {})
    assert own.exists() == (index == 0)
    if index == 0:
        flip_bit(own / "5")
    with checkpoint.Checkpoints(own) as checkpoints:
        assert_state(checkpoints.restore(make_state(0)), 4)
        with pytest.raises(ValueError, match="do not match"):
            checkpoints.restore({"other": 1})
    variables, _ = checkpoint.load_variables(directory / "0" / "export")
    assert_state((1, variables), 1)


def test_two_hosts(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [start(train_on_two_hosts, tmp_path, address, index) for index in (0, 1)]
    for host in hosts:
        host.join(PATIENCE_S)
    assert [host.exitcode for host in hosts] == [0, 0]


# --- exports

VARIABLES = {
    "params": {"conv": {"kernel": np.ones((3, 3, 1, 2), np.float32)}},
    "batch_stats": {"bn": {"mean": np.zeros(2, np.float32)}},
}
METADATA = {"model": "resnet50", "classes": ["cat", "dög"], "mean": [0.5, 0.25]}


def test_export_returns_whole(tmp_path):
    directory = tmp_path / "runs" / "export"
    checkpoint.save_variables(directory, jax.tree.map(jnp.asarray, VARIABLES), METADATA)
    variables, metadata = checkpoint.load_variables(directory)
    assert metadata == METADATA
    assert jax.tree.structure(variables) == jax.tree.structure(VARIABLES)
    jax.tree.map(np.testing.assert_array_equal, variables, VARIABLES)
    assert {type(leaf) for leaf in jax.tree.leaves(variables)} == {np.ndarray}
    about = json.loads((directory / "metadata.json").read_text())
    assert about["format"] == checkpoint.FORMAT
    assert about["versions"]["jax"] == jax.__version__


def test_export_replaces(tmp_path):
    checkpoint.save_variables(tmp_path, VARIABLES, {"number": 1})
    (tmp_path / "other.txt").write_text("stays")
    checkpoint.save_variables(tmp_path, {"params": {"bias": np.ones(1)}}, {"number": 2})
    variables, metadata = checkpoint.load_variables(tmp_path)
    assert metadata == {"number": 2}
    assert list(variables) == ["params"]
    assert len(names(tmp_path)) == 3


def test_export_with_metadata_that_is_no_json_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="`metadata` cannot be written as JSON"):
        checkpoint.save_variables(tmp_path / "export", VARIABLES, {"model": object()})
    assert names(tmp_path) == []


def export_forever(directory, pipe):
    number = 0
    while True:
        number += 1
        checkpoint.save_variables(directory, make_state(number), {"number": number})
        pipe.send(number)


def test_kill_while_exporting(tmp_path):
    for delay_ms in (0, 15, 30, 50, 75):
        ours, theirs = SERVER.Pipe()
        process = start(export_forever, tmp_path, theirs)
        assert ours.poll(PATIENCE_S)
        time.sleep(delay_ms / 1000)
        os.kill(process.pid, signal.SIGKILL)
        process.join(PATIENCE_S)
        variables, metadata = checkpoint.load_variables(tmp_path)
        assert_state((metadata["number"], variables), metadata["number"])
    checkpoint.save_variables(tmp_path, VARIABLES, METADATA)
    assert len(names(tmp_path)) == 2  # what the killed ones left behind is gone


def test_damaged_export_is_refused(tmp_path):
    checkpoint.save_variables(tmp_path, make_state(1), METADATA)
    (arrays,) = tmp_path.glob("variables_*")
    arrays.rename(tmp_path / "state")
    flip_bit(tmp_path)
    (tmp_path / "state").rename(arrays)
    with pytest.raises(ValueError, match=f"{tmp_path} is damaged"):
        checkpoint.load_variables(tmp_path)


def test_newer_export_is_refused(tmp_path):
    (tmp_path / "metadata.json").write_text('{"format": 3, "weights": "elsewhere"}')
    with pytest.raises(ValueError, match=r"has format 3, .* newer .* update"):
        checkpoint.load_variables(tmp_path)


def test_export_is_an_orbax_checkpoint(tmp_path):
    checkpoint.save_variables(tmp_path, VARIABLES, METADATA)
    (arrays,) = tmp_path.glob("variables_*")
    found = ocp.StandardCheckpointer().restore(arrays)  # without our code
    jax.tree.map(np.testing.assert_array_equal, found, VARIABLES)


@pytest.mark.parametrize("text", [None, "", "[1]", '{"model": "resnet50"}'])
def test_what_is_no_export_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "metadata.json").write_text(text)
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"`directory` is '{directory}', not one"):
            checkpoint.load_variables(directory)


# --- match


def test_match_returns_what_fits():
    template = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, VARIABLES))
    assert checkpoint.match(VARIABLES, template) is VARIABLES


def test_match_lists_both_sides():
    found = {"params": {"conv": np.ones((3, 3)), "head": np.ones((5, 10)), "new": 1.0}}
    template = {
        "params": {"conv": np.ones((3, 3)), "head": np.ones((5, 7)), "old": 1.0}
    }
    with pytest.raises(ValueError) as caught:
        checkpoint.match(found, template)
    assert str(caught.value).splitlines() == [
        "`variables` do not match `template`, 2 missing (-), 2 unexpected (+):",
        "+ params/head [5, 10]",
        "- params/head [5, 7]",
        "+ params/new []",
        "- params/old []",
    ]
