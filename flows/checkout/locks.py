"""The two locks a run cares for: its own on the checkout, and what dead processes left in DVC's.

DVC's read-write lock names paths and process ids. It never waits, keeps the entries of killed
processes, believes any process that got a dead one's id, and fails every command when its file is
empty or cut off, as it is after a power loss.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from flows.errors import CheckoutBusyError
from flows.terminal import say
from tasks.params.paths import STATE

CHECKOUT_POLL_S = 5.0
GUARD_WAIT_S = 10.0
GUARD_POLL_S = 0.05


@contextlib.contextmanager
def hold_checkout(root: Path, wait_hours: float = 0.0) -> Iterator[None]:
    """Hold the checkout at `root` alone; the kernel frees it when the process dies.

    Args:
        root: The checkout.
        wait_hours: How long to wait for a run that holds it.

    Raises:
        CheckoutBusyError: Another run holds it; the message says which.
    """
    path = root / STATE / "checkout.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _locked(file, 0.0, CHECKOUT_POLL_S):
            _wait(file, path, wait_hours)
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}, file)
        file.flush()
        yield


def _wait(file: IO[str], path: Path, hours: float) -> None:
    if hours <= 0:
        raise CheckoutBusyError(_busy(path))
    say(f"{_busy(path)}. This run waits for it, at most {hours:g} h (wait_hours)")
    if not _locked(file, hours * 3600, CHECKOUT_POLL_S):
        raise CheckoutBusyError(f"{_busy(path)}. This run has waited {hours:g} h (wait_hours)")
    say("the checkout is free: this run begins")


def check_checkout_is_free(root: Path) -> None:
    """Find out at once whether a run could start.

    Raises:
        CheckoutBusyError: Another run holds the checkout.
    """
    with hold_checkout(root):
        return


def clean_rwlock(folder: Path) -> list[str]:
    """Drop what dead processes left in the read-write lock under `folder` (.dvc/tmp).

    Returns:
        One line per entry dropped, or one saying that the file was broken and is empty now.
    """
    path = folder / "rwlock"
    if not path.exists():
        return []
    with _guard(folder / "rwlock.lock"):
        try:
            lock = json.loads(path.read_text(encoding="utf-8"))
            kept, dropped = _split(lock)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            kept, dropped = {}, [f"{path} was broken ({error}) and is empty now"]
        if dropped:
            partial = path.with_name("rwlock.partial")
            partial.write_text(json.dumps(kept), encoding="utf-8")
            partial.rename(path)
    return dropped


def _split(lock: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The lock without its dead entries, and a line for each of them."""
    write = {path: entry for path, entry in lock.get("write", {}).items() if _is_alive(entry)}
    read = {
        path: [entry for entry in entries if _is_alive(entry)]
        for path, entries in lock.get("read", {}).items()
    }
    dropped = [
        f"{path} was locked by process {entry['pid']}, which is gone"
        for path, entries in (
            *((path, [entry]) for path, entry in lock.get("write", {}).items()),
            *lock.get("read", {}).items(),
        )
        for entry in entries
        if not _is_alive(entry)
    ]
    return {"write": write, "read": {path: left for path, left in read.items() if left}}, dropped


def _is_alive(entry: dict[str, Any]) -> bool:
    """Whether the process that wrote the entry still runs, and is not another with its id."""
    try:
        process = psutil.Process(int(entry["pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        arguments = entry["cmd"].split()[1:]
        return " ".join(process.cmdline()).endswith(" ".join(arguments))
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[None]:
    """The lock DVC itself takes round every edit of the file, held by it for milliseconds."""
    with path.open("a", encoding="utf-8") as file:
        if not _locked(file, GUARD_WAIT_S, GUARD_POLL_S):
            raise CheckoutBusyError(f"{path} has been locked for {GUARD_WAIT_S:.0f} s")
        yield


def _locked(file: IO[str], wait_s: float, poll_s: float) -> bool:
    """Whether the file could be locked within this time."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(poll_s)
        else:
            return True


def _busy(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pid, host, since = holder["pid"], holder["host"], holder["since"]
    except (ValueError, KeyError):
        return "another run is just starting in this checkout: wait for it"
    return (
        f"another run holds this checkout: process {pid} on {host}, since {since}. "
        f"Wait for it, or stop it with `kill {pid}`"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
