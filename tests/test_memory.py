"""Freed memory is kept: seen in the page faults of a process that asks again."""

import platform
import subprocess
import sys

import pytest

CHILD = """
import ctypes, resource, sys
from anchornet_jax.runtime import memory
if "keep" in sys.argv:
    assert memory.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 100 * 2**20
for n in range(6):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    if n == 0:
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_memory_is_kept():
    default, kept = (
        int(subprocess.check_output([sys.executable, "-c", CHILD, word], text=True))
        for word in ("", "keep")
    )
    assert kept < 0.1 * default
