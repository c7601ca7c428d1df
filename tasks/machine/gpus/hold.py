"""One computation per GPU, whoever starts it: a flow, `dvc repro`, another checkout or user.

A stage locks the GPUs it will work on, before CUDA starts, until its last process has ended. The
files lie in one folder of the machine and are looked at under its guard alone:

    GPU-<UUID>       locked by the processes that compute on that GPU
    waiting-<place>  locked by a process that waits; it names the GPUs that would do

Who came first is served first: nobody takes a GPU that would do for one who waits longer, so a
training that needs several is not passed by for ever, and gets all of them at once or none.
"""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.contract.stage import StageError, record_at_end
from tasks.machine.gpus import visible
from tasks.machine.gpus.lock_files import (
    Record,
    guarded,
    is_locked,
    keep_folder,
    lock_shared,
    make_folder,
    own_record,
    read_record,
    share,
    try_lock,
    write_record,
)
from tasks.machine.gpus.meter import Meter

FOLDER_VARIABLE = "SAMOVAR_GPU_LOCKS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
WAITING = "waiting-"
POLL_S = 0.5
SAY_EVERY_S = 30.0
ANSWER_WAIT_S = 120.0
"""The driver takes seconds per GPU to start where nothing keeps it loaded."""

_held: dict[str, int] = {}
"""The GPUs of this process, and the descriptors that lock them until it ends."""

logger = logging.getLogger(__name__)


def hold_gpus(number: int) -> list[str]:
    """Take GPUs for this process until it ends, waiting in turn; CUDA will see no others.

    They are of those that CUDA_VISIBLE_DEVICES names, if it is set. Of the processes of a training
    (torchrun's variables tell) the first takes GPUs for all, the others hold them with it.

    Args:
        number: How many, all of them at once.

    Returns:
        Their UUIDs, as CUDA_VISIBLE_DEVICES now names them; none where CUDA sees no GPU.

    Raises:
        StageError: There are fewer GPUs, or this user may not use the folder of the locks.
    """
    if _held:
        return list(_held)
    names = list_gpus()
    if not names:
        return []
    folder = lock_folder()
    try:
        make_folder(folder)
        keep_folder(folder)
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            _held.update(_join(folder, names))
        else:
            _held.update(_take(folder, names, int(os.environ.get("LOCAL_WORLD_SIZE", number))))
            record_at_end(Meter(list(_held)).read)
    except PermissionError as error:
        raise StageError(
            f"the GPU locks in {folder} cannot be used: {error}. Its owner must make the folder "
            f"writable for all (chmod 1777) and the files in it too (chmod 666); or set "
            f"{FOLDER_VARIABLE} to another folder, the same for all who use these GPUs"
        ) from error
    os.environ[VISIBLE] = ",".join(_held)
    return list(_held)


def list_gpus() -> list[str]:
    """UUIDs of the GPUs that CUDA shows to this process, found without starting CUDA in it.

    Raises:
        StageError: The driver does not answer, or counts GPUs it cannot name.
    """
    command = [sys.executable, "-I", "-S", visible.__file__]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_WAIT_S, check=True
        )
    except subprocess.TimeoutExpired:
        raise StageError(f"the CUDA driver has not answered for {ANSWER_WAIT_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2]
        raise StageError(f"the GPUs could not be listed: {reason}") from error
    return answer.stdout.split()


def lock_folder() -> Path:
    """The folder of the locks, one for the machine."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / "samovar-gpus"


def _take(folder: Path, names: list[str], number: int) -> dict[str, int]:
    """Lock `number` of the GPUs when it is this process's turn."""
    if number > len(names):
        given = os.environ.get(VISIBLE)
        raise StageError(
            f"compute.processes is {number}, but CUDA sees {len(names)} GPUs"
            f"{'' if given is None else f' ({VISIBLE} is {given!r})'}: one process needs one GPU; "
            "lower compute.processes"
        )
    started = time.monotonic()
    said, said_at = "", started - SAY_EVERY_S
    with _queued(folder, names) as place:
        while True:
            with guarded(folder):
                ahead = _waiting(folder, before=place)
                reserved = {name for record in ahead for name in record.gpus}
                taken = _try(folder, [name for name in names if name not in reserved], number)
                behind = "; ".join([*_holders(folder, names), *(f"{w} waits too" for w in ahead)])
            if taken:
                break
            if behind != said and time.monotonic() >= said_at + SAY_EVERY_S:
                said, said_at = behind, time.monotonic()
                logger.info("waiting for %d of %s: %s", number, ", ".join(names), behind)
            time.sleep(POLL_S)
    if said:
        logger.info("computing on %s after %.0f s", ", ".join(taken), time.monotonic() - started)
    return taken


def _try(folder: Path, names: list[str], number: int) -> dict[str, int]:
    """Lock the first `number` GPUs that are free; none if they are fewer."""
    taken: dict[str, int] = {}
    for name in names:
        descriptor = try_lock(folder / name) if len(taken) < number else None
        if descriptor is not None:
            taken[name] = descriptor
    if len(taken) < number:
        for descriptor in taken.values():
            os.close(descriptor)
        return {}
    for descriptor in taken.values():
        write_record(descriptor, own_record())
        share(descriptor)
    return taken


def _join(folder: Path, names: list[str]) -> dict[str, int]:
    """Lock the GPUs that the first process of this training has taken, once it has.

    It is the parent of this process, or another child of its parent, which then is torchrun.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        with guarded(folder):
            paths = [folder / name for name in names if _is_of(parent, folder / name)]
            if paths:
                return {path.name: lock_shared(path) for path in paths}
        time.sleep(POLL_S)
    raise StageError("the process that this one takes part in training with is gone")


def _is_of(parent: int, path: Path) -> bool:
    record = read_record(path)
    if record is None or record.host != os.uname().nodename or not is_locked(path):
        return False
    return parent in {record.pid, record.parent}


@contextlib.contextmanager
def _queued(folder: Path, names: list[str]) -> Iterator[int]:
    """Stand in the queue, at the place that is yielded."""
    with guarded(folder):
        place = 1 + max((_place(path) for path in _queue(folder)), default=0)
        path = folder / f"{WAITING}{place}"
        descriptor = lock_shared(path)
        write_record(descriptor, own_record(names))
    try:
        yield place
    finally:
        with guarded(folder):
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _queue(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{WAITING}*"), key=_place)


def _place(path: Path) -> int:
    return int(path.name.removeprefix(WAITING))


def _waiting(folder: Path, before: int) -> list[Record]:
    """Those that have waited longer; what the dead have left is removed."""
    records: list[Record] = []
    for path in _queue(folder):
        if _place(path) >= before:
            continue
        if is_locked(path):
            record = read_record(path)
            records += [] if record is None else [record]
        else:
            with contextlib.suppress(PermissionError):  # another user's
                path.unlink()
    return records


def _holders(folder: Path, names: list[str]) -> list[str]:
    """Who computes on which of these GPUs, a phrase each."""
    found: dict[str, list[str]] = {}
    for name in names:
        if is_locked(folder / name):
            holder = read_record(folder / name) or "a process that does not say who it is"
            found.setdefault(str(holder), []).append(name)
    return [f"{holder} holds {', '.join(held)}" for holder, held in found.items()]
