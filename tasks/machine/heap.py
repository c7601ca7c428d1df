"""glibc's heap, kept together: what one batch leaves behind serves the next of another size."""

import ctypes
import os

M_ARENA_MAX = -8
"""Of malloc.h."""


def keep_one_heap() -> None:
    """Let all threads of this process allocate from one heap in place of eight a core.

    Call it before threads begin to work. Large blocks of a thread's own heap are rarely given back:
    a training by GradCache took 5.2 GB, and 4.6 with this, as fast on two cores. Does nothing where
    there is no glibc, or where MALLOC_ARENA_MAX is set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, 1)
