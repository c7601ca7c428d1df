"""A training stage on two processes: same outputs but for rounding, nobody left behind."""

import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tasks.params import load_params
from tasks.stage import StageError
from tasks.team import joined_team
from tests.unit.training_workspace import (
    PROFILE,
    set_processes,
    start_pretrain,
    write_workspace,
)


def test_two_processes_write_what_one_writes(pico_folder: Path, tmp_path: Path) -> None:
    write_workspace(tmp_path, pico_folder)
    found = {}
    for processes in (1, 2):
        set_processes(tmp_path, processes)
        process = start_pretrain(tmp_path)
        _, output = process.communicate(timeout=200)
        assert process.returncode == 0, output
        folder = tmp_path / "artifacts" / "pretrain"
        log = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
        found[processes] = log, load_file(folder / "model" / "model.safetensors")
    assert "training on 2 processes" in output
    (log, weights), (team_log, team_weights) = found[1], found[2]
    assert [step["loss"] for step in team_log] == pytest.approx(
        [step["loss"] for step in log], rel=1e-4
    )
    for name, tensor in weights.items():
        torch.testing.assert_close(team_weights[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_killed_team_goes_on_to_the_same_steps(pico_folder: Path, tmp_path: Path) -> None:
    logs = []
    for name in ("whole", "cut"):
        folder = tmp_path / name
        folder.mkdir()
        write_workspace(folder, pico_folder, max_steps=40, checkpoint_every_steps=5)
        set_processes(folder, 2)
        process = start_pretrain(folder)
        if name == "cut":
            kill_after(12, folder, process)
            process = start_pretrain(folder)
        _, output = process.communicate(timeout=200)
        assert process.returncode == 0, output
        logs.append((folder / "artifacts" / "pretrain" / "training.jsonl").read_bytes())
    assert "resumed after step" in output
    assert logs[0] == logs[1]


def kill_after(lines: int, folder: Path, process: subprocess.Popen[str]) -> None:
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
