"""What goes wrong round a run: the network, memory, disks, the clock.

Memory needs a cgroup that can be written to, disks a mount, the clock libfaketime: as root in a
container of one's own. A group that cannot run says so in place of its rows.
"""

import contextlib
import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.flows.s3 import KEYS, S3
from tests.flows.toy import Popen, Toy, last_run
from tests.kills.proxy import Proxy, proxy_to
from tests.kills.site import (
    MOMENTS,
    ONE_STAGE,
    Row,
    Site,
    check,
    finish,
    nothing,
    prepare,
    services,
    start,
)

CUTS_S = (1, 30, 300)
MIB = 2**20


def network_cuts(site: Site) -> Iterator[Row]:
    """S3 in a push and in a fetch, the Prefect server in a training."""
    with proxy_to(int(site.s3.endpoint_url.rpartition(":")[2])) as proxy:
        s3 = S3(site.s3.folder, f"http://127.0.0.1:{proxy.port}")
        cut_off = dataclasses.replace(site, s3=s3)
        store = {"url": "s3://samovar/store", "endpoint_url": s3.endpoint_url}
        site.toy.set_params(store=store)
        for when in ("push", "fetch of data"):
            for seconds in CUTS_S:
                names = ("network to S3", f"cut for {seconds} s", when)
                yield check(cut_off, *names, cutter(proxy, seconds), mend=proxy.wait)
        site.toy.set_params(store=store | {"endpoint_url": site.s3.endpoint_url})
    with proxy_to(site.port) as proxy:
        toy = Toy(site.toy.root, f"http://127.0.0.1:{proxy.port}/api")
        cut_off = dataclasses.replace(site, toy=toy)
        for seconds in CUTS_S:
            names = ("network to the server", f"cut for {seconds} s", "training")
            yield check(cut_off, *names, waiting(proxy, seconds), mend=nothing)


def cutter(proxy: Proxy, seconds: float) -> Callable[[Popen], None]:
    """Cut now, and mend later, while the run tries again."""

    def cut(_flow: Popen) -> None:
        proxy.cut()
        threading.Timer(seconds, proxy.mend).start()

    return cut


def waiting(proxy: Proxy, seconds: float) -> Callable[[Popen], None]:
    """Cut, and mend before anything else is done."""

    def cut(_flow: Popen) -> None:
        proxy.cut()
        time.sleep(seconds)
        proxy.mend()

    return cut


def memory_kills(site: Site) -> Iterator[Row]:
    """The kernel kills what holds most in a group of processes with too little."""
    for how, limit in {"a stage wants more than 600 MiB": 600, "all of it in 90 MiB": 90}.items():
        prepare(site, "push")
        site.toy.knob("ingest.hog", str(2**30))
        with memory_of(limit * MIB) as join, site.toy.start(*ONE_STAGE, **KEYS) as flow:
            join(flow.pid)
            output, _ = flow.communicate(timeout=600)
        site.toy.unset("ingest.hog")
        row = finish(site, ("memory", how, "any"), None, last_run(site.toy)["id"], mend=nothing)
        if limit > 500 and "memory" not in output.splitlines()[-1]:
            row = dataclasses.replace(row, broken="the reason is not said")
        yield row


@contextlib.contextmanager
def memory_of(limit_bytes: int) -> Iterator[Callable[[int], None]]:
    """A cgroup; what is called with a process puts it in."""
    first = Path("/sys/fs/cgroup/memory")
    parent = first if first.is_dir() else Path("/sys/fs/cgroup")
    group = parent / f"samovar-{os.getpid()}"
    group.mkdir()
    try:
        name = "memory.limit_in_bytes" if first.is_dir() else "memory.max"
        (group / name).write_text(str(limit_bytes))

        def join(pid: int) -> None:
            (group / "cgroup.procs").write_text(str(pid))

        yield join
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def disk_faults(site: Site) -> Iterator[Row]:
    """A small disk under the cache, under the outputs, under DVC's own files; then a large one."""
    for how, folder in {
        "the cache's is full": ".dvc/cache",
        "the outputs' is full": "artifacts/ingest",
        "that of .samovar is full": ".samovar/run",
    }.items():
        prepare(site, "push")
        (site.toy.root / folder).mkdir(parents=True, exist_ok=True)
        with small_disk(site.toy.root / folder, 8 * MIB), start(site) as flow:
            output, _ = flow.communicate(timeout=600)
        row = finish(site, ("disk", how, "any"), None, last_run(site.toy)["id"], mend=nothing)
        if row.state == "Failed" and "full" not in output and "space" not in output:
            row = dataclasses.replace(row, broken="the reason is not said")
        yield row
    yield from database_faults(site)


def database_faults(site: Site) -> Iterator[Row]:
    """The disk of Prefect's database is full for 20 s of a training."""
    services(site, "down", "--force")
    folder = site.toy.root / ".samovar" / "prefect"
    with small_disk(folder, 32 * MIB):
        site.up()

        def fill(_flow: Popen) -> None:
            with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            time.sleep(20)
            (folder / "filler").unlink()

        yield check(site, "server", "its disk is full for 20 s", "training", fill)
        services(site, "down", "--force")
    site.up()


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A disk of its own in place of the folder."""
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs"]
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def clock_jumps(site: Site) -> Iterator[Row]:
    """The clock of the run's machine jumps; those of server and S3 do not."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    clock = site.toy.root / "knobs" / "clock"
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    for jump in ("+600", "-600", "+7200", "-7200"):
        clock.write_text("+0")
        prepare(site, "training")
        with start(site, **faked) as flow:
            MOMENTS["training"](site)
            run = last_run(site.toy)["id"]
            clock.write_text(jump)
            time.sleep(5)
            site.toy.unset("ingest.sleep")
            flow.communicate(timeout=600)
        names = ("clock", f"jumps by {jump} s", "training")
        yield finish(site, names, None, run, mend=nothing)
