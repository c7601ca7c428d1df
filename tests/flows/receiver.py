"""What listens where a notification goes: a webhook and a mail server, both on loopback."""

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response


@contextlib.contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address for SAMOVAR_NOTIFY, and the JSON bodies that arrive."""
    bodies: list[dict[str, Any]] = []

    def take(request: Request) -> Response:
        bodies.append(request.get_json())
        return Response()

    with HTTPServer() as server:
        server.expect_request("/hook").respond_with_handler(take)
        yield f"json://127.0.0.1:{server.port}/hook", bodies


class _Mail(socketserver.StreamRequestHandler):
    letters: ClassVar[list[str]]

    def handle(self) -> None:
        """Just enough of RFC 5321 for one letter."""
        self._answer("220 here")
        for line in self.rfile:
            command = line.decode().strip().upper()
            if command == "DATA":
                self._answer("354 go on")
                lines = iter(lambda: self.rfile.readline().decode(), ".\r\n")
                self.letters.append("".join(lines))
            self._answer("221 bye" if command == "QUIT" else "250 OK")
            if command == "QUIT":
                return

    def _answer(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@contextlib.contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """Port of a mail server, and the letters that arrive."""

    class Handler(_Mail):
        letters: ClassVar[list[str]] = []

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    with _serving(server):
        yield server.server_address[1], Handler.letters


@contextlib.contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
