"""The processes of infra/compose.yaml, as it names them, without Docker: on loopback, in a toy."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from flows.server.server import free_port, is_up
from tests.flows.postgres import PASSWORD, Postgres, postgres_bin, serve_postgres
from tests.flows.s3 import KEYS
from tests.flows.test_services import state
from tests.flows.toy import (
    AUTH,
    ROOT,
    Toy,
    deployment,
    start,
    toy_environment,
    wait_until,
)

needs_postgres = pytest.mark.skipif(
    postgres_bin() is None, reason="PostgreSQL is not installed, NO TEST OF IT RUNS"
)
pytestmark = [pytest.mark.slow, needs_postgres]

GIVEN = KEYS | {"SAMOVAR_AUTH": AUTH, "POSTGRES_PASSWORD": PASSWORD}


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with serve_postgres() as server:
        yield server


class Compose:
    """The file, its places and ports being those of this machine."""

    def __init__(self, root: Path, home: Path, database: Postgres) -> None:
        self.root = root
        self.port = free_port()
        self._places = {
            "database:5432/prefect": f"127.0.0.1:{database.port}/postgres",
            "prefect:$": "samovar:$",  # the user of the database
            "http://server:4200": f"http://127.0.0.1:{self.port}",
            "http://127.0.0.1:4200": f"http://127.0.0.1:{self.port}",
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - replaced, since there is no container round it
            "/srv/samovar": str(root),
            "/tmp/prefect": str(home / "prefect"),  # noqa: S108
            "/var/lock/samovar-gpus": str(home / "locks"),
        }
        text = (ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8")
        self._services: dict[str, Any] = yaml.safe_load(text)["services"]

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A service of the file for the body."""
        service = self._services[name]
        command = [self._here(word) for word in service["command"]]
        command = [str(self.port) if word == "4200" else word for word in command]
        program = Path(sys.executable).with_name(command[0])
        environment = toy_environment()
        del environment["PREFECT_SERVER_API_AUTH_STRING"], environment["PREFECT_API_AUTH_STRING"]
        if "env_file" in service:
            environment |= dotenv_values(self.root / "infra" / service["env_file"])
        environment |= {key: self._here(text) for key, text in service["environment"].items()}
        with subprocess.Popen([program, *command[1:]], cwd=self.root, env=environment) as process:
            try:
                yield process
            finally:
                process.terminate()

    def _here(self, text: str) -> str:
        for place, ours in self._places.items():
            text = text.replace(place, ours)
        return re.sub(r"\$\{(\w+)[^}]*\}", lambda match: GIVEN.get(match[1], ""), text)


def test_a_run_of_the_worker_is_kept_by_server_and_database(
    ran_template: Path, database: Postgres, tmp_path: Path
) -> None:
    root = tmp_path / "toy"
    subprocess.run(["cp", "-r", str(ran_template), str(root)], check=True)
    compose = Compose(root, tmp_path, database)
    toy = Toy(root, f"http://127.0.0.1:{compose.port}/api")
    with compose.running("server"):
        wait_until(lambda: is_up(str(toy.api_url)), 120)
        with compose.running("worker"):
            wait_until(lambda: deployment(toy) is not None, 90)
            run = start(toy)
            wait_until(lambda: state(toy, run) == "Completed", 120)
    query = f"select state_name from flow_run where id = '{run}'"  # noqa: S608 - an id of ours
    assert database.ask(query) == "Completed"
