"""Runs are told apart by their names."""

from datetime import UTC, datetime

import pytest

from flows.run.name import name_of

BEGAN = datetime(2026, 11, 28, 9, 30, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "retrain 2026-11-28 09:30"),
        ({"stages": None, "force": None, "dry_run": False}, "retrain 2026-11-28 09:30"),
        ({"dry_run": True}, "dry run 2026-11-28 09:30"),
        ({"profile": "sample"}, "retrain 2026-11-28 09:30 profile sample"),
        (
            {"stages": ["ingest", "merge"], "force": ["merge"]},
            "retrain 2026-11-28 09:30 only ingest, merge forced merge",
        ),
        ({"from_stage": "merge"}, "retrain 2026-11-28 09:30 from merge"),
    ],
)
def test_a_name_says_what_was_asked_for_and_when(parameters: dict, name: str) -> None:
    assert name_of(parameters, BEGAN) == name
