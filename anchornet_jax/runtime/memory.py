"""Memory on CPU: what a launch frees is kept for the next one.

XLA asks malloc for the buffers of every launch. glibc takes large ones from the kernel
and gives them back at once, so all their pages are cleared again every time: at 224
pixels that is up to a quarter of the time of a network.
"""

import ctypes
import os
import pathlib

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's malloc.h
MOST = 2**31 - 1


def resident_mb() -> float:
    """Return the memory that the process holds, MB; Linux alone tells."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def keep() -> bool:
    """Let malloc keep what is freed; return whether it can, which only glibc's does."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, MOST))
