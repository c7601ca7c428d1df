"""Says that new data are there, which starts a retraining: `python -m flows.arrived s3://...`.

For whoever puts the data there. `python -m flows.services up` has made the deployment that listens:
that of this checkout, or of the one that SAMOVAR_CHECKOUT names.
"""

import argparse
import sys
from pathlib import Path

from flows.checkout.names import checkout_name
from flows.errors import FlowError
from flows.server.server import require_server
from flows.settings import use_settings
from flows.terminal import say, use_terminal


def main() -> None:
    """Emit the event; exit 1 without a server."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.arrived", description="Say that new data are there."
    )
    parser.add_argument("source", nargs="?", default="data", help="where, for the record")
    source = parser.parse_args().source
    use_settings()
    use_terminal()
    try:
        url = require_server()
    except FlowError as error:
        sys.exit(str(error))
    # Prefect reads its settings when it is imported, which is why that happens here
    from flows.server.deployment import tell_arrival

    name = checkout_name(Path.cwd())
    tell_arrival(source, name)
    say(f"told {url}: new data at {source}, for {name}")


if __name__ == "__main__":
    main()
