"""Processes that take GPUs of a machine that has none.

`Worker` is one that is forked from a server, which spares it half a second of imports; `python -m
tests.unit.gpu_worker NUMBER GPU...` is one as a stage is, which writes what it got and goes on
until it is killed.
"""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any

from tasks.contract.stage import StageError
from tasks.machine.gpus import hold

NOBODY = 65534
LONGEST_S = 120
COMMAND = [sys.executable, "-m", "tests.unit.gpu_worker"]
"""Followed by a number and names of GPUs."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.unit.gpu_worker"])


class Worker:
    """A process that takes GPUs, tells what it says and gets, and ends when it is told to.

    Kinds: `nobody` is another user, `forks` has a child that computes too, `leads` starts a second
    process of its training.
    """

    def __init__(self, *gpus: str, number: int = 1, kind: str = "", **environment: str) -> None:
        self._pipe, far = _context.Pipe()
        environment = {
            name: os.environ[name] for name in SHARED if name in os.environ
        } | environment
        self._process = _context.Process(target=_work, args=(far, kind, number, gpus, environment))
        self._process.start()
        far.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def said(self) -> str:
        """Its next line for people, or why it stopped."""
        return self._next("said")

    def answer(self) -> dict[str, Any]:
        """What it has got, once it has: pid, held, visible."""
        return self._next("got")

    def held(self) -> list[str]:
        """The GPUs it has got, once it has."""
        return self.answer()["held"]

    def is_waiting(self) -> bool:
        """Whether it runs and has nothing to tell."""
        return self._process.is_alive() and not self._pipe.poll()

    def end(self) -> None:
        """Let it end, and its child."""
        self._pipe.close()
        self._process.join()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def let_go(self) -> None:
        """Leave nothing of it behind, whatever has become of it."""
        self._pipe.close()
        self.kill()
        self._process.close()

    def _next(self, kind: str) -> Any:
        found, content = self._pipe.recv()
        assert found == kind, content
        return content


SHARED = (hold.FOLDER_VARIABLE, hold.VISIBLE)


class _Sayings(logging.Handler):
    def __init__(self, pipe: Connection) -> None:
        super().__init__(logging.INFO)
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self._pipe.send(("said", record.getMessage()))


def _work(
    pipe: Connection, kind: str, number: int, gpus: tuple[str, ...], environment: dict[str, str]
) -> None:
    logging.basicConfig(level=logging.INFO, handlers=[_Sayings(pipe)])
    for name in SHARED:
        os.environ.pop(name, None)
    os.environ |= environment
    if kind == "nobody":
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        answer = _take(number, list(gpus))
    except StageError as error:
        pipe.send(("said", str(error)))
        return
    is_first = kind != "forks" or os.fork() != 0
    if is_first:
        pipe.send(("got", answer))
    if kind == "leads":
        command = [*COMMAND, str(number), *gpus]
        second = {"LOCAL_RANK": "1"}
        with subprocess.Popen(command, env=os.environ | second, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            pipe.send(("got", json.loads(other.stdout.readline())))
    try:
        pipe.recv()
    except EOFError:
        os._exit(0)


def _take(number: int, gpus: list[str]) -> dict[str, Any]:
    given = os.environ.get(hold.VISIBLE)
    shown = gpus if given is None else [gpu for gpu in given.split(",") if gpu in gpus]
    hold.list_gpus = lambda: shown
    hold.POLL_S = 0.01
    held = hold.hold_gpus(number)
    return {"pid": os.getpid(), "held": held, "visible": os.environ.get(hold.VISIBLE)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_take(int(sys.argv[1]), sys.argv[2:])) + "\n")
    sys.stdout.flush()
    signal.alarm(LONGEST_S)
    signal.pause()
