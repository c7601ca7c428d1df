"""The schedule that is asked for, before anything is served."""

import pytest

from flows.errors import FlowError
from flows.plan.cron import overlap, shortest_gap_s


@pytest.mark.parametrize(
    ("cron", "seconds"),
    [("*/7 * * * *", 4 * 60), ("0 3 * * *", 24 * 3600), ("0 3 1 * *", 28 * 24 * 3600)],
)
def test_the_shortest_gap_is_that_of_the_nearest_two_runs(cron: str, seconds: float) -> None:
    """After minute 56 comes minute 0; after February comes March."""
    assert shortest_gap_s(cron, "UTC") == seconds


@pytest.mark.parametrize(
    ("cron", "timezone"), [("0 3 1 * mon#9", "UTC"), ("0 3 1 * *", "Mars/Nowhere")]
)
def test_what_is_no_schedule_is_told_with_an_example(cron: str, timezone: str) -> None:
    with pytest.raises(FlowError, match="is no schedule: expected five fields such as '0 3 1") as e:
        shortest_gap_s(cron, timezone)
    assert cron in str(e.value)


@pytest.mark.parametrize("cron", ["monthly", "0 3 1 *", "*/5 * * * * *", "0 0 3 1 * * 2030", ""])
def test_a_line_that_does_not_have_five_fields_is_refused(cron: str) -> None:
    """Six of them would be a run every second."""
    with pytest.raises(FlowError, match=rf"has {len(cron.split())} fields, a schedule has 5") as e:
        shortest_gap_s(cron, "UTC")
    assert repr(cron) in str(e.value)


def test_a_name_for_a_schedule_is_one() -> None:
    assert shortest_gap_s("@monthly", "UTC") == 28 * 24 * 3600


def test_runs_longer_than_the_gap_are_warned_of() -> None:
    assert overlap(3600.0, 3599.0) is None
    text = overlap(3600.0, 7200.0)
    assert text is not None
    assert "every 60 min, but the stages last took 120 min" in text
