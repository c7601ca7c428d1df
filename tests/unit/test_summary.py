import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from flows.plan.schedule import Outcome
from flows.show.summary import show_summary

LADDER = [
    {"rung": "random", "mean": 0.231, "tasks": {"RiaNews": 0.05, "STS": 0.4}},
    {"rung": "final", "mean": 0.5336, "tasks": {"RiaNews": 0.62, "STS": None}},
]


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def shown(*outcomes: Outcome, ui_url: str | None = None) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_summary(list(outcomes), ui_url, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


SKIPPED = Outcome("ingest", "stage", "Skipped", 0.0, "")
RAN = Outcome("merge", "stage", "Completed", 74.26, "")


def test_nothing_to_do_is_said_first():
    assert shown(SKIPPED).startswith("every stage is up to date")


def test_hook_that_always_runs_does_not_hide_that_nothing_was_to_do():
    publish = Outcome("publish", "hook", "Completed", 1.0, "")
    assert shown(SKIPPED, publish).startswith("every stage is up to date")


def test_each_stage_stands_with_state_and_seconds():
    text = shown(SKIPPED, RAN)
    assert "every stage is up to date" not in text
    assert [cell.strip() for cell in text.splitlines()[-3].split("│")[1:4]] == [
        "merge",
        "ran",
        "74.3",
    ]


def test_ladder_is_printed_in_points(checkout):
    write(checkout / "artifacts/report/ladder.json", json.dumps(LADDER))
    text = shown(RAN)
    assert "┃ score   ┃ random ┃ final ┃" in text
    assert "│ mean    │   23.1 │  53.4 │" in text
    assert "│ STS     │   40.0 │       │" in text


def test_published_version_is_the_one_to_load(checkout):
    (checkout / "store/registry/v1").mkdir(parents=True)
    write(checkout / ".samovar/published.json", json.dumps({"address": "store/registry/v1"}))
    assert 'SentenceTransformer("store/registry/v1")' in shown(RAN)


@pytest.mark.parametrize("published", [{"version": None}, {"address": "s3://bucket/registry/v1"}])
def test_without_a_local_version_the_model_of_the_run_is_the_one_to_load(checkout, published):
    (checkout / "artifacts/merge/model").mkdir(parents=True)
    write(checkout / ".samovar/published.json", json.dumps(published))
    assert 'SentenceTransformer("artifacts/merge/model")' in shown(RAN)


def test_way_to_the_ui_is_an_address_or_a_command():
    assert "http://127.0.0.1:1" in shown(RAN, ui_url="http://127.0.0.1:1")
    assert "python -m flows.ui" in shown(RAN)


def test_the_report_has_an_address_where_it_is_served_and_a_path_elsewhere(checkout, monkeypatch):
    write(checkout / "artifacts/report/index.html", "")
    assert f"Report:     {checkout}/artifacts/report/index.html" in shown(RAN)
    monkeypatch.setattr("flows.pages.served_at", lambda: "http://127.0.0.1:4201")
    assert "Report:     http://127.0.0.1:4201/report/index.html" in shown(RAN)
