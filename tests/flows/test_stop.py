"""No way of stopping a run leaves a training alive, and the next run goes on."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from flows.plan.cron import machine_timezone
from tests.flows.receiver import webhook
from tests.flows.toy import Toy, api, deployment, last_run, start, wait_until

pytestmark = pytest.mark.slow

GONE_S = 20.0 if "PYTEST_XDIST_WORKER" in os.environ else 5.0
"""Alone on the machine five; beside other tests far below the 120 s that a training sleeps."""
ONE_STAGE = ("--stages", "training@balanced", "--force", "training@balanced")


@pytest.fixture
def sleeper(ran: Toy) -> Toy:
    """A checkout whose training@balanced lasts, and traps nothing."""
    (ran.root / "knobs" / "training-balanced.pid").unlink()
    ran.knob("training-balanced.sleep", "120")
    return ran


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def dvc_of(stage_pid: int) -> int:
    """The `dvc repro` above a stage."""
    return next(
        parent.pid
        for parent in psutil.Process(stage_pid).parents()
        if parent.cmdline()[1:3] == ["-m", "dvc"]
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_training_that_ignores_sigterm_dies_with_the_flow(sleeper: Toy, number):
    """A trainer that is in the middle of a long step, or of a checkpoint, looks like this."""
    sleeper.knob("training-balanced.stubborn")
    with sleeper.start(*ONE_STAGE) as flow:
        training = sleeper.pid("training-balanced")
        dvc = dvc_of(training)
        flow.send_signal(number)
        wait_until(lambda: not is_alive(training) and not is_alive(dvc), GONE_S)
    assert flow.returncode != 0


def test_training_dies_with_its_dvc_and_the_run_fails(sleeper: Toy):
    with sleeper.start(*ONE_STAGE) as flow:
        training = sleeper.pid("training-balanced")
        os.kill(dvc_of(training), signal.SIGKILL)
        wait_until(lambda: not is_alive(training), GONE_S)
        output, _ = flow.communicate(timeout=60)
    assert flow.returncode == 1
    assert "training@balanced failed with status 137" in output


def test_training_dies_with_its_leash_and_the_run_fails(sleeper: Toy):
    """The leash is what kills everything else; nothing below it sees it go."""
    with sleeper.start(*ONE_STAGE) as flow:
        training = sleeper.pid("training-balanced")
        os.kill(psutil.Process(dvc_of(training)).ppid(), signal.SIGKILL)
        wait_until(lambda: not is_alive(training), GONE_S)
        output, _ = flow.communicate(timeout=60)
    assert flow.returncode == 1
    assert "training@balanced failed with status -9" in output


def test_next_run_goes_on_and_closes_the_dead_one(sleeper: Toy):
    with sleeper.start(*ONE_STAGE) as flow:
        training = sleeper.pid("training-balanced")
        flow.kill()
        wait_until(lambda: not is_alive(training), GONE_S)
    dead = last_run(sleeper)
    assert dead["state_type"] == "RUNNING"
    sleeper.unset("training-balanced.sleep")
    status, output = sleeper.retrain(*ONE_STAGE)
    assert status == 0, output
    runs = api(sleeper, "flow_runs/filter", {"flow_runs": {"id": {"any_": [dead["id"]]}}})
    assert runs[0]["state_type"] == "CRASHED"


HANGING_PUSH = """
import os, pathlib, shutil, sys, threading
copy = shutil.copyfile

def stop_halfway(source, target, **options):
    if "/store/dvc/" not in str(target):
        return copy(source, target, **options)
    pathlib.Path(target).write_bytes(pathlib.Path(source).read_bytes()[:1])
    pathlib.Path("knobs/push.pid").write_text(str(os.getpid()))
    threading.Event().wait()

if "push" in sys.orig_argv:
    shutil.copyfile = stop_halfway
