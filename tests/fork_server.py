"""Python processes forked from one that has torch loaded: `python -m MODULE` without its imports.

A process that imports torch and transformers spends seconds before its first own line, and the
tests of teams, kills and full disks start dozens. `start` hands the request to a server that has
imported both. The process it forks has the folder, environment, arguments and standard error it was
given, and the server as its parent; else it is one that Python has just started.
"""

import array
import atexit
import functools
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parents[1]
REQUEST_BYTES = 1 << 20
STATUS = struct.Struct("i")


class Forked:
    """What of `subprocess.Popen` the tests use."""

    def __init__(self, pid: int, status: int, stderr: IO[str] | None) -> None:
        """Take the process and the pipe that will hold its wait status."""
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        self._status = status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stderr is not None:
            self.stderr.close()
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            [status] = STATUS.unpack(os.read(self._status, STATUS.size))
            os.close(self._status)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float) -> tuple[None, str]:
        """What it writes to standard error until it ends."""
        assert self.stderr is not None, "it was started without a pipe"
        deadline = time.monotonic() + timeout
        chunks: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self.stderr, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
                chunk = os.read(self.stderr.fileno(), REQUEST_BYTES)
                if not chunk:
                    break
                chunks.append(chunk)
        self.stderr.close()
        self.wait(max(0.0, deadline - time.monotonic()))
        return None, b"".join(chunks).decode()

    def send_signal(self, number: int) -> None:
        """Send it a signal while it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def start(
    module: str,
    arguments: Sequence[str] = (),
    *,
    cwd: Path,
    environment: dict[str, str],
    pipe_stderr: bool = False,
    file_limit_bytes: int | None = None,
) -> Forked:
    """`python -m MODULE ARGUMENTS` in `cwd`, forked.

    Args:
        module: Of this checkout, run as `__main__`.
        arguments: Its `sys.argv` without the name.
        cwd: Its folder.
        environment: All of its environment. OMP_NUM_THREADS sets torch's threads.
        pipe_stderr: Whether `stderr` of the result reads what it says; else it goes to ours.
        file_limit_bytes: RLIMIT_FSIZE: no file of it grows beyond.
    """
    server = _server()
    stderr, ours = None, os.dup(2)
    if pipe_stderr:
        os.close(ours)
        read, ours = os.pipe()
        stderr = os.fdopen(read, encoding="utf-8")
    status, theirs = os.pipe()
    request: dict[str, Any] = {
        "module": module,
        "arguments": list(arguments),
        "cwd": str(cwd),
        "environment": environment,
        "file_limit_bytes": file_limit_bytes,
    }
    descriptors = array.array("i", [ours, theirs])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
    server.sendmsg([json.dumps(request).encode()], ancillary)
    [pid] = STATUS.unpack(server.recv(STATUS.size))
    os.close(ours)
    os.close(theirs)
    return Forked(pid, status, stderr)


@functools.cache
def _server() -> socket.socket:
    """The connection to the server of this test process, started at its first use."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST_BYTES)
    command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # the last registered runs first, and ends the server
    return ours


def serve(connection: socket.socket) -> None:
    """Fork for every request until the other end is gone; report how each process ended."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    statuses: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if woken in ready:
                os.read(woken, REQUEST_BYTES)
                _report(statuses)
            if connection not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 2)
            if not message:
                return
            stderr, status = descriptors
            pid = os.fork()
            if pid == 0:
                for inherited in (woken, wake, status, connection.fileno(), *statuses.values()):
                    os.close(inherited)
                _become(json.loads(message), stderr)
            os.close(stderr)
            statuses[pid] = status
            connection.send(STATUS.pack(pid))


def _report(statuses: dict[int, int]) -> None:
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        os.write(statuses[pid], STATUS.pack(status))
        os.close(statuses.pop(pid))


def _become(request: dict[str, Any], stderr: int) -> None:
    """Turn this fork into the process that was asked for; does not return."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
        if "OMP_NUM_THREADS" in os.environ:
            sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        limit = request["file_limit_bytes"]
        if limit is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter itself would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import torch  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    import tasks
    import tasks.training.contrastive  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
