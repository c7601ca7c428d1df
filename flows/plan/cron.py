"""What a cron line means for a retraining: how often, and whether a run fits in between."""

import asyncio
import itertools

import tzlocal

from flows.errors import FlowError
from flows.plan.dag import read_stages
from flows.plan.forecast import forecast

MONTHLY = "0 3 1 * *"
FIELDS = 5
DATES_LOOKED_AT = 60


def check_schedule(cron: str, timezone: str) -> str | None:
    """A warning, if a run that changes everything would take longer than the schedule gives it.

    Raises:
        FlowError: It is no schedule, or the time zone has no such name.
    """
    gap_s = shortest_gap_s(cron, timezone)
    return overlap(gap_s, sum(each.seconds or 0.0 for each in forecast(read_stages(), {}, set())))


def machine_timezone() -> str:
    """The name of this machine's time zone, in which `03:00` is what its people take it for.

    Raises:
        FlowError: The machine does not say.
    """
    try:
        return tzlocal.get_localzone_name()
    except (LookupError, ValueError, OSError) as error:
        raise FlowError(
            f"the time zone of this machine is not known ({error}): say --timezone, such as UTC"
        ) from error


def shortest_gap_s(cron: str, timezone: str) -> float:
    """Seconds between two runs of the schedule that lie nearest.

    Raises:
        FlowError: It is no schedule, or the time zone has no such name.
    """
    from prefect.server.schemas.schedules import CronSchedule

    given = cron.split()
    # croniter would read a sixth as seconds, and the line as "every second" at worst
    if len(given) != FIELDS and not cron.startswith("@"):
        raise FlowError(
            f"--cron {cron!r} has {len(given)} fields, a schedule has {FIELDS}: minute, hour, day, "
            f"month, weekday, such as {MONTHLY!r}; leave seconds and years out"
        )
    try:
        schedule = CronSchedule(cron=cron, timezone=timezone)
        dates = asyncio.run(schedule.get_dates(DATES_LOOKED_AT))
    except ValueError as error:
        raise FlowError(
            f"--cron {cron!r} --timezone {timezone!r} is no schedule: expected five fields such as "
            f"{MONTHLY!r}, and a name such as Europe/Moscow ({error})"
        ) from error
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(dates)]
    return min(gaps, default=float("inf"))


def overlap(gap_s: float, last_run_s: float) -> str | None:
    """A warning, if a run that changes everything would take longer than the schedule gives it."""
    if last_run_s <= gap_s:
        return None
    return (
        f"warning: the schedule comes round every {gap_s / 60:.0f} min, but the stages last took "
        f"{last_run_s / 60:.0f} min one after another: runs that come meanwhile are cancelled"
    )
