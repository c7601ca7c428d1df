"""Outputs that params.yaml no longer names: removed by the flow, refused by the stages."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.checkout.leftovers import remove_leftovers
from tasks.contract.stage import StageError
from tasks.gate import judge_candidate
from tasks.merge.__main__ import merge
from tasks.params.load import Params, load_params
from tasks.report.__main__ import write_report

SAMPLE = Path(__file__).parents[2] / "infra/profiles/sample.yaml"
NAMED = ("artifacts/multitask/balanced/model", "artifacts/evaluate/final")
STRANGERS = ("artifacts/multitask/old/model", "artifacts/evaluate/multitask-old")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A checkout whose profile had one more variant, which was evaluated."""
    monkeypatch.chdir(tmp_path)
    for folder in (*NAMED, *STRANGERS):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "file").write_text("x")
    return load_params(SAMPLE)


def dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_what_no_variant_and_no_rung_is_called_goes_and_is_told(params: Params) -> None:
    told = remove_leftovers(params)
    assert [line.split(":")[0] for line in told] == [
        "removed artifacts/evaluate/multitask-old",
        "removed artifacts/multitask/old",
    ]
    assert all(Path(folder).is_dir() for folder in NAMED)
    assert params.leftovers() == []
    assert remove_leftovers(params) == []


def test_pieces_of_a_killed_stage_go_and_those_of_a_living_one_stay(params: Params) -> None:
    remove_leftovers(params)
    dead, alive = (
        Path(f"artifacts/evaluate/.final.partial-{pid}") for pid in (dead_process(), os.getpid())
    )
    dead.mkdir()
    alive.mkdir()
    remove_leftovers(params)
    assert not dead.exists()
    assert alive.exists()


@pytest.mark.parametrize("stage", [merge, judge_candidate, write_report])
def test_a_stage_that_would_have_dvc_record_them_refuses(
    params: Params, stage: Callable[[Params], None]
) -> None:
    """`dvc repro` removes nothing; a clone without these folders would run the stage again."""
    with pytest.raises(StageError, match=r"rm -r artifacts/evaluate/\S+ artifacts/multitask/old$"):
        stage(params)
    assert {path.name for path in Path("artifacts").iterdir()} == {"evaluate", "multitask"}


def test_a_checkout_without_artifacts_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_params(SAMPLE).leftovers() == []
