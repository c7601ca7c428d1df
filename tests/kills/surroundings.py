"""What goes wrong round a run: the network, memory, disks, the clock.

Memory needs a cgroup that can be written to and disks a mount: root in a machine of one's own. The
clock needs a C compiler.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile
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
KIB, MIB, GIB = 2**10, 2**20, 2**30


def cuts_of_s3(site: Site) -> Iterator[Row]:
    """In a push and in a fetch."""
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


def cuts_of_the_server(site: Site) -> Iterator[Row]:
    """In a training."""
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
        site.toy.knob("ingest.hog", str(GIB))
        with memory_of(limit * MIB) as join, site.toy.start(*ONE_STAGE, **KEYS) as flow:
            join(flow.pid)
            output, _ = flow.communicate(timeout=600)
        site.toy.unset("ingest.hog")
        row = finish(site, ("memory", how, "any"), None, last_run(site.toy)["id"], mend=nothing)
        if limit > 500 and "when memory ran out" not in output:
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
    """The disk of a folder has too little room; before the next run it gets more."""
    for how, folder in {
        "the cache's is full": ".dvc/cache",
        "the outputs' is full": "artifacts",
        "that of DVC's own files is full": ".dvc/tmp",
    }.items():
        prepare(site, "push")
        (site.toy.root / "artifacts/ingest/text.txt").unlink(missing_ok=True)
        with small_disk(site.toy.root / folder, 64 * KIB) as enlarge:
            with start(site) as flow:
                output, _ = flow.communicate(timeout=600)
            names = ("disk", how, "any")
            row = finish(site, names, None, last_run(site.toy)["id"], mend=enlarge)
        if row.state == "Failed" and "the disk is full" not in output:
            row = dataclasses.replace(row, broken="the reason is not said")
        yield row
    services(site, "down", "--force")
    with small_disk(site.toy.root / ".samovar/prefect", 256 * KIB) as enlarge:
        site.up()

        def wait_and_enlarge(_flow: Popen) -> None:
            time.sleep(20)
            enlarge()

        yield check(site, "server", "its disk is full for 20 s", "training", wait_and_enlarge)
        services(site, "down", "--force")
    site.up()


@contextlib.contextmanager
def small_disk(folder: Path, spare_bytes: int) -> Iterator[Callable[[], None]]:
    """A disk of its own below the folder, with so much room; what is called makes it larger."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(folder, aside, symlinks=True, dirs_exist_ok=True)
        mount("-t", "tmpfs", "tmpfs", str(folder))
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)

    def resize(size_bytes: int) -> None:
        mount("-o", f"remount,size={size_bytes}", str(folder))

    try:
        resize(shutil.disk_usage(folder).used + spare_bytes)
        yield lambda: resize(2 * GIB)
    finally:
        resize(2 * GIB)
        with tempfile.TemporaryDirectory() as aside:
            shutil.copytree(folder, aside, symlinks=True, dirs_exist_ok=True)
            subprocess.run(["umount", str(folder)], check=True)
            shutil.rmtree(folder)
            shutil.copytree(aside, folder, symlinks=True)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def clock_jumps(site: Site) -> Iterator[Row]:
    """The clock of the run's machine jumps; those of server and S3 do not."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        yield from _jump(site, str(library))


def _jump(site: Site, library: str) -> Iterator[Row]:
    clock = site.toy.root / "knobs" / "clock"
    shifted = {"LD_PRELOAD": library, "CLOCK_SHIFT": str(clock)}
    for jump in ("+600", "-600", "+7200", "-7200"):
        clock.write_text("0")
        prepare(site, "training")
        with start(site, **shifted) as flow:
            MOMENTS["training"](site)
            run = last_run(site.toy)["id"]
            clock.write_text(jump)
            time.sleep(5)
            site.toy.unset("ingest.sleep")
            flow.communicate(timeout=600)
        names = ("clock", f"jumps by {jump} s", "training")
        yield finish(site, names, None, run, mend=nothing)
