"""Retrains on a schedule: `python -m flows.serve --cron "0 3 1 * *"` stays up and starts the runs.

One run at a time: a run that comes while another goes on is cancelled. For a machine that is
administered, a work pool and a worker do the same (docs/operations.md).
"""

import argparse
import asyncio
import itertools
import sys

from flows.dag import read_stages
from flows.errors import FlowError
from flows.forecast import forecast
from flows.server import use_server
from flows.settings import use_settings
from flows.terminal import say, use_terminal

MONTHLY = "0 3 1 * *"
DEPLOYMENT = "scheduled"
DATES_LOOKED_AT = 60


def main() -> None:
    """Serve the flow until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Retrain on a schedule, one run at a time.")
    parser.add_argument("--cron", default=MONTHLY, help="when, as cron writes it (%(default)s)")
    parser.add_argument("--timezone", default="UTC", help="of the cron line (%(default)s)")
    arguments = parser.parse_args()
    use_settings()
    use_terminal()
    try:
        url, _ = use_server()
        # Prefect reads its settings when it is imported, here at the latest
        warning = overlap(shortest_gap_s(arguments.cron, arguments.timezone), _last_run_s())
    except FlowError as error:
        sys.exit(str(error))
    if warning is not None:
        say(warning)
    say(f"retraining at {arguments.cron!r} {arguments.timezone}; watch it at {url}")
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.schedules import Cron

    from flows.pipeline import retrain

    retrain.serve(
        name=DEPLOYMENT,
        schedule=Cron(arguments.cron, timezone=arguments.timezone),
        global_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        print_starting_message=False,
    )


def shortest_gap_s(cron: str, timezone: str) -> float:
    """Seconds between two runs of the schedule that lie nearest.

    Raises:
        FlowError: It is no schedule, or the time zone has no such name.
    """
    from prefect.server.schemas.schedules import CronSchedule

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


def _last_run_s() -> float:
    return sum(each.seconds or 0.0 for each in forecast(read_stages(), {}, set()))


if __name__ == "__main__":
    main()
