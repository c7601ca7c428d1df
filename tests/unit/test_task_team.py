"""A training stage on two processes: same outputs but for rounding, nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tasks.params import load_params
from tasks.records import EXAMPLE_SCHEMA, write_table
from tasks.stage import StageError
from tasks.team import joined_team

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "infra" / "profiles" / "pico.yaml"


def write_workspace(folder: Path, model: Path, **training: Any) -> None:
    rows = [
        {
            "id": f"r{row}", "task": "retrieval", "source": "titles", "lang": "ru",
            "query": f"вопрос номер {row}", "positives": [f"ответ {row} на вопрос {row * 7}"],
            "negatives": [], "negative_scores": None, "label": None, "score": None,
        }
        for row in range(40)
    ]  # fmt: skip
    write_table(
        pa.Table.from_pylist(rows, EXAMPLE_SCHEMA), folder / "artifacts" / "ingest" / "examples"
    )
    write_table(
        pa.Table.from_pylist([row | {"source": "synthetic"} for row in rows], EXAMPLE_SCHEMA),
        folder / "artifacts" / "synthesize" / "examples",
    )
    (folder / "artifacts" / "prune").mkdir()
    (folder / "artifacts" / "prune" / "model").symlink_to(model)
    content = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    content["pretrain"]["training"] |= training
    content["compute"] |= {"precision": "fp32"}
    (folder / "params.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))


def set_processes(folder: Path, processes: int) -> None:
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["compute"] |= {"device": "cpu", "threads": 1, "processes": processes}
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.pretrain"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_processes_write_what_one_writes(pico_folder: Path, tmp_path: Path) -> None:
    write_workspace(tmp_path, pico_folder)
    found = {}
    for processes in (1, 2):
        set_processes(tmp_path, processes)
        process = start(tmp_path)
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
        process = start(folder)
        if name == "cut":
            kill_after(12, folder, process)
            process = start(folder)
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
    process = start(tmp_path)
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
