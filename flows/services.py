"""Server, worker, report and S3 of one machine, without Docker: `python -m flows.services ACTION`.

`up` starts what is not up and leaves the rest alone, so it may be run again at any time, from a
unit of systemd or from cron. Each service is a process of its own that outlives the terminal; its
process id and log lie in .samovar/services.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from flows import pages
from flows.checkout.locks import check_checkout_is_free
from flows.checkout.names import checkout_name
from flows.errors import FlowError
from flows.plan.cron import MONTHLY, check_schedule, machine_timezone
from flows.processes.background import Service
from flows.processes.process import environment
from flows.server.database import check_database
from flows.server.server import (
    ADDRESS_FILE,
    HOST,
    is_up,
    reached_at,
    running_server,
    server_command,
    server_settings,
)
from flows.settings import client_auth, login_hint, use_settings
from flows.show.summary import as_table
from flows.terminal import say, use_terminal
from tasks.params.load import ParamsError, load_params
from tasks.params.paths import REPORT, STATE

S3_SCRIPT, S3_STATE = Path("infra/s3/server.sh"), STATE / "s3"
PORT = 4200
START_WAIT_S, POLL_S = 120.0, 0.2


def main() -> None:
    """Start, stop or look at the services; exit 1 when something is not as asked."""
    arguments = _read_arguments()
    use_settings()
    use_terminal()
    try:
        ACTIONS[arguments.action](arguments)
    except (FlowError, ParamsError) as error:
        sys.exit(str(error))


def up(arguments: argparse.Namespace) -> None:
    """Start what is not up, and tell the server what to do when.

    Raises:
        FlowError: A service does not come up; the message names its log. Or PREFECT_API_URL names
            another server.
    """
    if "PREFECT_API_URL" in os.environ:
        raise FlowError(
            f"PREFECT_API_URL is {os.environ['PREFECT_API_URL']}, but `up` starts a server of this "
            "machine: unset it, or say `python -m flows.services work` to be a worker of that one"
        )
    server = Service("server")
    url = f"http://{reached_at(arguments.host)}:{arguments.port}"
    if server.is_alive() and ADDRESS_FILE.exists():
        url = ADDRESS_FILE.read_text(encoding="utf-8").removesuffix("/api")
    # Prefect reads its settings when it is imported, here at the earliest
    os.environ["PREFECT_API_URL"] = f"{url}/api"
    _check_schedule(arguments)
    endpoint = _local_endpoint()
    if endpoint is not None and not _answers(endpoint):
        _start_s3(endpoint)
    if not server.is_alive():
        _start_server(server, url, server_command(arguments.host, arguments.port))
    _register(arguments)
    if not pages.SERVICE.is_alive():
        _start_pages((urlsplit(url).port or arguments.port) + 1)
    worker = Service("worker")
    if not worker.is_alive():
        worker.start(_worker_command(), {})
    _wait(lambda: _worker_state() == "ONLINE", worker)
    status(arguments)


def down(arguments: argparse.Namespace) -> None:
    """Stop worker, pages and server, and the S3 service if it is ours.

    Raises:
        FlowError: A run is going on and --force is not given.
    """
    if not arguments.force:
        # the worker takes its runs with it
        check_checkout_is_free(Path.cwd())
    # while the server is there to be told: a run that dies with both stays Running, its slot taken
    Service("worker").end_children()
    for service in (Service("worker"), pages.SERVICE, Service("server")):
        service.stop()
    ADDRESS_FILE.unlink(missing_ok=True)
    if S3_STATE.exists():
        _s3("stop")
    say("all services are stopped")


def work(arguments: argparse.Namespace) -> None:
    """Tell the server of PREFECT_API_URL what to do when, and become its worker.

    For containers, units of systemd and other machines than the server's.

    Raises:
        FlowError: PREFECT_API_URL is not set.
    """
    if "PREFECT_API_URL" not in os.environ:
        raise FlowError("set PREFECT_API_URL to the server that the worker belongs to")
    _check_schedule(arguments)
    command = _worker_command()
    _register(arguments)
    os.execve(command[0], command, environment())  # noqa: S606 - a program of ours, no shell


def status(_arguments: argparse.Namespace) -> None:
    """Show what is healthy.

    Raises:
        FlowError: Something is not.
    """
    rows = [
        {"service": name, "state": state, "where": where}
        for name, (state, where) in _states().items()
    ]
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(as_table("Services", rows, {"state", "where"}))
    for line in _ways_in(running_server()):
        console.print(line, soft_wrap=True, highlight=False)
    down_now = [row["service"] for row in rows if row["state"] not in {"up", "ready"}]
    if down_now:
        raise FlowError(f"not healthy: {', '.join(down_now)}; `make up` starts what is down")


def _ways_in(url: str | None) -> list[str]:
    """How a person gets to the server from here and from elsewhere, and starts a run."""
    if url is None:
        return []
    place = url.removesuffix("/api").removeprefix("http://")
    port = place.rpartition(":")[2]
    shown = (pages.served_at() or "").removeprefix("http://")
    tunnel = f"{port}:{place}" + (f" -L {shown.rpartition(':')[2]}:{shown}" if shown else "")
    return [
        f"log in:      {login_hint()}",
        f"from afar:   ssh -L {tunnel} USER@{socket.gethostname()}, there http://127.0.0.1:{port}",
        f"start a run: {run_command(url, Path.cwd())}, or in the UI: Deployments, retrain, Run",
    ]


def run_command(url: str, root: Path) -> str:
    """The line for a shell that starts a run of this checkout's deployment."""
    settings = " ".join(word for word in (f"PREFECT_API_URL={url}", client_auth()) if word)
    return f"{settings} prefect deployment run retrain/{checkout_name(root)}"


