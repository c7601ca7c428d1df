"""What is kept of a retraining."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.plan.schedule import Outcome
from flows.show import history
from flows.show.history import Retraining
from tasks.params.load import Params, load_params

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
BEGAN = datetime(2026, 3, 1, 3, 0, 5, tzinfo=UTC)
REPORT = Outcome("report", "stage", "Completed", 2.0, "")
SKIPPED = Outcome("ingest", "stage", "Skipped", 0.0, "")
PUBLISH = Outcome("publish", "hook", "Completed", 1.0, "")
LADDER = [
    {"rung": "random", "mean": 0.1, "tasks": {}},
    {"rung": "final", "mean": 0.7, "tasks": {}},
]


@pytest.fixture
def params() -> Params:
    return load_params(PROFILE)


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("artifacts/report/ladder.json", LADDER),
        ("artifacts/gate/decision.json", {"candidate": {"rung": "soup", "mean": 0.668}}),
        (".samovar/published.json", {"is_new": True, "version": "v0003-ab"}),
    ):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text(json.dumps(content))
    return tmp_path


def test_a_run_that_published_names_the_version_and_its_mean() -> None:
    """That of what was judged and published, not of the rung the report compares with."""
    outcomes = [SKIPPED, REPORT, PUBLISH]
    assert history.describe(BEGAN, 90.04, outcomes, None) == Retraining(
        "2026-03-01 03:00:05", 90.0, 1, 0.668, "published v0003-ab"
    )


def test_a_run_of_one_stage_has_no_mean_and_publishes_nothing() -> None:
    found = history.describe(BEGAN, 1.0, [SKIPPED], None)
    assert (found.ran, found.mean, found.result) == (0, None, "green, nothing new published")


def test_a_failed_run_keeps_its_cause(params: Params) -> None:
    lines = ["ERROR toy: no room", "ERROR: failed to reproduce 'merge'"]
    error = "\n".join(["merge failed with status 255; its last lines:", *lines])
    found = history.describe(BEGAN, 1.0, [], error)
    assert found.result == "failed: merge failed with status 255: ERROR toy: no room"
    assert found.ran is None, "which stages ran is not known here"
    assert history.history_rows([found], params)[0]["stages run"] == ""


def test_the_last_twenty_come_back_newest_first_without_broken_lines(params: Params) -> None:
    runs = [Retraining(f"run {number}", 60.0, 1, 0.5, "green") for number in range(25)]
    for run in runs:
        history.add(run)
    with history.FILE.open("a") as file:
        file.write('{"started": "cut o')
    assert history.last() == runs[:4:-1]
    price = params.cost.model_copy(update={"machine_hour": 6.0})
    [row] = history.history_rows(runs[:1], params.model_copy(update={"cost": price}))
    assert list(row.values()) == ["run 0", "1.0", 1, "50.0", "0.10 USD", "green"]


def test_gpus_cost_what_the_stages_that_ran_held_of_them(params: Params) -> None:
    Path("artifacts/timings").mkdir()
    for stage in ("report", "ingest"):
        record = {"stage": stage, "wall_s": 60.0, "gpu_s": 1800.0}
        Path(f"artifacts/timings/{stage}.json").write_text(json.dumps(record))
    run = history.describe(BEGAN, 60.0, [SKIPPED, REPORT], None)
    history.add(run)
    assert history.last()[0].gpu_seconds == 1800.0
    price = params.cost.model_copy(update={"gpu_hour": 4.0})
    [row] = history.history_rows([run], params.model_copy(update={"cost": price}))
    assert row["cost"] == "2.00 USD"


def test_no_run_yet_is_no_error() -> None:
    assert history.last() == []
