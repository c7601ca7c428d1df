"""One heap for all threads of a process."""

import os
import subprocess
import sys

import pytest

HEAPS = """
import ctypes, sys, threading
from tasks.machine.heap import keep_one_heap
if sys.argv[1] == "one":
    keep_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
together = threading.Barrier(4)
def allocate():
    together.wait()
    for _ in range(100):
        libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
print(open(sys.argv[2]).read().count("<heap nr="))
"""


def heaps_of(tmp_path, kept: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", HEAPS, kept, str(tmp_path / "heaps.xml")],
        env={k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"} | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the heaps of glibc")
def test_threads_share_one_heap_unless_the_environment_says_otherwise(tmp_path) -> None:
    assert heaps_of(tmp_path, "many") > 1
    assert heaps_of(tmp_path, "one") == 1
    assert heaps_of(tmp_path, "one", MALLOC_ARENA_MAX="3") > 1
