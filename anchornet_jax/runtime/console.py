"""What a person who watches a run reads: our own lines, and warnings of others.

11:43:06  full_image: step 95 of 400, loss 1.23, accuracy 41.2 %, 38 images/s, 2 min left
"""

import logging
import pathlib
import sys
import threading
import time
from collections.abc import Callable

from absl import logging as absl_logging

OURS = str(pathlib.Path(__file__).parents[1])
EVERY_SECONDS = 10  # between two lines on progress


class _Format(logging.Formatter):
    """The time and the message; what is worse than information says so."""

    def format(self, record):
        kind = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        now = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{now}  {kind}{record.getMessage()}"


def _is_shown(record) -> bool:
    if record.pathname.startswith(OURS) or record.filename == "main.py":
        return True
    # Orbax logs the traces of its threads; what they mean is raised, and said once.
    return record.levelno >= logging.WARNING and not (
        "orbax" in record.pathname or "deprecation" in record.pathname
    )


def prepare() -> None:
    """Show our lines and warnings of others, without traces of their threads."""
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Format())
    handler.addFilter(_is_shown)
    threading.excepthook = _in_a_line


def _in_a_line(about) -> None:
    """Say in a line what a thread of a library raised; the main thread says the rest."""
    reason = str(about.exc_value).partition("\n")[0]
    print(f"{about.exc_type.__name__}: {reason}"[:300], file=sys.stderr)


def remaining(seconds: float) -> str:
    """Say how long something still takes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def reporter(
    total: int, done: int = 0, clock: Callable[[], float] | None = None
) -> Callable[[int], float | None]:
    """Return `left(done)`: the seconds that are left if it is time for a line, or None.

    Args:
      total: how much there is to do.
      done: of which so much is done already.
      clock: seconds; the machine's by default.
    """
    clock = clock or time.monotonic
    begun = last = clock()
    known = done

    def left(done):
        nonlocal last
        now = clock()
        if now - last < EVERY_SECONDS or done <= known:
            return None
        last = now
        return (now - begun) / (done - known) * (total - done)

    return left
