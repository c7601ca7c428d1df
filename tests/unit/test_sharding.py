"""Weights shared by the processes of a team: trained, saved and resumed like whole ones."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from model.checkpoint import load_latest
from model.training.devices.sharded_checkpoint import load_tensors
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
    for shared in (True, False):
        moved = {"name": f"moved-{shared}", "adapters": False}
        cases += [moved | {"shared": shared, "stop_after": 5}, moved | {"shared": not shared}]
    full = {"name": "full", "shared": True, "adapters": False}
    cases += [full | {"full_at": 6}, full]
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


@pytest.mark.parametrize("was_shared", [True, False])
def test_a_training_goes_on_in_the_other_form(was_shared: bool, trained: Path) -> None:
    """As on fewer GPUs or more; moments are found by the names of their parameters."""
    losses, weights = result(trained / "whole-plain")
    got_losses, got = result(trained / f"moved-{was_shared}")
    assert got_losses == pytest.approx(losses, rel=1e-4)
    for name, weight in got.items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-3)


def test_each_process_holds_half_of_the_decoder(trained: Path) -> None:
    for rank in (0, 1):
        held, every = json.loads((trained / f"held-{rank}.json").read_text())
        assert held == pytest.approx(every / 2, rel=0.01)


def test_each_process_writes_its_half_of_a_checkpoint(trained: Path) -> None:
    [_, last] = sorted((trained / "shared-plain/checkpoint/steps").iterdir())
    whole = sorted((trained / "whole-plain/checkpoint/steps").iterdir())[-1]
    sizes = [file.stat().st_size for file in last.glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)
    [everything] = [file.stat().st_size for file in whole.glob("*.safetensors")]
    assert sum(sizes) == pytest.approx(everything, rel=0.1)  # each names its tensors


def test_the_shares_of_a_checkpoint_are_the_whole(trained: Path) -> None:
    """Those of one training, put together in one process, are what two wrote of whole weights."""
    for name, tensor in tensors_of(trained / "shared-plain").items():
        whole = tensors_of(trained / "whole-plain")[name]
        assert tensor.dtype == whole.dtype
        torch.testing.assert_close(tensor, whole, rtol=1e-3, atol=1e-3)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    checkpoint = load_latest(folder / "checkpoint" / "steps")
    assert checkpoint is not None
    return load_tensors(checkpoint.path, lambda _: None)


def test_a_checkpoint_without_a_share_is_left_aside(trained: Path, tmp_path: Path) -> None:
    """Its other share alone would look like a smaller tensor."""
    shutil.copytree(trained / "shared-plain/checkpoint/steps", tmp_path / "steps")
    before, last = sorted((tmp_path / "steps").iterdir())
    sorted(last.glob("*.safetensors"))[-1].unlink()
    checkpoint = load_latest(tmp_path / "steps")
    assert checkpoint is not None
    assert checkpoint.path == before


def test_a_disk_full_for_one_process_stops_all_and_loses_nothing(trained: Path) -> None:
    """Step 6 could not be saved; the next run went on from step 3."""
    for rank in (0, 1):
        assert "cannot write" in (trained / f"full/error-{rank}.txt").read_text()
    losses, weights = result(trained / "shared-plain")
    got_losses, got = result(trained / "full")
    assert got_losses == losses
    for name, weight in got.items():
        assert torch.equal(weight, weights[name]), name
