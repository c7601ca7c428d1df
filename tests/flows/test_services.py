"""Server, worker and deployment of one machine: `python -m flows.services up|down|status`."""

import json
import os
import re
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.checkout.names import checkout_name
from flows.server.server import free_port
from flows.settings import AUTH_FILE
from tests.flows.toy import AUTH, Toy, api, deployment, last_run, start, toy_environment, wait_until

pytestmark = pytest.mark.slow


def services(toy: Toy, *arguments: str, **environment: str) -> tuple[int, str]:
    with toy.start(*arguments, module="flows.services", **environment) as process:
        output, _ = process.communicate(timeout=150)
    return process.returncode, output


@pytest.fixture(scope="module")
def up(ran_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    """A toy checkout whose services are up."""
    root = tmp_path_factory.mktemp("up") / "toy"
    subprocess.run(["cp", "-r", str(ran_template), str(root)], check=True)
    (root / "knobs" / "order.txt").unlink()
    port = free_port()
    status, output = services(Toy(root, None), "up", "--port", str(port))
    try:
        assert status == 0, output
        yield Toy(root, f"http://127.0.0.1:{port}/api")
    finally:
        services(Toy(root, None), "down", "--force")


def local(toy: Toy) -> Toy:
    """The same checkout, which finds its server by itself."""
    return Toy(toy.root, None)


def runs(toy: Toy) -> list[dict[str, Any]]:
    """Runs that are no dates of the schedule."""
    every = api(toy, "flow_runs/filter", {})
    return [run for run in every if not run["auto_scheduled"]]


def state(toy: Toy, run: str) -> str:
    return api(toy, "flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})[0]["state_name"]


def registered(toy: Toy) -> dict[str, Any]:
    """What the server was told of the deployment; the rest moves by itself."""
    found = deployment(toy)
    assert found is not None
    return {name: found[name] for name in ("id", "work_pool_name", "job_variables", "schedules")}


def worker_pid(toy: Toy) -> int:
    return json.loads((toy.root / ".samovar/services/worker.json").read_text())["pid"]


def own_automations(toy: Toy) -> set[str]:
    found = api(toy, "automations/filter", {})
    return {each["id"] for each in found if each["name"].startswith("samovar: ")}


def test_up_may_be_said_twice_and_status_tells_what_is_healthy(up: Toy):
    before, closing = worker_pid(up), own_automations(up)
    assert len(closing) == 2
    given = ("--cron", "30 4 * * 1", "--timezone", "Europe/Moscow")
    status, output = services(local(up), "up", *given)
    assert status == 0, output
    status, output = services(local(up), "up")
    assert status == 0, output
    assert "schedule: '30 4 * * 1' Europe/Moscow\n" in output, "what was given stays"
    assert worker_pid(up) == before
    assert own_automations(up) == closing, "a new one would not know which runs it waits for"
    assert len(api(up, "automations/filter", {})) == 3, "two of ours, one of the deployment"
    # the server plans the runs of a deployment every few seconds
    named = f"retrain/{checkout_name(up.root)}: '30 4 * * 1' Europe/Moscow, next at"
    wait_until(lambda: named in services(local(up), "status")[1], 60)
    assert services(local(up), "status")[0] == 0


def test_status_names_a_line_that_starts_a_run_and_where_its_report_is(up: Toy):
    output = services(local(up), "status")[1]
    found = re.search(r"^start a run: (.*), or in the UI", output, re.M)
    assert found is not None, output
    environment = {**toy_environment(), "PREFECT_HOME": str(up.root / "home")}
    environment.pop("PREFECT_API_AUTH_STRING")
    known = {run["id"] for run in runs(up)}
    subprocess.run(["bash", "-ec", found[1]], cwd=up.root, env=environment, check=True)
    [new] = [run for run in runs(up) if run["id"] not in known]
    wait_until(lambda: state(up, new["id"]) == "Completed", 90)
    body = {"artifacts": {"flow_run_id": {"any_": [new["id"]]}, "key": {"any_": ["report"]}}}
    address = re.search(r"http://127\.0\.0\.1:\d+/report/index\.html", output)
    assert address is not None, output
    assert address[0] in api(up, "artifacts/filter", body)[0]["data"]
    auth = httpx.BasicAuth(*AUTH.split(":", 1))
    assert httpx.get(address[0], auth=auth, trust_env=False).text == "<p>report</p>"


def test_a_run_started_in_the_ui_is_run_by_the_worker_in_the_checkout(up: Toy):
    (up.root / "knobs" / "order.txt").unlink(missing_ok=True)
    run = start(up)
    wait_until(lambda: state(up, run) == "Completed", 90)
    assert (up.root / "knobs" / "order.txt").read_text().split() == ["champion", "publish"]


def test_a_dry_run_shows_what_would_run_and_runs_nothing(up: Toy):
    before = up.order()
    run = start(up, dry_run=True, from_stage="merge")
    wait_until(lambda: state(up, run) == "Completed", 90)
    assert up.order() == before
    shown = api(up, "artifacts/filter", {"artifacts": {"key": {"any_": ["dry-run"]}}})
    rows = {row["stage"]: row["would"] for row in json.loads(shown[0]["data"])}
    assert rows["training@balanced"] == "be skipped"
    assert {rows[stage] for stage in ("merge", "gate", "report")} == {"run"}
    assert "3 of 6 stages would run" in shown[0]["description"]


def test_the_news_that_data_arrived_starts_a_run(up: Toy):
    known = {run["id"] for run in runs(up)}
    with local(up).start("s3://bucket/raw", module="flows.arrived") as told:
        output, _ = told.communicate(timeout=60)
    assert told.returncode == 0, output
    wait_until(lambda: any(run["id"] not in known for run in runs(up)), 60)
    new = next(run for run in runs(up) if run["id"] not in known)
    wait_until(lambda: state(up, new["id"]) == "Completed", 90)


def test_a_dead_worker_takes_its_run_along_is_seen_and_started_again(up: Toy):
    up.knob("training-balanced.sleep", "120")
    run = start(up, stages=["training@balanced"], force=["training@balanced"])
    training = psutil.Process(up.pid("training-balanced"))
    dead = psutil.Process(worker_pid(up))
    dead.kill()
    wait_until(lambda: not training.is_running(), 10)
    wait_until(lambda: state(up, run) == "Crashed", 30)
    up.unset("training-balanced.sleep")
    wait_until(lambda: not dead.is_running() or dead.status() == psutil.STATUS_ZOMBIE)
    status, output = services(local(up), "status")
    assert status == 1
    assert "not healthy: worker" in output
    status, output = services(local(up), "up")
    assert status == 0, output
    assert worker_pid(up) != dead.pid


def test_a_living_run_that_was_taken_for_dead_says_so(up: Toy):
    up.knob("ingest.sleep", "300")
    (up.root / "knobs" / "ingest.pid").unlink(missing_ok=True)
    with up.start("--stages", "ingest", "--force", "ingest") as flow:
        up.pid("ingest")
        run = last_run(up)["id"]
        close = {"type": "CRASHED", "name": "Crashed", "message": "no heartbeat for 0:01:30"}
        api(up, f"flow_runs/{run}/set_state", {"state": close, "force": True})
        wait_until(lambda: state(up, run) == "Running", 60)
        close["message"] = "closed for another reason just before the end"
        api(up, f"flow_runs/{run}/set_state", {"state": close, "force": True})
        up.unset("ingest.sleep")
        flow.communicate(timeout=60)
    assert state(up, run) == "Completed"


def test_services_are_not_stopped_under_a_run(up: Toy):
    up.knob("training-balanced.sleep", "120")
    run = start(up, stages=["training@balanced"], force=["training@balanced"])
    training = up.pid("training-balanced")
    status, output = services(local(up), "down")
    assert status == 1
    assert "another run holds this checkout" in output
    up.unset("training-balanced.sleep")
    wait_until(lambda: state(up, run) == "Completed", 60)
    assert not psutil.pid_exists(training)


def test_a_worker_in_the_foreground_belongs_to_the_server_it_is_told(up: Toy, tmp_path: Path):
    """As in a container or a unit of systemd; the first checkout keeps its deployment."""
    before = registered(up)
    subprocess.run(["cp", "-r", str(up.root), str(tmp_path / "other")], check=True)
    other = Toy(tmp_path / "other", up.api_url)
    with other.start("work", module="flows.services") as worker:
        wait_until(lambda: deployment(other) is not None, 90)
        path = f"work_pools/{checkout_name(other.root)}/workers/filter"
        wait_until(lambda: any(each["name"].endswith(":other") for each in api(up, path, {})), 90)
        worker.terminate()
        worker.communicate(timeout=60)
    assert registered(up) == before
    assert len(own_automations(up)) == 2


def test_up_beside_a_named_server_is_refused(toy: Toy):
    status, output = services(toy, "up")
    assert status == 1
    assert f"PREFECT_API_URL is {toy.api_url}" in output
    assert not (toy.root / ".samovar/services").exists()


def test_no_server_listens_to_others_without_a_password(toy: Toy):
    status, output = services(
        local(toy),
        "up",
        "--host",
        "0.0.0.0",  # noqa: S104
        PREFECT_SERVER_API_AUTH_STRING="",
    )
    assert status == 1
    assert "set PREFECT_SERVER_API_AUTH_STRING to name:password" in output


def test_without_a_given_password_one_is_made_and_asked_for(toy: Toy):
    port = free_port()
    clean = {name: value for name, value in toy_environment().items() if "AUTH" not in name}
    command = [sys.executable, "-m", "flows.ui", "--port", str(port)]
    address = f"http://127.0.0.1:{port}/api/admin/version"
    with subprocess.Popen(command, cwd=toy.root, env=clean) as server:
        try:
            wait_until(lambda: (toy.root / ".samovar/prefect/server.url").exists(), 120)
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(address, timeout=30)
            file = toy.root / AUTH_FILE
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            name, _, password = file.read_text().partition(":")
            assert name == "samovar"
            assert len(password) >= 32
            alone = {**clean, "PATH": os.environ["PATH"]}
            run = [sys.executable, "-m", "flows.retrain", "--stages", "ingest"]
            done = subprocess.run(
                run, cwd=toy.root, env=alone, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"http://127.0.0.1:{port}" in done.stderr
        finally:
            server.terminate()


def test_a_worker_without_the_code_ends_a_run_at_once(toy: Toy, tmp_path: Path):
    """As on a machine that does not have the checkout."""
    subprocess.run(["cp", "-r", str(toy.root), str(tmp_path / "there")], check=True)
    there = Toy(tmp_path / "there", toy.api_url)
    with there.start("work", module="flows.services") as worker:
        path = f"work_pools/{checkout_name(there.root)}/workers/filter"
        wait_until(lambda: deployment(there) is not None, 90)
        wait_until(lambda: any(api(there, path, {})), 90)
        (tmp_path / "there").rename(tmp_path / "elsewhere")
        run = start(there)
        wait_until(lambda: state(toy, run) == "Crashed", 60)
        worker.terminate()
        worker.communicate(timeout=60)


def test_a_run_that_is_stopped_with_all_services_is_shown_as_ended(toy: Toy):
    """Stopped side by side it would have nobody to tell, and keep the slot of the next."""
    port = free_port()
    own = Toy(toy.root, f"http://127.0.0.1:{port}/api")
    try:
        status, output = services(local(own), "up", "--port", str(port))
        assert status == 0, output
        own.knob("ingest.sleep", "300")
        run = start(own, stages=["ingest"])
        ingest = psutil.Process(own.pid("ingest"))
        status, output = services(local(own), "down", "--force")
        assert status == 0, output
        assert not ingest.is_running()
        status, output = services(local(own), "status")
        assert (status, output.count("│ down  │ stopped │")) == (1, 3), output
        status, output = services(local(own), "up", "--port", str(port))
        assert status == 0, output
        assert state(own, run) == "Crashed"
    finally:
        services(local(own), "down", "--force")
