"""Whether a run could start and end here: `python -m flows.check` (`make check`).

Looks at what would otherwise stop a run after hours: packages, params.yaml, the checkout, the first
rows of its data, the disk, the Prefect server, GPUs, the store and its keys. All faults in one go.
"""

import http
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from flows.checkout.fit import check_fit, reproduction_doubts
from flows.checkout.locks import check_checkout_is_free
from flows.checkout.names import checkout_name
from flows.errors import FlowError
from flows.plan.dag import changed, check_data
from flows.processes.process import environment
from flows.server.database import check_database
from flows.server.server import needs_proxies, running_server
from flows.settings import CLIENT_AUTH, use_settings
from flows.show.notify import ADDRESSES, read_addresses
from tasks.params.load import ParamsError, load_params

LOCK = Path("requirements.lock")
SERVER_WAIT_S, PROBE_WAIT_S = 3.0, 60.0
"""The whole check ends within 70 s, whatever does not answer or however busy the machine is."""
PROBES = {
    "tasks.look": ("corpora", "evaluation"),
    "tasks.probe": ("processors", "llm", "teachers", "store", "champion", "outside"),
}
"""Modules that flows/ starts and does not import, and the findings each is asked for."""
FEW_BYTES, LITTLE_BYTES = 2 * 2**30, 20 * 2**30
MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[bold red]ERROR[/]"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: str
    """ok, warning or error."""
    text: str


def main() -> None:
    """Print every finding; exit 1 if one of them would stop a run."""
    use_settings()
    console = Console(soft_wrap=True, highlight=False)
    worst = 0
    for finding in findings():
        console.print(f"{finding.name:<12} {MARKS[finding.level]}  ", end="")
        console.print(finding.text, markup=False)
        worst = max(worst, list(MARKS).index(finding.level))
    if worst == list(MARKS).index("error"):
        sys.exit("a run would fail here: see ERROR above")


def findings() -> Iterator[Finding]:
    """Every finding, as it is found; nothing that needs params.yaml when it cannot be used."""
    usable = True
    for name, check in CHECKS.items():
        if name in OF_PARAMS and not usable:
            continue
        try:
            for level, text in check():
                yield Finding(name, level, text)
        except (FlowError, ParamsError) as error:
            yield Finding(name, "error", str(error))
            usable = usable and name != "params.yaml"
    if usable:
        yield from _probes()


def system() -> Iterator[tuple[str, str]]:
    """Whether the kernel ends what a killed run leaves behind."""
    if sys.platform.startswith("linux"):
        yield "ok", "Linux"
    else:
        yield (
            "warning",
            f"{sys.platform} is not Linux, which Samovar is made for: processes of a killed run go "
            "on, end them by hand",
        )


def packages(lock: Path = LOCK) -> Iterator[tuple[str, str]]:
    """Installed versions beside those of requirements.lock."""
    pinned = dict(
        line.split("==", 1)
        for line in lock.read_text(encoding="utf-8").splitlines()
        if re.match(r"[A-Za-z0-9._-]+==", line)
    )
    differing = []
    for name, version in pinned.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        # a build for one kind of processor, 2.13.0+cpu, is the version
        if found.split("+")[0] != version.split(";")[0].strip():
            differing.append(f"{name} {found}, pinned {version}")
    if differing:
        yield "warning", f"not as in {lock}: {'; '.join(differing)}. Run `make setup`"
    else:
        yield "ok", f"{len(pinned)} packages as in {lock}"


def parameters() -> Iterator[tuple[str, str]]:
    """Whether params.yaml can be used."""
    params = load_params()
    yield "ok", f"publishes {params.publish.name}"


def checkout() -> Iterator[tuple[str, str]]:
    """Whether a run could hold the checkout, and its data are those that are recorded."""
    faults = 0
    for look in (lambda: check_checkout_is_free(Path.cwd()), lambda: check_data(changed())):
        try:
            look()
        except FlowError as error:
            faults += 1
            yield "error", str(error)
    if not faults:
        yield "ok", "free, and its .dvc files match their data"


def record() -> Iterator[tuple[str, str]]:
    """Whether the end of a run could be written, and had again from its tag."""
    params = load_params()
    check_fit(Path.cwd(), params.record)
    doubts = reproduction_doubts(Path.cwd(), params)
    for doubt in doubts:
        yield "warning", doubt
    if not doubts:
        yield "ok", "a published version can be had again from its commit"


def disk(root: Path = Path()) -> Iterator[tuple[str, str]]:
    """Free space where artifacts and DVC's cache lie."""
    free = shutil.disk_usage(root).free
    text = f"{free / 2**30:.0f} GiB free in {root.resolve()}"
    if free < FEW_BYTES:
        yield "error", f"{text}: a run needs more, free space"
    elif free < LITTLE_BYTES:
        yield "warning", f"{text}: every training keeps two checkpoints of weights and moments"
    else:
        yield "ok", text


