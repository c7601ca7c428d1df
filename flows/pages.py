"""Serves the pages of the last run to browsers: `python -m flows.pages`, which `make up` starts.

It listens on loopback alone, asks for the name and password of the Prefect server, and gives out
the report and the data docs, nothing else of the artifacts.
"""

import argparse
import hmac
import http
import os
from base64 import b64encode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from flows.processes.background import FOLDER, Service
from flows.server.server import HOST
from flows.settings import SERVER_AUTH
from tasks.params.paths import ARTIFACTS, DATA_DOCS, REPORT

SERVICE = Service("pages")
ADDRESS_FILE = FOLDER / "pages.url"
SHOWN = tuple(page.parent.relative_to(ARTIFACTS) for page in (REPORT, DATA_DOCS))


class Pages(SimpleHTTPRequestHandler):
    """Answers who knows the password with a file of `SHOWN`."""

    def send_head(self) -> BytesIO | BinaryIO | None:
        """The beginning of an answer, for GET and HEAD."""
        asked = Path(self.translate_path(self.path)).relative_to(self.directory)
        is_shown = any(asked.is_relative_to(folder) for folder in SHOWN)
        if self._knows_password() and is_shown and asked.suffix:
            return super().send_head()
        if self._knows_password():
            self.send_error(http.HTTPStatus.NOT_FOUND)
            return None
        self.send_response(http.HTTPStatus.UNAUTHORIZED)
        self.send_header("WWW-Authenticate", 'Basic realm="Samovar"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def end_headers(self) -> None:
        """Have browsers ask again: the next run writes the same pages."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def _knows_password(self) -> bool:
        auth = os.environ.get(SERVER_AUTH)
        if not auth:
            return True
        wanted = f"Basic {b64encode(auth.encode()).decode()}"
        given = self.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode(), wanted.encode())


def open_server(port: int) -> ThreadingHTTPServer:
    """Listen on `port`, or on another where it is taken."""
    answer = partial(Pages, directory=str(ARTIFACTS))
    try:
        return ThreadingHTTPServer((HOST, port), answer)
    except OSError:
        return ThreadingHTTPServer((HOST, 0), answer)


def served_at() -> str | None:
    """Where the pages are served for this checkout now."""
    if not (SERVICE.is_alive() and ADDRESS_FILE.exists()):
        return None
    return ADDRESS_FILE.read_text(encoding="utf-8") or None


def address_of(page: Path) -> str | None:
    """Where a browser finds `page`, a file below artifacts; None where it is not served."""
    root = served_at()
    return root and f"{root}/{page.relative_to(ARTIFACTS).as_posix()}"


def main() -> None:
    """Serve until it is told to end."""
    parser = argparse.ArgumentParser(description="Serve the report of the last run on loopback.")
    parser.add_argument("--port", type=int, required=True, help="another if it is taken")
    with open_server(parser.parse_args().port) as server:
        ADDRESS_FILE.write_text(f"http://{HOST}:{server.server_port}", encoding="utf-8")
        server.serve_forever()


if __name__ == "__main__":
    main()
