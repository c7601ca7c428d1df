"""Kills everything a retraining is made of, at many moments: python -m tests.flows.kill_table OUT.

Server, worker, object storage and a toy checkout are real. After each kill three things must hold,
or the row says BROKEN and the exit status is 1: no process of the run is left, its state in Prefect
is true, and the next run ends green with every output whole, here and in the bucket. Rows go to OUT
(a markdown table) as they come; about an hour on two cores.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.server import free_port
from tasks.storage import open_storage
from tests.flows.s3 import KEYS, S3, serve_s3
from tests.flows.toy import Popen, Toy, api, git, last_run, wait_until, write_toy

BLOB_BYTES = 48 * 2**20
GONE_S, TRUE_S = 10.0, 120.0
ONE_STAGE = ("--stages", "ingest", "--force", "ingest")
ALIVE = {"Running", "Pending", "Scheduled", "Cancelling"}
SERVICES = ("server", "worker")
OUTSIDE = {"server", "S3 gateway", "S3 store", "S3 monitor", "all of S3"}


@dataclass(frozen=True)
class Row:
    """One kill."""

    victim: str
    how: str
    when: str
    gone_s: float | None
    state: str
    state_s: float
    next_run_s: float
    broken: str

    def line(self) -> str:
        gone = "-" if self.gone_s is None else f"{self.gone_s:.1f}"
        result = f"BROKEN: {self.broken}" if self.broken else "green, all whole"
        return (
            f"| {self.victim} | {self.how} | {self.when} | {gone} | {self.state} | "
            f"{self.state_s:.0f} | {self.next_run_s:.0f} | {result} |"
        )


HEAD = (
    "| killed | by | when | gone, s | state of the run | true after, s | next run, s | it ended |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Site:
    """A toy checkout with its services and its bucket."""

    toy: Toy
    s3: S3

    def source(self):
        return open_storage("s3://samovar/raw", self.s3.endpoint_url)

    def up(self) -> None:
        """Bring back whatever was killed."""
        self.s3.control("start")
        port = str(self.toy.api_url).split(":")[2].split("/")[0]
        local = Toy(self.toy.root, None)
        with local.start("up", "--port", port, module="flows.services", **KEYS) as process:
            output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output

    def service(self, name: str) -> psutil.Process:
        path = self.toy.root / f".samovar/services/{name}.json"
        return psutil.Process(json.loads(path.read_text())["pid"])

    def has_service(self, name: str) -> bool:
        try:
            return self.service(name).is_running()
        except (FileNotFoundError, psutil.NoSuchProcess):
            return False

    def processes(self) -> list[psutil.Process]:
        """What works in the checkout, services left out."""
        kept = {self.service(name).pid for name in SERVICES if self.has_service(name)}
        found = []
        for process in psutil.process_iter():
            try:
                is_here = Path(process.cwd()) == self.toy.root
                if is_here and process.pid not in kept and process.status() != "zombie":
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
                continue
        return found


def make_site(folder: Path, s3: S3) -> Site:
    root = folder / "toy"
    write_toy(root)
    site = Site(Toy(root, f"http://127.0.0.1:{free_port()}/api"), s3)
    site.source().write_bytes("corpus.txt", os.urandom(BLOB_BYTES // 2).hex().encode())
    url = "s3://samovar/store"
    site.toy.set_params(store={"url": url, "endpoint_url": s3.endpoint_url})
    (root / "data" / "corpus.txt").unlink()
    git(root, "rm", "-q", "--cached", "data/corpus.txt")
    environment = {"AWS_ENDPOINT_URL": s3.endpoint_url, **KEYS}
    done = site.toy.dvc(
        "import-url", "s3://samovar/raw/corpus.txt", "data/corpus.txt", **environment
    )
    assert done.returncode == 0, done.stderr
    git(root, "add", "--all")
    git(root, "commit", "-q", "-m", "data from the bucket")
    site.up()
    return site


def start(site: Site) -> Popen:
    return site.toy.start(*ONE_STAGE, **KEYS)


def child(site: Site, *words: str) -> psutil.Process:
    """A process of the checkout whose command line holds all the words, as soon as it is there."""
    found: list[psutil.Process] = []

    def look() -> bool:
        for process in site.processes():
            line = command_of(process)
            if all(word in line for word in words):
                found.append(process)
                return True
        return False

    wait_until(look, 120)
    return found[0]


def dvc(site: Site, command: str) -> psutil.Process:
    """DVC itself, below its leash."""
    leash = child(site, "leash.py", "dvc", command)
    wait_until(lambda: bool(leash.children()), 30)
    return leash.children()[0]


def in_stage(site: Site) -> None:
    site.toy.pid("ingest", 120)


def in_push(site: Site) -> None:
    port = int(site.s3.endpoint_url.rpartition(":")[2])
    process = dvc(site, "push")
    wait_until(lambda: any(c.raddr and c.raddr.port == port for c in process.net_connections()), 60)


def in_update(site: Site) -> None:
    marker = site.toy.root / ".samovar/updating/data-corpus.txt.dvc"
    corpus = site.toy.root / "data/corpus.txt"
    wait_until(lambda: marker.exists() and not corpus.exists(), 120)


def prepare(site: Site, when: str) -> None:
    """Have the next run last where it is to be killed."""
    pid = site.toy.root / "knobs" / "ingest.pid"
    pid.unlink(missing_ok=True)
    if when == "training":
        site.toy.knob("ingest.sleep", "300")
    else:
        site.source().write_bytes("corpus.txt", os.urandom(BLOB_BYTES // 2).hex().encode())


MOMENTS: dict[str, Callable[[Site], None]] = {
    "training": in_stage,
    "push": in_push,
    "fetch of data": in_update,
}


def check(site: Site, victim: str, how: str, when: str, kill: Callable[[Popen], None]) -> Row:
    """One case: run, kill, see what is left, run again."""
    prepare(site, when)
    with start(site) as flow:
        MOMENTS[when](site)
        run = last_run(site.toy)["id"]
        kill(flow)
        killed = time.monotonic()
        sleeps = site.toy.root / "knobs" / "ingest.sleep"
        # pushes and fetches are tried again by the flow, which lives
        ends_alone = victim in OUTSIDE or (when != "training" and victim != "flow")
        if ends_alone:
            sleeps.unlink(missing_ok=True)
        gone_s = None if ends_alone else seconds_until(lambda: not site.processes(), killed)
        flow.communicate(timeout=600)
    sleeps.unlink(missing_ok=True)
    return finish(site, (victim, how, when), gone_s, run)


def finish(
    site: Site, names: tuple[str, str, str], gone_s: float | None, run: str, *, heal: bool = True
) -> Row:
    """Bring the services back, run again, and look at everything."""
    broken = []
    if gone_s is not None and gone_s > GONE_S:
        broken.append(f"processes left after {gone_s:.0f} s")
    if heal:
        site.up()
    ended = time.monotonic()
    with site.toy.start("--stages", "ingest", **KEYS) as again:
        output, _ = again.communicate(timeout=600)
    next_run_s = time.monotonic() - ended
    if again.returncode:
        broken.append(f"the next run failed: {output.strip().splitlines()[-1][:200]}")
    state_s = seconds_until(lambda: state_of(site, run) not in ALIVE, ended)
    if state_s > TRUE_S:
        broken.append(f"still {state_of(site, run)} after {state_s:.0f} s")
    broken += wholeness(site)
    return Row(*names, gone_s, state_of(site, run), state_s, next_run_s, "; ".join(broken))


def wholeness(site: Site) -> Iterator[str]:
    """What is wrong with data, outputs or bucket."""
    corpus = (site.toy.root / "data/corpus.txt").read_bytes()
    if corpus != site.source().read_bytes("corpus.txt"):
        yield "data differ from the source"
    if (site.toy.root / "artifacts/ingest/text.txt").read_bytes() != corpus + b"ingest":
        yield "the output is not that of the data"
    cloud = site.toy.dvc("status", "--cloud", "ingest", **KEYS)
    if "in sync" not in cloud.stdout:
        yield f"the bucket lacks outputs: {cloud.stdout.strip()[:100]}"
    if (site.toy.root / ".samovar/updating").exists() and any(
        (site.toy.root / ".samovar/updating").iterdir()
    ):
        yield "a marker is left"


def state_of(site: Site, run: str) -> str:
    found = api(site.toy, "flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return str(found[0]["state_name"])


def seconds_until(condition: Callable[[], bool], since: float, limit_s: float = 180.0) -> float:
    """Seconds from `since` until it holds; the limit and more when it does not."""
    try:
        wait_until(condition, limit_s)
    except TimeoutError:
        return limit_s + 1
    return time.monotonic() - since


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


def s3_kills(site: Site) -> Iterator[Row]:
    parts = {"S3 gateway": ("rgw",), "S3 store": ("osd",), "S3 monitor": ("mon",)}
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
    body = {"deployments": {"name": {"any_": ["scheduled"]}}}
    deployment = api(site.toy, "deployments/filter", body)[0]["id"]
    parameters = {"stages": ["ingest"], "force": ["ingest"]}
    run = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return api(site.toy, f"deployments/{deployment}/create_flow_run", run)["id"]


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
        yield Row(victim, how, "training", gone_s, row.state, true_s, row.next_run_s, broken)


def training_of(site: Site) -> list[psutil.Process]:
    return [each for each in site.processes() if "stage.py" in command_of(each)]


def command_of(process: psutil.Process) -> str:
    """Empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


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
        yield finish(site, ("flow", "SIGKILL", when), gone_s, last_run(site.toy)["id"], heal=False)


GROUPS = {
    "flow": flow_kills,
    "dvc": dvc_kills,
    "stage": stage_kills,
    "server": server_kills,
    "s3": s3_kills,
    "worker": worker_kills,
    "lock": lock_faults,
    "random": random_kills,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill everything and see what is left.")
    parser.add_argument("out", type=Path, help="markdown file the rows are added to")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    arguments = parser.parse_args()
    os.environ.update(KEYS)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    faults = 0
    with serve_s3(folder / "s3") as s3, arguments.out.open("a", encoding="utf-8") as out:
        site = make_site(folder, s3)
        try:
            print(HEAD, file=out, flush=True)
            for name in arguments.groups:
                for row in GROUPS[name](site):
                    print(row.line(), file=out, flush=True)
                    faults += bool(row.broken)
        finally:
            site.toy.start("down", "--force", module="flows.services").communicate(timeout=120)
    shutil.rmtree(folder, ignore_errors=True)
    if faults:
        sys.exit(f"{faults} kills left something broken, see {arguments.out}")


if __name__ == "__main__":
    main()
