"""A stage ends with the DVC that started it, flow or not."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.flows.toy import git, wait_until

ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import os, pathlib, signal, sys, time
from tasks.contract.stage import die_with_parent

def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
die_with_parent()
pathlib.Path("pid.partial").write_text(str(os.getpid()))
pathlib.Path("pid.partial").rename("pid")
while True:
    time.sleep(0.1)
"""
PIPELINE = "stages:\n  train:\n    cmd: python stage.py\n    outs: [model]\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and prctl")
def test_a_stage_saves_and_ends_when_its_dvc_is_killed(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    git(tmp_path, "init", "-q")
    dvc = [sys.executable, "-m", "dvc"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # other shells than this give way to the stage, which the kernel then kills with DVC
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "SHELL": "/bin/sh"}
    subprocess.run([*dvc, "init", "-q"], cwd=tmp_path, env=environment, check=True)
    with subprocess.Popen([*dvc, "repro"], cwd=tmp_path, env=environment) as repro:
        wait_until((tmp_path / "pid").exists, 60)
        stage = int((tmp_path / "pid").read_text())
        repro.kill()
    wait_until(lambda: not psutil.pid_exists(stage), 5)
    assert (tmp_path / "saved").exists()