def _start_server(server: Service, url: str, command: list[str]) -> None:
    other = running_server()
    if other:
        raise FlowError(f"{other} is up for this checkout already: end `python -m flows.ui` first")
    check_database()
    server.start(command, server_settings())
    _wait(lambda: is_up(f"{url}/api"), server)
    ADDRESS_FILE.write_text(f"{url}/api", encoding="utf-8")


def _start_pages(port: int) -> None:
    pages.ADDRESS_FILE.unlink(missing_ok=True)
    pages.SERVICE.start([sys.executable, "-m", pages.__name__, "--port", str(port)], {})
    _wait(lambda: pages.served_at() is not None, pages.SERVICE)


def _check_schedule(arguments: argparse.Namespace) -> None:
    arguments.timezone = arguments.timezone or machine_timezone()
    warning = check_schedule(arguments.cron or MONTHLY, arguments.timezone)
    if warning is not None:
        say(warning)


def _register(arguments: argparse.Namespace) -> None:
    from flows.server.deployment import register

    say(f"schedule: {register(Path.cwd(), arguments.cron, arguments.timezone)}")


def _worker_command() -> list[str]:
    pool = ["--pool", checkout_name(Path.cwd()), "--type", "process", "--name", _worker_name()]
    return [sys.executable, "-m", "prefect", "worker", "start", *pool]


def _worker_name() -> str:
    return f"{socket.gethostname()}:{Path.cwd().name}"


def _worker_state() -> str:
    from flows.server.deployment import worker_state

    return worker_state(checkout_name(Path.cwd()), _worker_name())


def _states() -> dict[str, tuple[str, str]]:
    """Service to its state and where it is."""
    found: dict[str, tuple[str, str]] = {}
    url = running_server()
    found["server"] = ("down", Service("server").why_down())
    if url:
        found["server"] = ("up", url.removesuffix("/api"))
        os.environ["PREFECT_API_URL"] = url
        from flows.server.deployment import deployment_state

        found["deployment"] = deployment_state(checkout_name(Path.cwd()))
        is_online = Service("worker").is_alive() and _worker_state() == "ONLINE"
        where = str(Service("worker").log)
        found["worker"] = ("up", where) if is_online else ("down", Service("worker").why_down())
    elif Service("worker").is_alive():
        found["worker"] = ("unknown", "the server is down")
    else:
        found["worker"] = ("down", Service("worker").why_down())
    page = pages.address_of(REPORT)
    found["pages"] = ("up", page) if page else ("down", pages.SERVICE.why_down())
    endpoint = _local_endpoint()
    if endpoint is not None:
        found["S3"] = ("up" if _answers(endpoint) else "down", endpoint)
    return found


def _local_endpoint() -> str | None:
    """The S3 service of params.yaml, if it is one of this machine: nobody else will start it."""
    url = load_params().store.endpoint_url
    host = urlsplit(url).hostname if url else None
    return url if host in {HOST, "localhost"} else None


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or HOST, parts.port or 80), timeout=2):
            return True
    except OSError:
        return False


def _start_s3(endpoint: str) -> None:
    port = urlsplit(endpoint).port
    keys = {
        "S3_PORT": str(port),
        "S3_ACCESS_KEY": os.environ.get("AWS_ACCESS_KEY_ID", ""),
        "S3_SECRET_KEY": os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
    }
    _s3("start", {name: value for name, value in keys.items() if value})


def _s3(action: str, extra: dict[str, str] | None = None) -> None:
    command = [str(S3_SCRIPT), str(S3_STATE), action]
    done = subprocess.run(
        command, env=os.environ | (extra or {}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FlowError(f"the S3 service did not {action}: {done.stderr.strip()}")
    say(f"S3: {done.stdout.strip()}")


def _wait(is_ready: Callable[[], bool], service: Service) -> None:
    deadline = time.monotonic() + START_WAIT_S
    while not is_ready():
        if not service.is_alive() or time.monotonic() > deadline:
            raise FlowError(
                f"the {service.name} did not come up: {service.why_down()}. "
                "`make down` clears away what did"
            )
        time.sleep(POLL_S)


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "up": up,
    "down": down,
    "status": status,
    "work": work,
}


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.services",
        description="Server, worker, report and S3 of one machine.",
    )
    add = parser.add_argument
    add("action", choices=list(ACTIONS), help="start, stop, show what is healthy; or be a worker")
    add("--cron", help=f"when to retrain; without it as before, at first {MONTHLY!r}")
    add("--timezone", help="of --cron (this machine's)")
    add("--host", default=HOST, help="address the server listens on (%(default)s)")
    add("--port", type=int, default=PORT, help="its port (%(default)s)")
    add("--force", action="store_true", help="with down: also when a run is going on")
    arguments = parser.parse_args()
    if arguments.timezone and not arguments.cron:
        parser.error("--timezone goes with --cron: say when to retrain as well")
    return arguments


if __name__ == "__main__":
    main()
