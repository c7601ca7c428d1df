"""The Prefect server with the libraries as they are pinned."""

import json
import shutil
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flows.server.server import free_port, is_up
from tests.flows.toy import Toy, api, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def server(prefect_server: str, tmp_path) -> Toy:
    return Toy(tmp_path, prefect_server)


@pytest.mark.parametrize("kind", ["flows", "flow_runs", "deployments", "artifacts", "task_runs"])
def test_lists_can_be_read(server: Toy, kind):
    """With FastAPI 0.151 or later every list call is refused while the health check stays green."""
    assert isinstance(api(server, f"{kind}/filter", {}), list)


def test_runs_of_a_schedule_can_be_written(server: Toy):
    """With SQLAlchemy 2.1 the scheduler fails on every insert and no scheduled run ever starts."""
    flow = api(server, "flows/", {"name": f"flow-{uuid4()}"})
    schedule = {"active": True, "schedule": {"cron": "0 3 1 * *", "timezone": "UTC"}}
    body: dict[str, Any] = {"name": "monthly", "flow_id": flow["id"], "schedules": [schedule]}
    deployment = api(server, "deployments/", body)
    api(server, f"deployments/{deployment['id']}/schedule", {"min_runs": 2})
    only = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    runs = api(server, "flow_runs/filter", only)
    assert len(runs) >= 2
    first = min(datetime.fromisoformat(run["expected_start_time"]) for run in runs)
    assert (first.day, first.hour) == (1, 3)
    assert first > datetime.now(UTC)


def test_an_empty_password_is_none(toy_template: Path, tmp_path: Path):
    """Prefect itself would take it for one that nobody can give."""
    shutil.copytree(toy_template, tmp_path / "toy", symlinks=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    empty = dict.fromkeys(("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"), "")
    with Toy(tmp_path / "toy", None).start(
        "--port", str(port), module="flows.ui", **empty
    ) as server:
        try:
            wait_until(lambda: is_up(url), 120)
            request = urllib.request.Request(  # noqa: S310 - loopback
                f"{url}/flows/filter", data=b"{}", headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                assert isinstance(json.load(answer), list)
        finally:
            server.terminate()
