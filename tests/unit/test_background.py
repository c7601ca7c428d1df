"""Processes that outlive the terminal."""

import sys
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
