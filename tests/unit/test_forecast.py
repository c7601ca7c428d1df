"""What a dry run foretells."""

import json
from pathlib import Path

import pytest

from flows.plan.dag import Stage
from flows.plan.forecast import FORCED, Expected, forecast, forecast_rows, total
from tasks.params.load import Cost

FREE = Cost(
    machine_hour=None, gpu_hour=None, million_prompt_tokens=None, million_completion_tokens=None,
    currency="USD",
)  # fmt: skip

STAGES = [
    Stage("ingest", (), ()),
    Stage("baseline", ("ingest",), ()),
    Stage("pretrain", ("ingest",), ()),
    Stage("merge", ("pretrain",), ()),
    Stage("report", ("merge", "baseline"), ()),
]


@pytest.fixture
def timings(tmp_path: Path) -> Path:
    for stage, seconds in (("pretrain", 90.0), ("merge", 30.0), ("ingest", 7.0)):
        record = {"stage": stage, "wall_s": seconds}
        record |= {"gpu_s": 360.0} if stage == "pretrain" else {}
        (tmp_path / f"{stage}.json").write_text(json.dumps(record))
    (tmp_path / "report.json").write_text("{")
    return tmp_path


def test_a_change_runs_its_stage_and_perhaps_all_that_follow(timings: Path) -> None:
    found = forecast(STAGES, {"pretrain": "changed params: max_steps modified"}, set(), timings)
    assert found == [
        Expected("ingest", None, False, 7.0, 0.0),
        Expected("baseline", None, False, None, 0.0),
        Expected("pretrain", "changed params: max_steps modified", True, 90.0, 360.0),
        Expected("merge", "after pretrain", False, 30.0, 0.0),
        Expected("report", "after merge", False, None, 0.0),
    ]
    assert [row["would"] for row in forecast_rows(found)] == [
        "be skipped",
        "be skipped",
        "run",
        "run if its inputs change",
        "run if its inputs change",
    ]
    assert total(found, FREE) == (
        "3 of 5 stages would run or might; last time they took 2.0 min one after another, "
        "without 1 that no time is known of"
    )


@pytest.mark.parametrize(
    ("machine", "gpu", "price"), [(3.0, None, "0.10"), (None, 2.0, "0.20"), (3.0, 2.0, "0.30")]
)
def test_a_price_is_that_of_machine_and_gpus(
    timings: Path, machine: float | None, gpu: float | None, price: str
) -> None:
    found = forecast(STAGES, {"pretrain": "changed"}, set(), timings)
    cost = FREE.model_copy(update={"machine_hour": machine, "gpu_hour": gpu, "currency": "EUR"})
    assert f"took 2.0 min one after another and cost {price} EUR, without" in total(found, cost)


def test_a_forced_stage_runs_without_a_change(timings: Path) -> None:
    found = forecast(STAGES, {}, {"merge"}, timings)
    assert [each.reason for each in found] == [None, None, None, FORCED, "after merge"]


def test_nothing_to_do_is_said(timings: Path) -> None:
    assert total(forecast(STAGES, {}, set(), timings), FREE) == (
        "every stage is up to date: nothing would run"
    )


def test_a_long_reason_is_cut_for_the_table() -> None:
    [row] = forecast_rows([Expected("ingest", "changed deps: " + "a, " * 100, True, None, 0.0)])
    assert len(row["why"]) == 120
    assert row["why"].endswith("…")
