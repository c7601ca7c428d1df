"""Retrains the model: `python -m flows.retrain`. The flow itself is in flows/pipeline.py."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from flows.errors import FlowError
from flows.locks import check_checkout_is_free
from flows.profile import install_profile, list_profiles
from flows.server import use_server
from flows.settings import use_settings
from flows.summary import show_summary
from flows.terminal import say, use_terminal
from tasks.params import ParamsError, load_params

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
    check_checkout_is_free(Path.cwd())
    if arguments.profile:
        install_profile(arguments.profile, arguments.data)
    load_params()
    use_settings()
    use_terminal()
    url, stays_up = use_server()
    say(f"watch it at {url}")
    # Prefect reads its settings when it is imported, which is why that happens here
    from flows.pipeline import retrain

    outcomes = retrain(arguments.stages, arguments.force, arguments.publish)
    # a file or a pipe has no width of its own, and the ladder needs room
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    show_summary(outcomes, url if stays_up else None, Console(width=width))


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
    add("--no-publish", dest="publish", action="store_false", help="leave the registry alone")
    arguments = parser.parse_args()
    if arguments.data and not arguments.profile:
        parser.error("--data goes with --profile; without one, edit data: in params.yaml")
    return arguments


if __name__ == "__main__":
    main()
