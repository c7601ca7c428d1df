"""A real PostgreSQL for tests, on loopback, in a folder of its own.

pytest-postgresql cannot start one as root, which tests in a container are, nor kill one and start
it again.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.server.server import free_port

PASSWORD = "password-of-the-database"  # noqa: S105 - of a database that lasts for a test
TRIES = 20


def postgres_bin() -> Path | None:
    """The folder of its programs, which Debian keeps off PATH; None where it is not installed."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return versions[-1].parent if versions else None


@dataclass(frozen=True)
class Postgres:
    """A running server with one database."""

    bin: Path
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql://samovar:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, again if need be: processes of a killed one take a moment to die."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        command = ["pg_ctl", "-D", "data", "-l", "log", "-o", options, "-w", "start"]
        for _ in range(TRIES):
            if self.run(*command).returncode == 0:
                return
            time.sleep(0.5)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        self.run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def signal(self, number: int) -> None:
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, number)

    def ask(self, query: str) -> str:
        """What psql prints for `query`."""
        done = self.run("psql", "-At", "-c", query, self.url)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # it refuses to run as root
        user = "postgres" if os.getuid() == 0 else None
        return subprocess.run(
            [self.bin / program, *arguments], cwd=self.folder, user=user, capture_output=True,
            text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip


@contextlib.contextmanager
def serve_postgres() -> Iterator[Postgres]:
    """One that is up for the body.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    programs = postgres_bin()
    if programs is None:
        raise FileNotFoundError("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # another user must get into it
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    server = Postgres(programs, folder, free_port())
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    try:
        made = server.run(
            "initdb", "-D", "data", "-U", "samovar", "-A", "scram-sha-256", "--pwfile=password",
            "--no-sync", "-E", "UTF8", "--no-locale",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        server.start()
        yield server
    finally:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            server.signal(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
