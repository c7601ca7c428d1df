"""Where the kills happen: a toy checkout with a server, a worker and a bucket, all real.

`check` is one case: a run is brought to a moment, something is killed, and then three things must
hold: no process of the run is left, its state in Prefect is true, and the next run ends green with
every output whole, here and in the bucket.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.server.server import free_port
from tasks.store.storage import Storage, open_storage
from tests.flows.postgres import Postgres
from tests.flows.s3 import KEYS, S3
from tests.flows.toy import Popen, Toy, api, git, last_run, wait_until, write_toy

BLOB_BYTES = 48 * 2**20
GONE_S, TRUE_S = 10.0, 120.0
ONE_STAGE = ("--stages", "ingest", "--force", "ingest")
ALIVE = {"Running", "Pending", "Scheduled", "Cancelling"}
SERVICES = ("server", "worker")
OUTSIDE = {
    "server",
    "database",
    "S3 gateway",
    "S3 store",
    "S3 monitor",
    "all of S3",
    "network to the server",
}


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
    database: Postgres | None = None
    """Of the Prefect server; SQLite where there is none."""

    @property
    def port(self) -> int:
        """Of the Prefect server."""
        return int(str(self.toy.api_url).split(":")[2].split("/")[0])

    def source(self) -> Storage:
        return open_storage("s3://samovar/raw", self.s3.endpoint_url)

    def up(self) -> None:
        """Bring back whatever was killed."""
        self.s3.control("start")
        local = Toy(self.toy.root, None)
        environment = KEYS if self.database is None else KEYS | {"DATABASE_URL": self.database.url}
        with local.start(
            "up", "--port", str(self.port), module="flows.services", **environment
        ) as process:
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


def nothing() -> None:
    """To mend."""


def start(site: Site, **environment: str) -> Popen:
    return site.toy.start(*ONE_STAGE, **KEYS, **environment)


def services(site: Site, *arguments: str) -> None:
    """`python -m flows.services ARGUMENTS` to its end."""
    with site.toy.start(*arguments, module="flows.services", **KEYS) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output


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


def check(
    site: Site,
    victim: str,
    how: str,
    when: str,
    kill: Callable[[Popen], None],
    *,
    mend: Callable[[], object] | None = None,
) -> Row:
    """One case: run, kill, see what is left, mend (else bring the services up), run again."""
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
    return finish(site, (victim, how, when), gone_s, run, mend=mend)


def finish(
    site: Site,
    names: tuple[str, str, str],
    gone_s: float | None,
    run: str,
    *,
    mend: Callable[[], object] | None = None,
) -> Row:
    """Mend, run again, and look at everything."""
    broken = []
    if gone_s is not None and gone_s > GONE_S:
        broken.append(f"processes left after {gone_s:.0f} s")
    (mend or site.up)()
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


def command_of(process: psutil.Process) -> str:
    """Empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
