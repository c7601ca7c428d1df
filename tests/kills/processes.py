"""Kills of every process that takes part, at every moment that differs."""

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import psutil

from tests.flows.postgres import serve_postgres
from tests.flows.s3 import KEYS
from tests.flows.toy import Popen, api, last_run, wait_until
from tests.flows.toy import start as start_run
from tests.kills.site import (
    ALIVE,
    MOMENTS,
    ONE_STAGE,
    TRUE_S,
    Row,
    Site,
    check,
    child,
    command_of,
    dvc,
    finish,
    nothing,
    prepare,
    seconds_until,
    services,
    start,
    state_of,
)


def signalled(number: int) -> str:
    return signal.Signals(number).name


def flow_kills(site: Site) -> Iterator[Row]:
    for when in MOMENTS:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):

            def kill(flow: Popen, n: int = number) -> None:
                flow.send_signal(n)

            yield check(site, "flow", signalled(number), when, kill)


def dvc_kills(site: Site) -> Iterator[Row]:
    commands = {"training": "repro", "push": "push", "fetch of data": "update"}
    for when, command in commands.items():
        for number in (signal.SIGKILL, signal.SIGTERM):

            def kill(_flow: Popen, n: int = number, c: str = command) -> None:
                dvc(site, c).send_signal(n)

            yield check(site, "dvc", signalled(number), when, kill)


def stage_kills(site: Site) -> Iterator[Row]:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):

        def kill(_flow: Popen, n: int = number) -> None:
            psutil.Process(site.toy.pid("ingest")).send_signal(n)

        yield check(site, "training", signalled(number), "training", kill)
    for when, command in {"training": "repro", "push": "push"}.items():

        def kill_leash(_flow: Popen, c: str = command) -> None:
            child(site, "leash.py", "dvc", c).kill()

        yield check(site, "leash of dvc", "SIGKILL", when, kill_leash)


def server_kills(site: Site) -> Iterator[Row]:
    for when in MOMENTS:
        for number in (signal.SIGKILL, signal.SIGTERM):

            def kill(_flow: Popen, n: int = number) -> None:
                site.service("server").send_signal(n)
                time.sleep(1)
                site.up()

            yield check(site, "server", f"{signalled(number)}, up again at once", when, kill)


def database_kills(site: Site) -> Iterator[Row]:
    """With the runs kept in PostgreSQL."""
    services(site, "down", "--force")
    with serve_postgres() as database:
        kept = dataclasses.replace(site, database=database)
        kept.up()
        for when in MOMENTS:
            for number, pause_s in ((signal.SIGKILL, 1), (signal.SIGINT, 1), (signal.SIGINT, 30)):

                def kill(_flow: Popen, n: int = number, pause_s: float = pause_s) -> None:
                    database.signal(n)
                    time.sleep(pause_s)
                    database.start()

                how = f"{signalled(number)}, up again after {pause_s} s"
                yield check(kept, "database", how, when, kill, mend=nothing)
        services(kept, "down", "--force")
    site.up()


def s3_kills(site: Site) -> Iterator[Row]:
    parts: dict[str, tuple[str, ...]] = {
        "S3 gateway": ("rgw",),
        "S3 store": ("osd",),
        "S3 monitor": ("mon",),
    }
    parts["all of S3"] = ("rgw", "osd", "mon")
    for victim, names in parts.items():
        for when in ("push", "fetch of data"):

            def kill(_flow: Popen, roles: tuple[str, ...] = names) -> None:
                for role in roles:
                    os.kill(int((site.s3.folder / f"{role}.pid").read_text()), signal.SIGKILL)
                time.sleep(1)
                site.s3.control("start")

            yield check(site, victim, "SIGKILL, up again after 1 s", when, kill)


def deployed(site: Site) -> str:
    """A run of the deployment, as the schedule or the UI starts it, in its training."""
    site.toy.knob("ingest.sleep", "300")
    (site.toy.root / "knobs" / "ingest.pid").unlink(missing_ok=True)
    return start_run(site.toy, stages=["ingest"], force=["ingest"])


