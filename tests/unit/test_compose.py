"""infra/compose.yaml as far as it can be looked at without Docker: names, ports, users, secrets."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.server.server import server_settings

INFRA = Path("infra")
SERVICES = {"database", "server", "worker", "s3"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text(encoding="utf-8"))


def test_the_services_are_those_of_make_up_and_a_database(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == SERVICES
    named = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service["volumes"]
        if not volume.startswith(".")
    }
    assert named == set(compose["volumes"])


def test_every_service_that_is_waited_for_says_when_it_is_healthy(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, wait in service.get("depends_on", {}).items():
            assert wait == {"condition": "service_healthy"}
            assert "healthcheck" in compose["services"][name]


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for each in compose["services"].values() for port in each.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_stands_in_the_file_and_those_that_are_missing_stop_the_start() -> None:
    text = (INFRA / "compose.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    secret = re.compile(r"(PASSWORD|SECRET|AUTH|ACCESS_KEY)\w*: (.*)")
    values = [match[2] for match in map(secret.search, lines) if match]
    assert values
    assert all(value.startswith(("${", "postgresql+asyncpg://prefect:${")) for value in values)
    for name in ("SAMOVAR_AUTH", "POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        assert f"${{{name}:?" in text


@pytest.mark.parametrize("path", ["Dockerfile", "s3/Dockerfile"])
def test_images_run_as_a_plain_user(path: str) -> None:
    lines = (INFRA / path).read_text(encoding="utf-8").splitlines()
    instructions = [line.split()[0] for line in lines if re.match(r"[A-Z]+ ", line)]
    assert "USER samovar" in lines
    assert instructions.index("USER") < instructions.index("ENTRYPOINT")
    assert "RUN" not in instructions[instructions.index("USER") :]


def test_gpus_are_given_to_the_one_worker_that_there_is(compose: dict[str, Any]) -> None:
    """Of two workers of one pool either takes a run: also the one without a GPU."""
    text = (INFRA / "compose.gpu.yaml").read_text(encoding="utf-8")
    more = yaml.safe_load(text)["services"]
    assert set(more) <= set(compose["services"])
    assert [name for name, each in more.items() if "gpu" in str(each)] == ["worker"]
    workers = [each for each in compose["services"].values() if "work" in each.get("command", ())]
    assert len(workers) == 1
    assert "SAMOVAR_CHECKOUT" in workers[0]["environment"]


def test_pages_ask_the_address_that_they_come_from(compose: dict[str, Any]) -> None:
    """A browser elsewhere would ask its own machine at 127.0.0.1."""
    server = compose["services"]["server"]["environment"]
    assert server["PREFECT_SERVER_UI_API_URL"] == server_settings()["PREFECT_SERVER_UI_API_URL"]
    assert server["PREFECT_SERVER_UI_API_URL"] == "/api"


def test_what_is_built_and_run_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        if "build" in service:
            context = INFRA / service["build"]["context"]
            assert (context / service["build"].get("dockerfile", "Dockerfile")).is_file()
    assert "work" in compose["services"]["worker"]["command"]
    assert (INFRA / compose["services"]["server"]["env_file"]).is_file()
