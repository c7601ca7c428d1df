"""Retrains the model: `python -m flows.retrain`. The flow itself is in flows/run/pipeline.py."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from flows.checkout.locks import hold_checkout
from flows.checkout.names import run_tags
from flows.errors import FlowError
from flows.plan.dag import after, changed, check_data, read_stages, select
from flows.plan.forecast import forecast, forecast_rows, total
from flows.profile import install_profile, list_profiles
from flows.server.server import OPEN_COMMAND, use_server
from flows.settings import use_settings
from flows.show.summary import as_table, show_summary
from flows.terminal import say, use_terminal
from tasks.params.load import Cost, ParamsError, load_params

PLAIN_WIDTH = 140


def main() -> None:
    """Run the flow as the command line says; exit 0 when all is green, else 1 with the reason."""
    arguments = _read_arguments()
    try:
        _retrain(arguments)
    except (FlowError, ParamsError) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the next run goes on from here")


def _retrain(arguments: argparse.Namespace) -> None:
    with hold_checkout(Path.cwd()):  # or say at once who does
        if arguments.profile:
            install_profile(arguments.profile, arguments.data)
    params = load_params()
    if arguments.dry_run:
        for path in params.leftovers():
            say(f"a run would first remove {path}, which params.yaml does not name")
        _show_forecast(arguments, params.cost)
        return
    use_settings()
    use_terminal()
    url, stays_up = use_server()
    say(f"watch it at {url}" if stays_up else f"{OPEN_COMMAND} shows this run when it has ended")
    # Prefect reads its settings when it is imported, which is why that happens here
    from prefect import tags

    from flows.run.pipeline import retrain

    with tags(*run_tags(Path.cwd())):
        outcomes = retrain(
            arguments.stages, arguments.force, arguments.publish, from_stage=arguments.from_stage
        )
    show_summary(outcomes, url if stays_up else None, _console())


def _show_forecast(arguments: argparse.Namespace, cost: Cost) -> None:
    every = read_stages()
    chosen = select(every, arguments.stages) if arguments.stages else every
    forced = {stage.name for stage in select(every, arguments.force or [])}
    if arguments.from_stage:
        forced |= after(every, arguments.from_stage)
    changes = changed()
    check_data(changes)
    expected = forecast(chosen, changes, forced)
    console = _console()
    console.print(as_table("A run would", forecast_rows(expected), {"would", "why"}))
    console.print(total(expected, cost))


def _console() -> Console:
    """A file or a pipe has no width of its own, and the tables need room."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.retrain",
        description="Bring every stage of dvc.yaml up to date and publish the model.",
        epilog="What is up to date is skipped; a stopped or failed run goes on where it was.",
    )
    add = parser.add_argument
    add("--profile", choices=list_profiles(), help="first make params.yaml a copy of it")
    add("--data", type=Path, metavar="FOLDER", help="where the profile's data folders lie")
    add("--stages", nargs="+", metavar="STAGE", help="only these, and publish nothing")
    add("--force", nargs="+", metavar="STAGE", help="run these even when nothing has changed")
    add("--from", dest="from_stage", metavar="STAGE", help="run it and all that follow it again")
    add("--dry-run", action="store_true", help="say what would run and why, and do nothing")
    add("--no-publish", dest="publish", action="store_false", help="leave the registry alone")
    arguments = parser.parse_args()
    if arguments.data and not arguments.profile:
        parser.error("--data goes with --profile; without one, edit data: in params.yaml")
    if arguments.dry_run and arguments.profile:
        parser.error(
            "--dry-run leaves params.yaml alone: install the profile first, "
            f"make profile PROFILE={arguments.profile}"
        )
    return arguments


if __name__ == "__main__":
    main()
