"""A training stage on two processes: same outputs but for rounding, nobody left behind."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tasks.contract.stage import StageError
from tasks.params.load import load_params
from tasks.training.team import joined_team
from tests.fork_server import Forked
from tests.unit.training_workspace import (
    PROFILE,
    set_processes,
    start_pretrain,
    write_workspace,
)

pytestmark = pytest.mark.slow

LOG = "training.jsonl"
STEPS = {"max_steps": 40, "checkpoint_every_steps": 5}


def train_on(processes: int, folder: Path, model: Path, *, kill_at: int | None = None) -> str:
    """Train in `folder`, if wanted with a SIGKILL and a second start; what was logged last."""
    write_workspace(folder, model, **STEPS)
    set_processes(folder, processes)
    process = start_pretrain(folder)
    if kill_at is not None:
        kill_after(kill_at, folder, process)
        process = start_pretrain(folder)
    _, output = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def of_two(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of an unbroken training on two processes."""
    folder = tmp_path_factory.mktemp("two")
    assert "training on 2 processes" in train_on(2, folder, pico_folder)
    return folder / "artifacts" / "pretrain"


def test_two_processes_write_what_one_writes(
    of_two: Path, pico_folder: Path, tmp_path: Path
) -> None:
    train_on(1, tmp_path, pico_folder)
    folders = (tmp_path / "artifacts" / "pretrain", of_two)
    alone, together = (
        [json.loads(line)["loss"] for line in (folder / LOG).read_text().splitlines()]
        for folder in folders
    )
    assert together == pytest.approx(alone, rel=1e-4)
    weights, team_weights = (
        load_file(folder / "model" / "model.safetensors") for folder in folders
    )
    for name, tensor in weights.items():
        torch.testing.assert_close(team_weights[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_killed_team_goes_on_to_the_same_steps(
    of_two: Path, pico_folder: Path, tmp_path: Path
) -> None:
    output = train_on(2, tmp_path, pico_folder, kill_at=12)
    assert "resumed after step" in output
    log = tmp_path / "artifacts" / "pretrain" / LOG
    assert log.read_bytes() == (of_two / LOG).read_bytes()


def kill_after(lines: int, folder: Path, process: Forked) -> None:
    """SIGKILL the leading process once its log holds this many lines."""
    deadline, tick = time.monotonic() + 100, threading.Event()
    while process.poll() is None and time.monotonic() < deadline:
        logs = list((folder / ".samovar" / "checkpoints").glob("pretrain/*/training.jsonl"))
        if logs and logs[0].read_bytes().count(b"\n") >= lines:
            process.kill()
            break
        tick.wait(0.002)
    assert process.wait(60) == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()


@pytest.mark.parametrize("victim", ["leader", "other"])
def test_when_one_process_is_killed_none_is_left(
    victim: str, pico_folder: Path, tmp_path: Path
) -> None:
    write_workspace(tmp_path, pico_folder, max_steps=100_000, warmup_steps=1)
    set_processes(tmp_path, 2)
    process = start_pretrain(tmp_path)
    family = psutil.Process(process.pid)
    assert process.stderr is not None
    while "step " not in process.stderr.readline():
        assert process.poll() is None
    [other] = family.children()
    (family if victim == "leader" else other).send_signal(signal.SIGKILL)
    process.stderr.close()
    process.wait(60)
    deadline = time.monotonic() + 10
    while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the other process lives on"
    assert not (tmp_path / "artifacts" / "pretrain").exists()


def test_a_process_that_waits_for_one_that_failed_ends_too() -> None:
    command = [sys.executable, "-m", "tests.unit.stuck_team"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert "a process of this training failed, see above; the others end with it" in done.stderr


def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    compute = load_params(PROFILE).compute.model_copy(update={"processes": 4})
    with (
        pytest.raises(StageError, match="processes is 4, but torch sees 2 GPUs"),
        joined_team(compute, torch.device("cuda")),
    ):
        pass
