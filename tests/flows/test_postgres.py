"""The services of one machine with their database in PostgreSQL: `DATABASE_URL=... make up`."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server.server import free_port
from tests.flows.postgres import PASSWORD, Postgres, postgres_bin, serve_postgres
from tests.flows.test_services import services, start, state
from tests.flows.toy import Toy, wait_until

needs_postgres = pytest.mark.skipif(
    postgres_bin() is None, reason="PostgreSQL is not installed, NO TEST OF IT RUNS"
)
pytestmark = [pytest.mark.slow, needs_postgres]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with serve_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def up(
    ran_template: Path, database: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Toy]:
    """A toy checkout whose services are up, with their database in PostgreSQL."""
    root = tmp_path_factory.mktemp("up") / "toy"
    subprocess.run(["cp", "-r", str(ran_template), str(root)], check=True)
    (root / "knobs" / "order.txt").unlink()
    for file in (root / ".samovar/prefect").glob("prefect.db*"):
        file.unlink()
    port = free_port()
    status, output = services(Toy(root, None), "up", "--port", str(port), DATABASE_URL=database.url)
    try:
        assert status == 0, output
        yield Toy(root, f"http://127.0.0.1:{port}/api")
    finally:
        services(Toy(root, None), "down", "--force")


def test_runs_are_kept_in_postgresql_and_nowhere_else(up: Toy, database: Postgres) -> None:
    run = start(up)
    wait_until(lambda: state(up, run) == "Completed", 120)
    query = f"select state_name from flow_run where id = '{run}'"  # noqa: S608 - an id of ours
    assert database.ask(query) == "Completed"
    assert not list((up.root / ".samovar/prefect").glob("prefect.db*"))


def test_a_killed_database_that_comes_back_fails_no_run(up: Toy, database: Postgres) -> None:
    up.knob("ingest.sleep", "300")
    (up.root / "knobs" / "ingest.pid").unlink(missing_ok=True)
    run = start(up, stages=["ingest"], force=["ingest"])
    up.pid("ingest")
    database.signal(signal.SIGKILL)
    database.start()
    up.unset("ingest.sleep")
    wait_until(lambda: state(up, run) == "Completed", 120)


def test_the_password_of_the_database_is_in_no_file(up: Toy) -> None:
    found = subprocess.run(
        ["grep", "-rl", PASSWORD, str(up.root)], capture_output=True, text=True, check=False
    )
    assert found.stdout == ""


def test_a_database_that_is_down_is_said(toy: Toy) -> None:
    url = f"postgresql://samovar:{PASSWORD}@127.0.0.1:{free_port()}/postgres"
    local = Toy(toy.root, None)
    status, output = services(local, "up", "--port", str(free_port()), DATABASE_URL=url)
    services(local, "down", "--force")
    assert status == 1
    assert "DATABASE_URL" in output
    assert PASSWORD not in output
