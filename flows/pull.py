"""Fetches what the run of this commit left in the store: `python -m flows.pull`."""

import argparse
import subprocess
import sys
from pathlib import Path

from flows.checkout.leftovers import remove_leftovers
from flows.checkout.remote import use_remote
from flows.errors import FlowError
from flows.processes.process import DVC, environment
from flows.terminal import say, use_terminal
from tasks.params.load import ParamsError, load_params


def main() -> None:
    """Point DVC's remote at store.url of params.yaml, then `dvc pull`; exit with its status."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.pull",
        description="Fetch data and outputs of this commit from store.url of params.yaml.",
    )
    parser.add_argument("targets", nargs="*", help="stages or .dvc files; all when none is named")
    targets = parser.parse_args().targets
    use_terminal()
    try:
        params = load_params()
        # of the version that lay here before; `dvc repro` after the pull would stop at them
        for line in remove_leftovers(params):
            say(line)
        say(f"fetching from {use_remote(Path.cwd(), params.store)}")
    except (FlowError, ParamsError) as error:
        sys.exit(str(error))
    command = [*DVC, "pull", *targets]
    sys.exit(subprocess.run(command, env=environment(), check=False).returncode)


if __name__ == "__main__":
    main()
