"""A Prefect server for this checkout: one that dies with the run, or one that stays, to look at.

A run without PREFECT_API_URL uses the server of `python -m flows.ui` when that is up, and otherwise
starts its own on a free loopback port; the history lies in .samovar/prefect either way.
"""

import atexit
import contextlib
import http
import os
import socket
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx

from flows.errors import FlowError
from flows.processes.process import Processes
from flows.server.database import check_database, database_settings
from flows.settings import SERVER_AUTH
from tasks.params.paths import STATE

HOST = "127.0.0.1"
EVERY_ADDRESS = {"0.0.0.0", "::"}  # noqa: S104 - names of it, for server_command to judge
START_WAIT_S = 120.0
START_POLL_S = 0.1
ANSWER_WAIT_S = 2.0
ADDRESS_FILE = STATE / "prefect" / "server.url"
OPEN_COMMAND = "python -m flows.ui"
_STARTED: set[str] = set()
"""API addresses of the servers that this process has started."""


def use_server() -> tuple[str, bool]:
    """Make PREFECT_API_URL the address of a live server.

    One given in the environment or already up for this checkout is used and left alone. Our own
    ends when this Python process exits, after Prefect's last log lines: call this before Prefect
    is imported, since exit handlers run in reverse.

    Returns:
        The address of its UI, and whether it stays up.

    Raises:
        FlowError: The server does not come up.
    """
    given = os.environ.get("PREFECT_API_URL") or running_server()
    if given:
        os.environ["PREFECT_API_URL"] = given
        return given.removesuffix("/api"), True
    server = contextlib.ExitStack()
    url = server.enter_context(start_server(free_port()))
    atexit.register(server.close)
    os.environ["PREFECT_API_URL"] = f"{url}/api"
    return url, False


def ends_with_us() -> bool:
    """Whether the server in use ends with this process: its address is no use to anybody later."""
    return os.environ.get("PREFECT_API_URL") in _STARTED


@contextlib.contextmanager
def start_server(port: int) -> Iterator[str]:
    """Run a server on `port` for the body, and end it, also when this process is killed.

    Raises:
        FlowError: Its database cannot be used, or it does not answer; the message says which.
    """
    url = f"http://{HOST}:{port}"
    _STARTED.add(f"{url}/api")
    check_database()
    log_path = ADDRESS_FILE.with_name("server.log")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    processes = Processes()
    with log_path.open("w", encoding="utf-8") as log:
        process = processes.start(server_command(HOST, port), log.fileno(), server_settings())
        try:
            deadline = time.monotonic() + START_WAIT_S
            while not is_up(f"{url}/api"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise FlowError(f"the Prefect server did not start, see {log_path}")
                time.sleep(START_POLL_S)
            ADDRESS_FILE.write_text(f"{url}/api", encoding="utf-8")
            yield url
        finally:
            ADDRESS_FILE.unlink(missing_ok=True)
            processes.close()


def server_command(host: str, port: int) -> list[str]:
    """The command that runs a server.

    Raises:
        FlowError: It would listen to other machines without asking for a password.
    """
    if not _is_loopback(host) and not os.environ.get(SERVER_AUTH):
        raise FlowError(
            f"a server on {host} without a password lets anybody on the network start programs "
            f"here: set {SERVER_AUTH} to name:password, or listen on {HOST}"
        )
    command = ["prefect", "server", "start", "--host", host, "--port", str(port)]
    # Prefect takes an empty password for one that nobody can give
    without = [] if os.environ.get(SERVER_AUTH) else ["env", "-u", SERVER_AUTH]
    return [*without, sys.executable, "-m", *command]


def reached_at(host: str) -> str:
    """Where this machine finds a server that listens on `host`, as it stands in an address."""
    if host in EVERY_ADDRESS:
        return HOST
    return f"[{host}]" if ":" in host else host


def server_settings() -> dict[str, str]:
    """What a server needs in its environment beside infra/prefect.env.

    Raises:
        FlowError: DATABASE_URL names a kind of database that it cannot use.
    """
    # the pages ask the machine and port they come from, also through a tunnel; without it they
    # ask port 4200 of the machine that the browser runs on
    return {"PREFECT_SERVER_UI_API_URL": "/api"} | database_settings()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_server() -> str:
    """Make PREFECT_API_URL the address of a server that is up; return that of its UI.

    Raises:
        FlowError: There is none.
    """
    given = os.environ.get("PREFECT_API_URL") or running_server()
    if not given:
        raise FlowError(
            "no Prefect server is up for this checkout: `make up` starts one, or set "
            "PREFECT_API_URL to the address of another"
        )
    os.environ["PREFECT_API_URL"] = given
    return given.removesuffix("/api")


def running_server() -> str | None:
    """The API address of a server that is up for this checkout."""
    if not ADDRESS_FILE.exists():
        return None
    url = ADDRESS_FILE.read_text(encoding="utf-8")
    return url if is_up(url) else None


def is_up(api_url: str) -> bool:
    """Whether a Prefect API answers here; this machine itself is asked without a proxy."""
    try:
        proxies = needs_proxies(api_url)
        answer = httpx.get(f"{api_url}/health", timeout=ANSWER_WAIT_S, trust_env=proxies)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return answer.status_code == http.HTTPStatus.OK


def needs_proxies(address: str) -> bool:
    """Whether the proxies of the environment stand before an address: not before this machine."""
    return not _is_loopback(urlsplit(address).hostname or "")


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
