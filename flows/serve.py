"""Retrains on a schedule: `python -m flows.serve --cron "0 3 1 * *"` stays up and starts the runs.

One run at a time: a run that comes while another goes on is cancelled. It ends with its terminal;
for a machine that is administered, `python -m flows.services up` does the same with a worker.
"""

import argparse
import sys
from pathlib import Path

from flows.checkout.names import checkout_name, run_tags
from flows.errors import FlowError
from flows.plan.cron import MONTHLY, check_schedule, machine_timezone
from flows.server.server import use_server
from flows.settings import use_settings
from flows.terminal import say, use_terminal


def main() -> None:
    """Serve the flow until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Retrain on a schedule, one run at a time.")
    parser.add_argument("--cron", default=MONTHLY, help="when, as cron writes it (%(default)s)")
    parser.add_argument("--timezone", help="of the cron line (this machine's)")
    arguments = parser.parse_args()
    use_settings()
    use_terminal()
    try:
        url, _ = use_server()
        # Prefect reads its settings when it is imported, here at the latest
        timezone = arguments.timezone or machine_timezone()
        warning = check_schedule(arguments.cron, timezone)
    except FlowError as error:
        sys.exit(str(error))
    if warning is not None:
        say(warning)
    say(f"retraining at {arguments.cron!r} {timezone}; watch it at {url}")
    from prefect.schedules import Cron

    from flows.run.pipeline import retrain
    from flows.server.deployment import ONE_AT_A_TIME, WAIT_HOURS

    root = Path.cwd()
    retrain.serve(
        name=checkout_name(root),
        tags=run_tags(root),
        parameters={"wait_hours": WAIT_HOURS},
        schedule=Cron(arguments.cron, timezone=timezone),
        global_limit=ONE_AT_A_TIME,
        print_starting_message=False,
    )


if __name__ == "__main__":
    main()
