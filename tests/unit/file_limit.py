"""A disk that is nearly full, by RLIMIT_FSIZE: a write beyond it fails in the middle of a file.

Python ignores SIGXFSZ, so the call fails with EFBIG as it would with ENOSPC.
"""

import contextlib
import resource
from collections.abc import Iterator

NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
"""For the environment of a process that is limited: Python would leave half of a .pyc file, which
breaks every later import."""


def limit_files(size_bytes: int) -> None:
    """Let no file of this process grow beyond `size_bytes`; what is larger already stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))


@contextlib.contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """The same for the time of the body."""
    before, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(size_bytes)
    try:
        yield
    finally:
        limit_files(before)
