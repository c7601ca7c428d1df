"""Processes that outlive the terminal."""

import sys
import time
from pathlib import Path

import pytest

from flows.processes.background import Service

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print("ready", flush=True)
print("the child ended with", child.wait(), flush=True)
time.sleep(300)
"""


# the service outlives who started it: nobody waits for it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_service_started_can_be_ended_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a worker lives to tell how its run ended."""
    monkeypatch.setattr("flows.processes.background.FOLDER", tmp_path)
    service = Service("worker")
    service.end_children()  # nothing was started yet
    service.start([sys.executable, "-c", PARENT], {})
    process = service.process()
    assert process is not None
    try:
        while "ready" not in service.log.read_text(encoding="utf-8"):
            assert process.is_running()
        service.end_children()
        while "the child ended with -15" not in service.log.read_text(encoding="utf-8"):
            assert process.is_running()
        assert not process.children()
    finally:
        service.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_was_stopped_is_down_without_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.processes.background.FOLDER", tmp_path)
    service = Service("server")
    assert service.why_down() == "never started"
    service.start([sys.executable, "-c", "import sys; sys.exit('trouble')"], {})
    while service.is_alive():
        time.sleep(0.05)
    assert service.why_down() == f"trouble ({service.log})"
    service.stop()
    assert service.why_down() == "stopped", "nobody asks any more what ended it"
