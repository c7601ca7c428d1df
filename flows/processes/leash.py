"""Holds one command on a leash: whatever it started goes when it goes, or when its owner goes.

Run as `python flows/processes/leash.py OWNER_PID COMMAND...`, in a session of its own. Neither
`dvc` nor a shell forwards a signal to the stage below it: without this a killed flow, or `dvc`,
would leave a training that holds the GPU and writes its output for hours.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import types
from typing import NoReturn

import psutil

OWNER_CHECK_S = 0.5


def _given_grace() -> float:
    given = os.environ.get("SAMOVAR_GRACE_S", "3")
    if not given.replace(".", "", 1).isdecimal():
        sys.exit(f"SAMOVAR_GRACE_S is {given!r}: expected seconds, such as 20")
    return float(given)


GRACE_S = _given_grace()
"""How long what runs below may take to end after SIGTERM; with three seconds and what follows it is
gone in 5 s. A training that has not saved its state by then loses the steps since its last
checkpoint: where machines are taken away after a warning, more is better."""
ORPHAN_GRACE_S = 1.0
"""The same when the owner is gone and nobody waits for the outcome."""
UNLOCK_S = 0.5
"""How long `dvc` may take to see its stage killed and drop its locks."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class _StopError(BaseException):
    """SIGTERM arrived."""


def hold(owner: int, command: list[str]) -> int:
    """Run `command` to its end and return its exit status, 128 + N for a death by signal N.

    SIGTERM, or the death of `owner`, ends what the command started; the command itself, when it
    has children, is left to see them fail, so that `dvc` records nothing and drops its locks.
    """
    signal.signal(signal.SIGTERM, _stop)
    _adopt_orphans()
    child = subprocess.Popen(command, preexec_fn=_die_with_parent)
    try:
        while os.getppid() == owner:
            try:
                return _status(child.wait(OWNER_CHECK_S))
            except subprocess.TimeoutExpired:
                continue
        return _end(child, ORPHAN_GRACE_S)
    except _StopError:
        return _end(child, GRACE_S)
    finally:
        _kill_rest(ORPHAN_GRACE_S)


def _end(child: subprocess.Popen[bytes], grace_s: float) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, UNLOCK_S)):
        below = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
        for process in below or [child]:
            _signal(process, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return _status(child.wait(wait_s))
    child.kill()
    return _status(child.wait())


def _kill_rest(grace_s: float) -> None:
    """Ends what the command left behind; on Linux that includes its orphans."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rest = psutil.Process().children(recursive=True)
    for process in rest:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(rest, timeout=grace_s)
    for process in alive:
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process | subprocess.Popen[bytes], number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _stop(_number: int, _frame: types.FrameType | None) -> NoReturn:
    raise _StopError


def _adopt_orphans() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


if __name__ == "__main__":
    sys.exit(hold(int(sys.argv[1]), sys.argv[2:]))