def worker_kills(site: Site) -> Iterator[Row]:
    """Nothing runs afterwards to close the run: the server or the worker must."""

    def flow() -> psutil.Process:
        """The flow's own process, right below the worker."""
        stage = psutil.Process(site.toy.pid("ingest"))
        return next(each for each in stage.parents() if each.ppid() == site.service("worker").pid)

    def cancel(run: str) -> None:
        api(site.toy, f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def both(_run: str) -> None:
        doomed = [flow(), site.service("worker")]
        for each in doomed:
            each.kill()

    ways: dict[tuple[str, str], Callable[[str], None]] = {
        ("run of the worker", "cancelled in the UI"): cancel,
        ("flow of the worker", "SIGKILL"): lambda _run: flow().kill(),
        ("flow of the worker", "SIGTERM"): lambda _run: flow().terminate(),
        ("worker", "SIGKILL"): lambda _run: site.service("worker").kill(),
        ("worker and flow", "SIGKILL"): both,
    }
    for (victim, how), kill in ways.items():
        run = deployed(site)
        site.toy.pid("ingest", 120)
        kill(run)
        killed = time.monotonic()
        gone_s = seconds_until(lambda: not training_of(site), killed, 120)
        true_s = seconds_until(lambda run=run: state_of(site, run) not in ALIVE, killed)
        (site.toy.root / "knobs" / "ingest.sleep").unlink(missing_ok=True)
        row = finish(site, (victim, how, "training"), None, run)
        broken = row.broken if true_s <= TRUE_S else f"still alive after {true_s:.0f} s"
        yield dataclasses.replace(row, gone_s=gone_s, state_s=true_s, broken=broken)

    yield died_pending(site)


def died_pending(site: Site) -> Row:
    """The worker and the process it has just started, before that told anybody that it runs."""
    run = deployed(site)
    wait_until(lambda: state_of(site, run) == "Pending", 60)
    worker = site.service("worker")
    doomed = [worker, *worker.children(recursive=True)]
    for each in doomed:
        each.kill()
    killed = time.monotonic()
    true_s = seconds_until(lambda: state_of(site, run) not in ALIVE, killed)
    site.toy.unset("ingest.sleep")
    row = finish(site, ("worker and flow", "SIGKILL", "pending"), None, run)
    broken = row.broken if true_s <= TRUE_S else f"still alive after {true_s:.0f} s"
    return dataclasses.replace(row, state_s=true_s, broken=broken)


def training_of(site: Site) -> list[psutil.Process]:
    return [each for each in site.processes() if "stage.py" in command_of(each)]


def lock_faults(site: Site) -> Iterator[Row]:
    """DVC's read-write lock as killed processes and power losses leave it."""
    path = site.toy.root / ".dvc/tmp/rwlock"
    target = str(site.toy.root / "artifacts/ingest/text.txt")
    dead = {"pid": 2**22 - 3, "cmd": "dvc repro ingest"}
    other = {"pid": os.getpid(), "cmd": "/usr/bin/python /usr/bin/dvc repro ingest"}
    contents = {
        "names a dead process": f'{{"write": {{"{target}": {to_json(dead)}}}}}',
        "names another process by a used id": f'{{"write": {{"{target}": {to_json(other)}}}}}',
        "is empty": "",
        "is cut off": '{"write": {"/x": {"pid": 12',
    }
    for how, content in contents.items():
        path.write_text(content)
        site.toy.start(*ONE_STAGE, **KEYS).communicate(timeout=300)
        names = ("lock file of DVC", how, "before a run")
        yield finish(site, names, None, last_run(site.toy)["id"])


def to_json(entry: dict[str, object]) -> str:
    return f'{{"pid": {entry["pid"]}, "cmd": "{entry["cmd"]}"}}'


def random_kills(site: Site, count: int = 20, seed: int = 1) -> Iterator[Row]:
    """The flow, at any moment of a run: before it locks anything, between stages, at the end."""
    moments = random.Random(seed)
    began = time.monotonic()
    with start(site) as whole:
        whole.communicate(timeout=600)
    length_s = time.monotonic() - began
    for _ in range(count):
        prepare(site, "push")
        after_s = moments.uniform(0.5, length_s)
        with start(site) as flow:
            time.sleep(after_s)
            flow.kill()
            killed = time.monotonic()
            gone_s = seconds_until(lambda: not site.processes(), killed)
            flow.communicate(timeout=60)
        when = f"{after_s:.1f} s of {length_s:.0f}"
        yield finish(
            site, ("flow", "SIGKILL", when), gone_s, last_run(site.toy)["id"], mend=nothing
        )
