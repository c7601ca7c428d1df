"""Retrains on a schedule: `python -m flows.serve --cron "0 3 1 * *"` stays up and starts the runs.

One run at a time, whatever the schedule says. For a machine that is administered, a work pool and
a worker do the same (docs/operations.md).
"""

import argparse
import sys

from flows.errors import FlowError
from flows.server import use_server
from flows.settings import use_settings
from flows.terminal import say, use_terminal

MONTHLY = "0 3 1 * *"
DEPLOYMENT = "scheduled"


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
    except FlowError as error:
        sys.exit(str(error))
    say(f"retraining at {arguments.cron!r} {arguments.timezone}; watch it at {url}")
    # Prefect reads its settings when it is imported, which is why that happens here
    from prefect.schedules import Cron

    from flows.pipeline import retrain

    retrain.serve(
        name=DEPLOYMENT,
        schedule=Cron(arguments.cron, timezone=arguments.timezone),
        global_limit=1,
        print_starting_message=False,
    )


if __name__ == "__main__":
    main()
