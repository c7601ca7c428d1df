"""Weights shared by the processes of a team: trained, saved and resumed like whole ones."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from model.training.step_log import read_records
from tests.unit.teams import start_team
from tests.unit.test_trainer import table_of

ROWS = [0, 1, 2, 3] * 5


def run(folder: Path, model: Path, texts: list[str], **options: Any) -> dict[str, Tensor]:
    """Train on two processes; the weights of the result, none if it was stopped."""
    folder.mkdir(exist_ok=True)
    table = folder / "table.parquet"
    pq.write_table(table_of(texts, ROWS), table)
    arguments = [str(model), str(table), str(folder), json.dumps(options)]
    processes = start_team(2, "tests.unit.sharding_worker", *arguments)
    assert wait_all(processes) == [0, 0]
    weights = folder / "weights.pt"
    return torch.load(weights) if weights.exists() else {}


def wait_all(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    return [process.wait(240) for process in processes]


def losses_of(folder: Path) -> list[float]:
    return [record.loss for record in read_records(folder / "training.jsonl")]


@pytest.mark.parametrize(
    "options", [{}, {"lora": True, "activation_checkpointing": True}], ids=["plain", "adapters"]
)
def test_a_sharded_training_is_the_whole_one_and_resumes_exactly(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path, options: dict[str, bool]
) -> None:
    """Parts of 60 tokens: both passes of GradCache, with unequal numbers of parts."""
    whole, sharded, broken = (tmp_path / name for name in ("whole", "sharded", "broken"))
    expected = run(whole, pico_folder, pico_texts, shard_weights=False, **options)
    got = run(sharded, pico_folder, pico_texts, shard_weights=True, **options)
    assert losses_of(sharded) == pytest.approx(losses_of(whole), rel=1e-4)
    assert got.keys() == expected.keys()
    for name, weight in got.items():
        assert type(weight) is Tensor
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-3)
    for rank in (0, 1):
        held, every = json.loads((sharded / f"held-{rank}.json").read_text())
        assert held == pytest.approx(every / 2, rel=0.01)
    assert not run(broken, pico_folder, pico_texts, shard_weights=True, stop_after=5, **options)
    resumed = run(broken, pico_folder, pico_texts, shard_weights=True, **options)
    assert losses_of(broken) == losses_of(sharded)
    for name, weight in resumed.items():
        assert torch.equal(weight, got[name]), name
