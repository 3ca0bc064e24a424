"""SIGTERM to a real process, then the same command again."""

import os
import signal
import threading

import jax
import numpy as np
import pytest

from anchornet_jax.runtime import console, networks, preemption
from anchornet_jax.training import train
from tests import tiny as tiny_network
from tests import tiny_main
from tests.tiny import tiny  # noqa: F401


def test_sigterm_saves_and_the_next_start_resumes(data_dir, tmp_path, tiny):  # noqa: F811
    whole = train.train(tiny_main.get_config(data_dir), tmp_path / "whole")

    child = tiny_main.start(data_dir, tmp_path / "stopped")
    for line in child.stderr:  # until the loop has begun
        if "compiled in" in line:
            break
    child.send_signal(signal.SIGTERM)
    printed = child.stderr.read()
    assert child.wait(60) == 143, printed
    assert "stopped by SIGTERM; saved step" in printed and "Traceback" not in printed
    saved = [int(n) for n in os.listdir(tmp_path / "stopped" / "checkpoints")]
    assert saved and max(saved) < whole["steps"]
    assert not (tmp_path / "stopped" / "network").exists()

    child = tiny_main.start(data_dir, tmp_path / "stopped")
    printed = child.stderr.read()
    assert child.wait(60) == 0, printed
    assert f"resumed at step {max(saved)} of 48" in printed
    one, other = (
        networks.load(path).variables
        for path in (whole["network"], tmp_path / "stopped" / train.NETWORK)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_stopped_run_is_as_good_as_a_whole_one(data_dir, tmp_path, tiny, monkeypatch):  # noqa: F811
    """Stopped between checkpoints, at one and at the last step: the same best state."""
    config = tiny_network.config(data_dir, batch_size=8, save_every_epochs=1.0)
    config.data.image_size = 96
    whole = train.train(config, tmp_path / "whole")
    stops = [3, 8, 16]  # 8 and 16 are saved anyway

    def stop(step):
        if stops and step == stops[0]:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(console, "reporter", lambda *_: stop)
    while stops:
        with pytest.raises(preemption.Preempted, match=f"saved step {stops[0]} of 16"):
            train.train(config, tmp_path / "stopped")
        del stops[0]
    resumed = train.train(config, tmp_path / "stopped")
    one, other = (networks.load(r["network"]).variables for r in (whole, resumed))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert resumed["accuracy"] == whole["accuracy"]


def test_signal_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watch() as asked:
        assert not asked(1)
        signal.raise_signal(signal.SIGTERM)
        assert asked(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_signal_after_the_last_question_is_not_lost():
    """A pipeline that is told to stop while a training ends does not begin the next."""
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        with preemption.watch() as asked:
            assert not asked(1)
            signal.raise_signal(signal.SIGTERM)
            assert not came
        assert came == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_leave_the_signal_alone():
    answers = []

    def run():
        with preemption.watch() as asked:
            answers.append(asked(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [False]
