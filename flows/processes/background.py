"""Processes that outlive the terminal: started, found again and stopped by name."""

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.errors import FlowError
from flows.processes.process import environment
from flows.terminal import say
from tasks.params.paths import STATE

FOLDER = STATE / "services"
STOP_WAIT_S = 20.0
CHILDREN_WAIT_S = 60.0
"""A run that is told to end gives its stages their grace, and tells the server."""


@dataclass(frozen=True)
class Service:
    """A process that outlives the terminal."""

    name: str

    @property
    def log(self) -> Path:
        """What it prints."""
        return FOLDER / f"{self.name}.log"

    @property
    def _file(self) -> Path:
        return FOLDER / f"{self.name}.json"

    def process(self) -> psutil.Process | None:
        """The process, if it is alive and the one that was started: ids are used again."""
        try:
            saved = json.loads(self._file.read_text(encoding="utf-8"))
            process = psutil.Process(saved["pid"])
            is_ours = process.create_time() == saved["created"]
            return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
            return None

    def is_alive(self) -> bool:
        """Whether its process is."""
        return self.process() is not None

    def start(self, command: list[str], extra: dict[str, str]) -> None:
        """Start it in a session of its own."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                env=environment() | extra,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        saved = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(saved), encoding="utf-8")
        partial.rename(self._file)
        say(f"{self.name} started, process {process.pid}, log {self.log}")

    def end_children(self) -> None:
        """SIGTERM to what it started, and wait for that to end; it sees how, and can tell.

        Raises:
            FlowError: Something is still there after a minute.
        """
        process = self.process()
        children = process.children() if process is not None else []
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        _, alive = psutil.wait_procs(children, timeout=CHILDREN_WAIT_S)
        if alive:
            pids = ", ".join(str(child.pid) for child in alive)
            raise FlowError(
                f"{self.name}: process {pids} does not end: look at it, or `kill -9 {pids}`"
            )

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to its group after twenty seconds."""
        process = self.process()
        if process is None:
            self._file.unlink(missing_ok=True)
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WAIT_S)
        except psutil.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_WAIT_S)
        self._file.unlink(missing_ok=True)
        say(f"{self.name} stopped")

    def why_down(self) -> str:
        """The end of its log, unless it was stopped and nobody need wonder."""
        if not self._file.exists():
            return "stopped" if self.log.exists() else "never started"
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'it ended without a word'} ({self.log})"
