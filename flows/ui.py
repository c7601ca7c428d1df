"""Shows the runs of this checkout, past and present, in Prefect's UI: `python -m flows.ui`."""

import argparse
import logging
import sys
import threading

from flows.errors import FlowError
from flows.server.server import running_server, start_server
from flows.settings import login_hint, use_settings

PORT = 4200

logger = logging.getLogger(__name__)


def main() -> None:
    """Keep a server up until Ctrl-C; runs started meanwhile use it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description="Show the runs of this checkout in Prefect's UI.")
    parser.add_argument("--port", type=int, default=PORT, help="port on 127.0.0.1 (%(default)s)")
    port = parser.parse_args().port
    use_settings()
    up = running_server()
    if up:
        logger.info("already up: %s", up.removesuffix("/api"))
        return
    try:
        with start_server(port) as url:
            logger.info("the runs of this checkout are shown at %s (Ctrl-C ends it)", url)
            logger.info("%s", login_hint())
            threading.Event().wait()
    except KeyboardInterrupt:
        return
    except FlowError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
