"""How long a stage may take to end once its leash is told to end it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.processes import leash
from tests.flows.toy import wait_until

SAVES = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("grace", "is_saved"), [("20", True), ("0.1", False)])
def test_a_stage_has_the_given_seconds_to_save(tmp_path: Path, grace: str, *, is_saved: bool):
    command = [sys.executable, leash.__file__, str(os.getpid()), sys.executable, "-c", SAVES]
    environment = os.environ | {"SAMOVAR_GRACE_S": grace}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        wait_until((tmp_path / "ready").exists, 30)
        process.send_signal(signal.SIGTERM)
    assert (tmp_path / "saved").exists() == is_saved
    assert process.returncode == (143 if is_saved else 137)


@pytest.mark.parametrize("given", ["", "soon", "-1", "1.2.3"])
def test_seconds_that_are_none_are_told(tmp_path: Path, given: str):
    command = [sys.executable, leash.__file__, str(os.getpid()), "true"]
    environment = os.environ | {"SAMOVAR_GRACE_S": given}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"SAMOVAR_GRACE_S is {given!r}: expected seconds, such as 20" in done.stderr
