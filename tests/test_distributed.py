"""Two processes of two CPU devices each against one of four: the same run."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorflow as tf

from anchornet_jax import models
from anchornet_jax.data import loading
from anchornet_jax.runtime import checkpoint, parallel, workdir
from anchornet_jax.training import train
from tests import tiny_main
from tests.tiny import Tiny

TIMEOUT = 120  # seconds
ROOT = pathlib.Path(__file__).parent.parent


def coordinator():
    """Return a free address, or skip."""
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{free.getsockname()[1]}"
    except OSError as error:
        pytest.skip(f"no sockets here: {error}")


def start_hosts(data_dir, directory, *flags):
    """Start main.py on two hosts; `flags` holds a list for each of them."""
    address = coordinator()
    return [
        tiny_main.start(
            data_dir,
            directory,
            f"--coordinator={address}",
            "--num_processes=2",
            f"--process_id={process}",
            *(flags[process] if flags else []),
            devices=2,
        )
        for process in range(2)
    ]


def start_main(config, directory, *flags):
    """Start main.py, which then knows `tiny`, on two hosts with a file of `configs`."""
    address = coordinator()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.tiny_main"),
                f"--config=configs/{config}.py",
                *(f"--workdir={directory}", f"--coordinator={address}"),
                *("--num_processes=2", f"--process_id={process}", *flags),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for process in range(2)
    ]


def wait(children):
    """Return exit status and output of each child; end what does not end."""
    try:
        printed = [child.communicate(timeout=TIMEOUT)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    return [child.returncode for child in children], printed


def losses(directory):
    """Read the losses that a run wrote for TensorBoard; one file, of process 0."""
    (path,) = directory.glob("events.*")
    return {
        event.step: float(tf.make_ndarray(value.tensor))
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "loss"
    }


def assert_same_network(one, other):
    one, other = (
        checkpoint.load_variables(path / train.NETWORK)[0] for path in (one, other)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """Return the directory of a run on one process of four devices, never stopped."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", (Tiny, {}))
        result = train.train(tiny_main.get_config(data_dir), directory)
    workdir.finish(directory, result)
    return directory


def test_two_hosts_equal_one(data_dir, tmp_path, whole):
    status, printed = wait(start_hosts(data_dir, tmp_path / "run"))
    assert status == [0, 0], printed
    assert "process 1 of 2" in printed[1]
    # "not usable" is how pmap warns of a state that is not on the local devices.
    assert not any("deleted" in p or "not usable" in p for p in printed)
    mine, wanted = losses(tmp_path / "run"), losses(whole)
    assert len(wanted) == 24 and mine.keys() == wanted.keys()
    for step, loss in wanted.items():
        assert mine[step] == pytest.approx(loss, rel=1e-5), step
    assert_same_network(tmp_path / "run", whole)
    results = [workdir.finished(path) for path in (tmp_path / "run", whole)]
    assert results[0]["accuracy"] == results[1]["accuracy"]


@pytest.mark.slow
def test_sigterm_to_one_host_stops_all(data_dir, tmp_path):
    """Both save the same step, from which one process of four devices goes on."""
    long = ["--config.epochs=1000", "--config.save_every_epochs=1000"]
    children = start_hosts(data_dir, tmp_path / "run", long, long)
    for line in children[0].stderr:
        if "compiled in" in line:
            break
    children[1].send_signal(signal.SIGTERM)
    status, printed = wait(children)
    assert status == [143, 143], printed
    step = {re.search(r"saved step (\d+) of 4000", text)[1] for text in printed}
    assert len(step) == 1 and step <= set(os.listdir(tmp_path / "run" / "checkpoints"))
    child = tiny_main.start(data_dir, tmp_path / "run", *long)
    assert any(f"resumed at step {min(step)} of 4000" in line for line in child.stderr)
    child.kill()
    wait([child])


def test_hosts_with_different_configs_all_stop(data_dir, tmp_path):
    children = start_hosts(
        data_dir, tmp_path / "run", [], ["--config.optimizer.momentum=0.5"]
    )
    status, printed = wait(children)
    for code, text in zip(status, printed):
        assert code == 1, text
        assert "config.optimizer.momentum: 0.9 on process 0, 0.5 on 1" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


COUNT = """
import json, sys
from anchornet_jax.data import collect, loading
from anchornet_jax.runtime import parallel
from anchornet_jax.training import train_step
address, process, data_dir = sys.argv[1:]
parallel.connect(address, 2, int(process))
source = loading.prepare("plates/small", data_dir=data_dir, augment="none", resize=0)
step = parallel.predict_step(
    lambda _, batch: {"sum": batch["image"].astype(int).sum((1, 2, 3))}
)
found = collect.collect(step, None, source, "test[:27]", batch_size=8, images=12)
classes = parallel.predict_step(
    lambda _, batch: {"score": batch["image"][:, 0, 0].argmax(-1) == batch["label"]}
)
batches = loading.evaluation(source, "test[:27]", batch_size=8)
accuracy = train_step.mean_score(classes, 0, batches)
error = ""
try:
    parallel.from_first(lambda: int("x"))
except ValueError as problem:
    error = str(problem)
print(json.dumps({
    "sum": found["sum"].tolist(), "label": found["label"].tolist(),
    "image": found["image"].sum((1, 2, 3)).tolist(), "accuracy": accuracy,
    "error": error, "hosts": parallel.exchange({"rows": int(process)}),
}))
"""


def test_every_image_counts_once(data_dir):
    """27 images on two hosts in batches of 8: one host has one image more."""
    address = coordinator()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, address, str(process), data_dir],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for process in range(2)
    ]
    try:
        printed = [child.communicate(timeout=TIMEOUT) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], printed
    found = [json.loads(out.splitlines()[-1]) for out, _ in printed]

    source = loading.prepare(
        "plates/small", data_dir=data_dir, augment="none", resize=0
    )
    batches = list(loading.evaluation(source, "test[:27]", batch_size=8))
    rows = [parallel.gather(batch) for batch in batches]
    image, label, mask = (
        np.concatenate([row[name] for row in rows])
        for name in ("image", "label", "mask")
    )
    right = (image[mask][:, 0, 0].argmax(-1) == label[mask]).mean()
    sums = image[mask].astype(int).sum((1, 2, 3)).tolist()
    for host in found:
        assert host["sum"] == sums and len(sums) == 27
        assert host["label"] == label[mask].tolist()
        assert host["accuracy"] == pytest.approx(right)
        assert host["error"] == "invalid literal for int() with base 10: 'x'"
        assert host["hosts"] == [{"rows": 0}, {"rows": 1}]
        assert host["image"] == sums[:12] + sums[14:26]  # of the 14 and 13 of the hosts


@pytest.mark.parametrize(
    "arguments",
    [
        ("", 2, 0),
        ("auto", 2, None),
        ("localhost:1", 2, None),
        ("localhost:1", None, 0),
        ("localhost:1", 2, 2),
        ("localhost", 2, 0),
    ],
)
def test_bad_flags(arguments):
    with pytest.raises(ValueError, match="`coordinator` is .*`process_id`"):
        parallel.connect(*arguments)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, True),
    ],
)
def test_environment(environment, several):
    assert parallel._several(environment) is several
