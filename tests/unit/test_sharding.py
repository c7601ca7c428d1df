"""Weights shared by the processes of a team: trained, saved and resumed like whole ones."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from model.training.step_log import read_records
from tests.unit.teams import start_team
from tests.unit.test_trainer import table_of

pytestmark = pytest.mark.slow

FORMS = {"plain": False, "adapters": True}
"""Whether adapters are trained and activations computed again."""


@pytest.fixture(scope="module")
def trained(
    pico_folder: Path, pico_texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Trainings on two processes: whole weights, shared ones, and shared ones broken off."""
    folder = tmp_path_factory.mktemp("sharding")
    pq.write_table(table_of(pico_texts, [0, 1, 2, 3] * 5), folder / "table.parquet")
    cases = []
    for form, adapters in FORMS.items():
        for name, shared in (("whole", False), ("shared", True)):
            cases.append({"name": f"{name}-{form}", "shared": shared, "adapters": adapters})
        broken = {"name": f"broken-{form}", "shared": True, "adapters": adapters}
        cases += [broken | {"stop_after": 5}, broken]
    moved = {"name": "moved", "adapters": False}
    cases += [moved | {"shared": True, "stop_after": 5}, moved | {"shared": False}]
    arguments = [str(pico_folder), str(folder / "table.parquet"), str(folder), json.dumps(cases)]
    processes = start_team(2, "tests.unit.sharding_worker", *arguments)
    assert [process.wait(400) for process in processes] == [0, 0]
    return folder


def result(folder: Path) -> tuple[list[float], dict[str, Tensor]]:
    losses = [record.loss for record in read_records(folder / "training.jsonl")]
    return losses, torch.load(folder / "weights.pt")


@pytest.mark.parametrize("form", FORMS)
def test_a_training_with_shared_weights_is_the_one_with_whole_ones(
    form: str, trained: Path
) -> None:
    losses, weights = result(trained / f"whole-{form}")
    got_losses, got = result(trained / f"shared-{form}")
    assert got_losses == pytest.approx(losses, rel=1e-4)
    assert got.keys() == weights.keys()
    for name, weight in got.items():
        assert type(weight) is Tensor
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_a_broken_training_with_shared_weights_resumes_exactly(form: str, trained: Path) -> None:
    """It broke off after step 5, its last checkpoint is of step 3."""
    losses, weights = result(trained / f"shared-{form}")
    got_losses, got = result(trained / f"broken-{form}")
    assert got_losses == losses
    for name, weight in got.items():
        assert torch.equal(weight, weights[name]), name


def test_a_training_with_shared_weights_goes_on_with_whole_ones(trained: Path) -> None:
    """As on fewer GPUs; moments are found by the names of their parameters."""
    losses, weights = result(trained / "whole-plain")
    got_losses, got = result(trained / "moved")
    assert got_losses == pytest.approx(losses, rel=1e-4)
    for name, weight in got.items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-3)


def test_each_process_holds_half_of_the_decoder(trained: Path) -> None:
    for rank in (0, 1):
        held, every = json.loads((trained / f"held-{rank}.json").read_text())
        assert held == pytest.approx(every / 2, rel=0.01)
