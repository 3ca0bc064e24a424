"""What a person who watches a run reads."""

import subprocess
import sys

import pytest

from anchornet_jax.runtime import console, text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (200, "3 min"), (5300, "88 min"), (9000, "2.5 h")],
)
def test_remaining(seconds, said):
    assert console.remaining(seconds) == said


def test_reporter():
    """After 11 s 200 are done, 800 take 44 s; after 30 s 300, and 700 take 70 s."""
    now = iter([0.0, 5.0, 11.0, 12.0, 30.0])
    left = console.reporter(1000, clock=lambda: next(now))
    assert [left(done) for done in (100, 200, 250, 300)] == [None, 44, None, 70]


def test_reporter_of_what_goes_on():
    """What was done before says nothing of the speed."""
    now = iter([0.0, 20.0])
    left = console.reporter(1000, 600, clock=lambda: next(now))
    assert left(700) == 60


PROGRAM = """
import logging, threading
from absl import logging as ours
from anchornet_jax.runtime import console, workdir
ours.use_absl_handler()
ours.set_verbosity(ours.INFO)
console.prepare()
def raises():
    raise OSError("no space\\nsecond line")
thread = threading.Thread(target=raises)
thread.start()
thread.join()
ours.info("of nobody")
logging.getLogger("absl").handle(logging.LogRecord(
    "absl", logging.INFO, workdir.__file__, 1, "full_image: step %d", (95,), None))
logging.getLogger("absl").handle(logging.LogRecord(
    "absl", logging.WARNING, "/x/orbax/y.py", 1, "a trace", (), None))
ours.warning("of others")
"""


def test_lines():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    lines = done.stderr.splitlines()
    assert lines[0] == "OSError: no space"
    lines = [line.partition("  ")[2] for line in lines if line[0].isdigit()]
    assert lines == [
        "full_image: step 95",
        "WARNING: of others",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dög.png", "dög.png"),
        ("a\x1b[2J\n\r.png", r"a\x1b[2J\n\r.png"),
        (b"5\xff.png", r"5\xff.png"),
        ("\u202e.png", r"\u202e.png"),
    ],
)
def test_printable(name, said):
    assert text.printable(name) == said
    assert text.printable(name).isprintable()