def server() -> Iterator[tuple[str, str]]:
    """Whether the Prefect server that would be used answers, and is of our version."""
    address = os.environ.get("PREFECT_API_URL") or running_server()
    if address is None:
        yield "ok", "none set: a run starts one of its own"
        return
    ours = importlib.metadata.version("prefect")
    try:
        theirs = _ask(address, "admin/version")
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            yield "error", f"{address} refuses: set PREFECT_API_AUTH_STRING to user:password"
        else:
            yield "error", f"{address} answers HTTP {code}: is it a Prefect server's /api?"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        yield "error", f"cannot reach {address} ({error}): start it, or unset PREFECT_API_URL"
    else:
        if theirs == ours:
            yield "ok", f"{address}, version {ours}"
        else:
            yield "error", f"{address} is Prefect {theirs}, this is {ours}: run equal versions"


def workers() -> Iterator[tuple[str, str]]:
    """Whether a worker may take the runs of this checkout that does not have it.

    `flows.services` names a worker after its machine and its checkout, and a run is started in the
    folder of the checkout that its deployment was made in.
    """
    address = os.environ.get("PREFECT_API_URL") or running_server()
    try:
        pool = checkout_name(Path.cwd())
        found = _ask(address, f"work_pools/{pool}/workers/filter", {}) if address else []
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code != http.HTTPStatus.NOT_FOUND:
            yield "warning", f"not known, the server answers HTTP {code}"
            return
        found = []  # there is no pool
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        yield "warning", f"not known, the server does not answer ({error})"
        return
    own = f"{socket.gethostname()}:"
    online = sorted(str(each["name"]) for each in found if each["status"] == "ONLINE")
    foreign = [name for name in online if not name.startswith(own)]
    if foreign:
        yield (
            "warning",
            f"runs may go to {', '.join(foreign)}: each needs this code, and this folder "
            f"under the same name, {Path.cwd()}; a run that finds none crashes at once",
        )
    else:
        yield "ok", "none of another machine"


def _ask(address: str, path: str, body: dict[str, object] | None = None) -> Any:  # noqa: ANN401 - any JSON value
    """What the server answers."""
    secret = os.environ.get(CLIENT_AUTH)
    answer = httpx.request(
        "GET" if body is None else "POST",
        f"{address.rstrip('/')}/{path}",
        json=body,
        headers={"Authorization": f"Basic {b64encode(secret.encode()).decode()}"}
        if secret
        else None,
        timeout=SERVER_WAIT_S,
        trust_env=needs_proxies(address),
    )
    return answer.raise_for_status().json()


def database() -> Iterator[tuple[str, str]]:
    """Whether a server of this checkout could use its database."""
    if os.environ.get("PREFECT_API_URL"):
        yield "ok", "that of the server that PREFECT_API_URL names"
    else:
        yield "ok", check_database()


def notifications() -> Iterator[tuple[str, str]]:
    """Whether the addresses of SAMOVAR_NOTIFY can be used; nothing is sent."""
    found, faults = read_addresses()
    for fault in faults:
        yield "error", fault
    if found:
        yield "ok", f"told how a run ends: {', '.join(each.url(privacy=True) for each in found)}"
    elif not faults:
        yield "ok", f"{ADDRESSES} is not set: nobody is told how a run ends"


CHECKS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "system": system,
    "packages": packages,
    "params.yaml": parameters,
    "checkout": checkout,
    "record": record,
    "disk": disk,
    "server": server,
    "workers": workers,
    "database": database,
    "notify": notifications,
}


OF_PARAMS = {"record"}
"""Those that read params.yaml."""


def _probes() -> Iterator[Finding]:
    """What the modules of `PROBES` find side by side, as far as they get in their time."""
    deadline = time.monotonic() + PROBE_WAIT_S
    started = {
        module: subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for module in PROBES
    }
    for module, process in started.items():
        yield from _findings_of(module, process, deadline)


def _findings_of(module: str, process: subprocess.Popen[str], deadline: float) -> Iterator[Finding]:
    """What one module found; a line for each thing that it had no time for or failed at."""
    try:
        output, errors = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        level, why = "error", errors.strip()
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        level = "warning"
        why = (
            f"not known after {PROBE_WAIT_S:.0f} s: this machine is busy, or what was asked does "
            "not answer; check again later"
        )
    found = [Finding(**json.loads(line)) for line in output.splitlines()]
    yield from found
    if level == "error" and not process.returncode:
        return
    seen = {each.name for each in found}
    # a crash after the last name had a finding is told under that name
    for name in [each for each in PROBES[module] if each not in seen] or PROBES[module][-1:]:
        yield Finding(name, level, why)


if __name__ == "__main__":
    main()