"""


def test_killed_push_is_completed_by_the_next_run(toy: Toy, tmp_path: Path):
    """The store is a folder; tests/flows/test_s3.py kills a push to a bucket."""
    (tmp_path / "hang").mkdir()
    (tmp_path / "hang" / "sitecustomize.py").write_text(HANGING_PUSH)
    with toy.start("--stages", "ingest", PYTHONPATH=str(tmp_path / "hang")) as flow:
        os.kill(toy.pid("push"), signal.SIGKILL)
        flow.kill()
    written = (toy.root / "artifacts/ingest/text.txt").read_bytes()
    assert "in sync" not in toy.dvc("status", "--cloud", "ingest").stdout
    status, output = toy.retrain("--stages", "ingest")
    assert status == 0, output
    assert toy.order() == ["ingest"]
    assert "in sync" in toy.dvc("status", "--cloud", "ingest").stdout
    for folder in (".dvc/cache", "artifacts"):
        shutil.rmtree(toy.root / folder)
    pulled = toy.dvc("pull", "ingest")
    assert pulled.returncode == 0, pulled.stderr
    assert (toy.root / "artifacts/ingest/text.txt").read_bytes() == written


def test_server_of_a_run_dies_with_it(sleeper: Toy):
    alone = Toy(sleeper.root, None)
    with alone.start(*ONE_STAGE) as flow:
        training = alone.pid("training-balanced")
        below = psutil.Process(flow.pid).children(recursive=True)
        servers = [each for each in below if "server" in each.cmdline()]
        assert servers
        flow.kill()
        wait_until(lambda: not any(is_alive(each.pid) for each in below), GONE_S)
        output, _ = flow.communicate(timeout=30)
    assert not is_alive(training)
    assert "python -m flows.ui shows this run" in output
    assert "http://127.0.0.1" not in output, "nobody answers there any more"


def state_name(toy: Toy, run: str) -> str:
    body = {"flow_runs": {"id": {"any_": [run]}}}
    return api(toy, "flow_runs/filter", body)[0]["state_name"]


def test_a_scheduled_run_that_is_killed_is_told_by_the_schedule(sleeper: Toy):
    """The killed process cannot speak; the one that started it can."""
    with webhook() as (address, bodies):
        serve = ("--cron", "0 0 1 1 *")
        with sleeper.start(*serve, module="flows.serve", SAMOVAR_NOTIFY=address) as server:
            run = start_scheduled(sleeper)
            training = psutil.Process(sleeper.pid("training-balanced"))
            flow = next(each for each in training.parents() if each.ppid() == server.pid)
            flow.kill()
            wait_until(lambda: bool(bodies), 90)
            server.terminate()
    assert bodies[0]["title"].endswith(" crashed")
    assert state_name(sleeper, run) == "Crashed"
    assert not is_alive(training.pid)


def start_scheduled(toy: Toy) -> str:
    """Have the deployment of flows.serve run training@balanced; the id of the run."""
    wait_until(lambda: deployment(toy) is not None)
    return start(toy, stages=["training@balanced"], force=["training@balanced"])


def test_cancelling_in_prefect_ends_the_training(sleeper: Toy):
    """The run is started by the schedule's own process, as in production.

    Prefect notices a cancellation late; the seconds count from the signal that then comes.
    """
    sleeper.knob("training-balanced.stubborn")
    with sleeper.start("--cron", "0 0 1 1 *", module="flows.serve") as server:
        run = start_scheduled(sleeper)
        found = deployment(sleeper)
        assert found is not None
        schedule = found["schedules"][0]["schedule"]
        assert (schedule["cron"], schedule["timezone"]) == ("0 0 1 1 *", machine_timezone())
        assert found["global_concurrency_limit"]["limit"] == 1
        assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        training = sleeper.pid("training-balanced")
        second = start_scheduled(sleeper)
        wait_until(lambda: state_name(sleeper, second) == "Cancelled", 40)
        assert is_alive(training)
        state = {"state": {"type": "CANCELLING"}}
        api(sleeper, f"flow_runs/{run}/set_state", state)
        wait_until((sleeper.root / "knobs" / "training-balanced.asked").exists)
        wait_until(lambda: not is_alive(training), GONE_S)
        wait_until(lambda: state_name(sleeper, run) == "Cancelled", 40)
        server.terminate()
