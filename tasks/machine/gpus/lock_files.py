"""Lock files that every user of a machine shares, each saying who holds it.

A lock is an flock: the kernel drops it when the last process that has the file open is gone, also
after kill -9. A forked process has it open from birth. The folder must be on a local disk.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

GUARD = "guard"


@dataclass(frozen=True)
class Record:
    """Who holds a lock or waits for one."""

    pid: int
    parent: int
    """Process that started it."""
    host: str
    """Name of its machine or container, where the numbers of processes hold."""
    command: str
    folder: str
    """Where it works: the checkout."""
    since: str
    """Local time."""
    gpus: list[str] = field(default_factory=list)
    """What it waits for."""

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command} in {self.folder}) since {self.since}"


def own_record(gpus: list[str] | None = None) -> Record:
    """What others read of this process."""
    return Record(
        pid=os.getpid(),
        parent=os.getppid(),
        host=os.uname().nodename,
        command=_command(),
        folder=str(Path.cwd()),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        gpus=gpus or [],
    )


def _command() -> str:
    """The stage and its arguments, or the program."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    program = sys.argv[0] if specification is None else specification.name
    return " ".join([program.removesuffix(".__main__"), *sys.argv[1:]])


def make_folder(folder: Path) -> None:
    """Make the folder, if need be, for every user of the machine."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), _every_mode():
        folder.mkdir(0o1777)


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Be the only one to look at the files of the folder and to change them, for milliseconds."""
    guard = _open(folder / GUARD)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
    finally:
        os.close(guard)


def try_lock(path: Path) -> int | None:
    """The descriptor of the file, locked and made if need be; None if somebody has the lock."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def share(descriptor: int) -> None:
    """Let others that belong to the holder lock the file as well."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def lock_shared(path: Path) -> int:
    """The descriptor of the file, locked and made if need be, beside others that share it."""
    descriptor = _open(path)
    share(descriptor)
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether some process has the lock."""
    descriptor = try_lock(path)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def keep_folder(folder: Path) -> None:
    """Keep systemd-tmpfiles, which clears out old files, from the folder while this process lives.

    It passes over folders that are locked. A file that is removed while it is locked would be made
    anew by the next process, and locked a second time.
    """
    share(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))


def write_record(descriptor: int, record: Record) -> None:
    """Say in the locked file whose it is."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(record)).encode(), 0)


def read_record(path: Path) -> Record | None:
    """What the file says, None if that cannot be read."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _open(path: Path) -> int:
    """The file, made for every user if there is none, never one that a link leads to."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    # never O_CREAT on a file that may be another user's: in a folder like this one the kernel
    # refuses that (fs.protected_regular)
    with contextlib.suppress(FileExistsError), _every_mode():
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    return os.open(path, flags)


@contextlib.contextmanager
def _every_mode() -> Iterator[None]:
    """No umask: what is made is usable for all from its first moment."""
    umask = os.umask(0)
    try:
        yield
    finally:
        os.umask(umask)
