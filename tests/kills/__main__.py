"""Kills everything a retraining is made of, at many moments: python -m tests.kills OUT.

Rows go to OUT (a markdown table) as they come; about an hour on two cores. A row that says BROKEN
makes the exit status 1.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.flows.s3 import KEYS, serve_s3
from tests.kills.processes import (
    database_kills,
    dvc_kills,
    flow_kills,
    lock_faults,
    random_kills,
    s3_kills,
    server_kills,
    stage_kills,
    worker_kills,
)
from tests.kills.site import HEAD, make_site
from tests.kills.surroundings import (
    clock_jumps,
    cuts_of_s3,
    cuts_of_the_server,
    disk_faults,
    memory_kills,
)

SIZE_BYTES = 24 * 2**30
"""Of the S3 service, taken as it fills: each case leaves a corpus and an output."""
GROUPS = {
    "flow": flow_kills,
    "dvc": dvc_kills,
    "stage": stage_kills,
    "server": server_kills,
    "database": database_kills,
    "s3": s3_kills,
    "worker": worker_kills,
    "lock": lock_faults,
    "s3-network": cuts_of_s3,
    "server-network": cuts_of_the_server,
    "memory": memory_kills,
    "disk": disk_faults,
    "clock": clock_jumps,
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
    with (
        serve_s3(folder / "s3", SIZE_BYTES) as s3,
        arguments.out.open("a", encoding="utf-8") as out,
    ):
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
