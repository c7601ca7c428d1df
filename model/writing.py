"""Errors of writing, with the name of the file: few libraries say which one did not fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what stops the body from writing `path` into an OSError that says what to do.

    A buffered write, safetensors and tokenizers each report a full disk in a way of their own,
    without a name.

    Raises:
        OSError: The disk is full or not writable; the message names the file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _named(path, error) from error
    except Exception as error:
        # tokenizers has no class of its own for a failed write
        if type(error) is not Exception:
            raise
        raise _named(path, error) from error


def _named(path: Path, error: Exception) -> OSError:
    target = getattr(error, "filename", None) or path
    reason = getattr(error, "strerror", None) or str(error)
    return OSError(
        f"cannot write {target} ({reason}): free space if the disk or its quota is full, check "
        "the rights of the folder, and run the stage again; what was finished is kept"
    )
