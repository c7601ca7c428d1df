"""The only place that starts a process: each on a leash, its lines streamed, all of them stoppable.

Prefect delivers a cancellation to the main thread only, while the processes are waited for in
worker threads. The main thread therefore calls `stop_all`, which reaches every process of the run.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from flows.errors import FlowError
from flows.processes import leash

DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]
"""Without the flag DVC gives up after 3 s, also when it locks again after hours of training."""

KILL_AFTER_S = leash.GRACE_S + leash.ORPHAN_GRACE_S + 2.0


class Processes:
    """The processes of one run that are alive now."""

    def __init__(self) -> None:
        self._alive: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def start(
        self, command: list[str], output: int, extra: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start `command` on a leash.

        Args:
            command: Program and arguments.
            output: Descriptor that gets its stdout and stderr.
            extra: Added to the environment of a stage.

        Raises:
            FlowError: The run is being stopped.
        """
        with self._lock:
            if self._is_closed:
                raise FlowError("the run is being stopped")
            process = subprocess.Popen(
                [sys.executable, leash.__file__, str(os.getpid()), *command],
                env=environment() | dict(extra or {}),
                text=True,
                encoding="utf-8",
                errors="replace",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._alive.add(process)
        threading.Thread(target=_sweep, args=(process,), daemon=True).start()
        return process

    def stop(self, process: subprocess.Popen[str]) -> None:
        """End `process` and all it started: SIGTERM, then SIGKILL to its group."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.forget(process)

    def forget(self, process: subprocess.Popen[str]) -> None:
        """Leave out a process that has ended."""
        with self._lock:
            self._alive.discard(process)

    def close(self) -> None:
        """Start nothing any more, and end all that runs, side by side."""
        with self._lock:
            self._is_closed = True
            alive = list(self._alive)
        stoppers = [threading.Thread(target=self.stop, args=(process,)) for process in alive]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()

    def open(self) -> None:
        """Allow starts again, for the next run of this Python process."""
        with self._lock:
            self._is_closed = False


def _sweep(process: subprocess.Popen[str]) -> None:
    """Once a leash has ended, kill what it held: it leaves something only if it was killed."""
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


_RUN = Processes()


def stream(command: list[str], on_line: Callable[[str], None]) -> int:
    """Run `command`, pass each of its output lines to `on_line`, return its exit status."""
    process = _RUN.start(command, subprocess.PIPE)
    try:
        for line in process.stdout or ():
            if line.strip():
                on_line(line.rstrip())
        return process.wait()
    finally:
        _RUN.stop(process)


def open_run() -> None:
    """Allow processes to start."""
    _RUN.open()


def stop_all() -> None:
    """End every process of the run and let none start."""
    _RUN.close()


def environment() -> dict[str, str]:
    """The environment of a stage: our Python first, no buffering, no progress bars, no telemetry.

    A progress bar would become one log row per redraw. DVC runs commands in $SHELL, which differs
    from machine to machine, and reads its settings in the encoding of the locale.
    """
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return os.environ | {
        "PATH": os.pathsep.join(folders),
        "SHELL": "/bin/sh",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DVC_NO_ANALYTICS": "1",
    }
