"""Threads for torch and for everything else, set together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Give torch, BLAS and OpenMP `count` threads, and back what they had at the end.

    torch sets OpenMP to its own count at its first operation, behind the back of threadpoolctl.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
