"""SIGTERM, which a cluster sends some seconds before it takes a machine away.

with preemption.watch() as asked:
    for step in ...:
        if asked(step):
            save, then raise Preempted
"""

import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM  # 143, what a shell reports of the signal


class Preempted(Exception):
    """A run was asked to stop and has saved its state; started again, it goes on."""


@contextlib.contextmanager
def watch():
    """Yield `asked(step) -> bool`: has any host been sent SIGTERM?

    Inside the block the signal ends nothing; one that came after the last question has its
    usual effect at the end of the block. Every host asks after every step and gets the
    same answer for the same step. Outside the main thread, where Python handles no
    signals, the answer is always no and the signal keeps its effect.
    """
    if jax.process_count() > 1:
        # JAX took over the signal when the hosts connected, and finds a common step.
        yield multihost_utils.reached_preemption_sync_point
        return
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    told = threading.Event()

    def asked(step):
        if came.is_set():
            told.set()
        return came.is_set()

    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield asked
    finally:
        # None: whoever handled it was not Python, and cannot be put back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if came.is_set() and not told.is_set():
            signal.raise_signal(signal.SIGTERM)
