"""The flow on a toy checkout, against a real Prefect server."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import dvc.lock
import pytest

from tests.flows.toy import Popen, Toy, api, last_run, wait_until

STAGES = {"ingest", "training@balanced", "training@retrieval", "merge", "gate", "report"}


def task_states(toy: Toy, run: dict[str, Any]) -> dict[str, str]:
    """Name of each task run to the name of its state, once the server has them all."""
    body = {"flow_runs": {"id": {"any_": [run["id"]]}}}

    def are_final() -> bool:
        runs = api(toy, "task_runs/filter", body)
        return bool(runs) and all(each["state_name"] not in {"Running", "Pending"} for each in runs)

    wait_until(are_final)
    return {each["name"]: each["state_name"] for each in api(toy, "task_runs/filter", body)}


def test_stages_run_in_the_order_of_dvc_with_the_hooks_in_place(ran_template):
    order = (ran_template / "knobs" / "order.txt").read_text().split()
    assert order[0] == "ingest"
    assert set(order[1:3]) == {"training-balanced", "training-retrieval"}
    assert order[3:] == ["merge", "champion", "gate", "report", "publish"]


def test_summary_names_states_and_how_to_look_again(ran_template):
    output = (ran_template / "output.txt").read_text()
    assert re.search(r"training@balanced\s+│\s+ran", output)
    assert "Prefect UI: http://127.0.0.1:" in output


def test_outputs_are_pushed(ran_template):
    toy = Toy(ran_template, None)
    assert "in sync" in toy.dvc("status", "--cloud").stdout


def test_rerun_without_a_change_skips_every_stage(ran: Toy):
    leftover = ran.root / "artifacts" / "evaluate" / "rung-of-another-profile"
    leftover.mkdir(parents=True)
    status, output = ran.retrain()
    assert status == 0, output
    assert not leftover.exists()
    assert "every stage is up to date" in output
    assert ran.order() == ["champion", "publish"]
    states = task_states(ran, last_run(ran))
    assert {states[stage] for stage in STAGES} == {"Skipped"}


def test_what_lies_outside_of_the_checkout_is_looked_at_before_dvc_looks(ran: Toy):
    (ran.root / "outside.json").write_text('{"backbone": {"/models/decoder": "ab"}}')
    (ran.root / "knobs" / "outside.fail").touch()
    status, output = ran.retrain()
    assert status == 1
    assert "no registry for outside" in output
    assert ran.order() == []


@pytest.mark.slow
def test_from_a_stage_on_all_is_run_again_and_the_model_published(ran: Toy):
    status, output = ran.retrain("--from", "merge")
    assert status == 0, output
    assert ran.order() == ["merge", "champion", "gate", "report", "publish"]


def test_a_dry_run_says_what_would_run_and_does_nothing(ran: Toy):
    assert "every stage is up to date: nothing would run" in ran.retrain("--dry-run")[1]
    ran.edit_corpus("another corpus ")
    before = sorted(path for path in ran.root.rglob("*") if ".dvc/tmp" not in str(path))
    status, output = ran.retrain("--dry-run", "--force", "merge")
    assert status == 0, output
    assert re.search(r"ingest +│ +run +│.*data/corpus.txt modified", output)
    assert re.search(r"training@balanced +│ +run if its inputs change +│.*after ingest", output)
    assert re.search(r"merge +│ +run +│.*asked for by --force", output)
    assert "6 of 6 stages would run or might" in output
    assert ran.order() == []
    after = sorted(path for path in ran.root.rglob("*") if ".dvc/tmp" not in str(path))
    assert after == before


@pytest.mark.slow
def test_a_state_seen_before_comes_from_the_run_cache(ran: Toy):
    ran.edit_corpus("another corpus ")
    assert ran.retrain("--stages", "ingest")[0] == 0
    assert ran.order() == ["ingest"]
    ran.edit_corpus("corpus ")
    status, output = ran.retrain("--stages", "ingest")
    assert status == 0, output
    assert ran.order() == ["ingest"]
    assert task_states(ran, last_run(ran))["ingest"] == "Cached"


@pytest.mark.slow
def test_a_killed_stage_is_said_to_have_been_killed(toy: Toy):
    toy.knob("training-balanced.sleep", "60")
    with toy.start() as flow:
        os.kill(toy.pid("training-balanced"), signal.SIGKILL)
        output, _ = flow.communicate(timeout=120)
    assert flow.returncode == 1
    assert re.search(r"training@balanced failed with status \d+, it was killed \(SIGKILL\)", output)
    assert "it was killed (SIGKILL)" in last_run(toy)["state"]["message"]
    kept = (toy.root / ".samovar" / "history.jsonl").read_text().splitlines()[-1]
    assert json.loads(kept)["result"].startswith("failed: training@balanced failed with status")


def test_failed_stage_fails_the_run_with_its_last_lines_and_other_branches_finish(toy: Toy):
    toy.knob("training-balanced.fail")
    status, output = toy.retrain()
    assert status == 1
    run = last_run(toy)
    message = run["state"]["message"]
    assert run["state_type"] == "FAILED"
    assert "training@balanced failed" in message
    assert "trouble 39" in message
    assert "trouble 5 " not in message
    assert "not run for that reason: merge, champion, gate, report" in output
    assert toy.order() == ["ingest", "training-retrieval"]
    states = task_states(toy, run)
    assert states["training@balanced"] == "Failed"
    assert states["merge"] == "NotRun"
    pushed = [name for name in states if name.startswith("push") and "training@retrieval" in name]
    assert [states[name] for name in pushed] == ["Completed"]


@pytest.mark.slow
def test_run_goes_on_after_a_failure_is_mended(toy: Toy):
    toy.knob("training-balanced.fail")
    assert toy.retrain("--stages", "ingest", "training")[0] == 1
    toy.unset("training-balanced.fail")
    status, output = toy.retrain("--stages", "ingest", "training")
    assert status == 0, output
    assert toy.order() == ["ingest", "training-retrieval", "training-balanced"]


@pytest.mark.slow
def test_failed_hook_fails_the_run(ran: Toy):
    ran.knob("publish.fail")
    status, output = ran.retrain()
    assert status == 1
    assert "publish failed" in output
    assert "no registry for publish" in output


@pytest.mark.slow
def test_independent_stages_run_side_by_side(toy: Toy):
    for variant in ("balanced", "retrieval"):
        toy.knob(f"training-{variant}.sleep", "60")
    with toy.start() as process:
        toy.pid("training-balanced")
        toy.pid("training-retrieval")
        process.terminate()
    assert toy.order() == ["ingest"]


@pytest.mark.slow
def test_output_lines_reach_the_terminal_and_the_run_log(ran: Toy):
    status, output = ran.retrain("--stages", "merge", "--force", "merge")
    assert status == 0, output
    assert re.search(r"\d:\d\d      merge              \| toy: merge begins", output)
    body = {"logs": {"flow_run_id": {"any_": [last_run(ran)["id"]]}}}
    assert "toy: merge begins" in {line["message"] for line in api(ran, "logs/filter", body)}


@pytest.mark.slow
def test_what_depends_on_a_change_runs_and_only_among_the_named_stages(ran: Toy):
    ran.edit_corpus("another corpus ")
    status, output = ran.retrain("--stages", "ingest", "training")
    assert status == 0, output
    assert set(ran.order()) == {"ingest", "training-balanced", "training-retrieval"}


def test_run_shows_its_stages_and_metrics_as_artifacts(ran_template, prefect_server):
    toy = Toy(ran_template, prefect_server)
    run = last_run(toy)
    assert re.fullmatch(r"retrain \d{4}-\d\d-\d\d \d\d:\d\d", run["name"])
    body = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
    found = api(toy, "artifacts/filter", body)
    texts = {each["key"]: each["data"] for each in found}
    assert "| nested.loss_nats | 1.25 |" in texts["metrics-training-balanced"]
    assert {"stage": "ingest", "state": "ran"}.items() <= json.loads(texts["stages"])[0].items()
    assert json.loads(texts["score-ladder"]) == [
        {"rung": "final", "mean": "50.0", "SampleSTS": "25.0"},
        {"rung": "champion v0000", "mean": "40.0", "SampleSTS": "20.0"},
    ]
    assert texts["gate"] == "**The gate lets this model pass**\n\n- It is better."
    [flow] = json.loads(texts["data-flow"])
    assert list(flow.values()) == ["corpus", 9, 6, 1, 2, "too long 2"]
    assert (ran_template / "artifacts/report/index.html").as_uri() in texts["report"]
    assert texts["progress-merge"] == 75.0
    [shown] = [each["description"] for each in found if each["key"] == "progress-merge"]
    assert shown == "merge: step 3 of 4, loss 1.5 nats, 1 s left"
    assert "progress-ingest" not in texts
    head, _, kept = (line.split(" | ") for line in texts["retrainings"].splitlines())
    assert head[2:4] == ["stages run", "mean"]
    assert kept[2:4] == ["6", "50.0"]
    assert kept[-1].startswith("published v0001-")
    assert "git checkout samovar-sample/v0001-" in texts["publication"]


@pytest.mark.slow
def test_stage_that_ends_waits_for_a_dvc_typed_by_hand(toy: Toy):
    """DVC takes its lock again after a stage; by itself it gives up after three seconds."""
    toy.knob("ingest.sleep", "100")
    with toy.start("--stages", "ingest") as run:
        toy.pid("ingest")
        with lock_of_dvc(toy):
            toy.unset("ingest.sleep")
            wait_until(lambda: toy.order() == ["ingest"])
            wait_longer_than_dvc_does(run)
        output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output


@pytest.mark.slow
def test_run_that_starts_waits_for_a_dvc_typed_by_hand(toy: Toy):
    with toy.start("--stages", "ingest") as run:
        with lock_of_dvc(toy):
            assert run.stdout is not None
            while "outputs go to" not in run.stdout.readline():
                assert run.poll() is None
            wait_longer_than_dvc_does(run)
            assert toy.order() == []
        output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output


@contextlib.contextmanager
def lock_of_dvc(toy: Toy) -> Iterator[None]:
    """Hold it as a `dvc` of another terminal does."""
    with (toy.root / ".dvc" / "tmp" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_longer_than_dvc_does(run: Popen) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(dvc.lock.DEFAULT_TIMEOUT + 1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--stages", "nosuch"), "no such stage: nosuch"),
        (("--profile", "nosuch"), "invalid choice"),
    ],
)
def test_a_name_that_does_not_exist_is_refused(ran: Toy, arguments, complaint):
    status, output = ran.retrain(*arguments)
    assert status != 0
    assert complaint in output


def test_bad_parameter_stops_before_anything_starts(ran: Toy):
    ran.set_params(compute={"device": "cpu", "threads": 0})
    status, output = ran.retrain()
    assert status == 1
    assert "compute.threads" in output
    assert "Traceback" not in output
    assert ran.order() == []


@pytest.mark.slow
def test_second_run_in_a_checkout_is_refused(ran: Toy):
    ran.knob("merge.sleep", "60")
    with ran.start("--stages", "merge", "--force", "merge") as first:
        ran.pid("merge")
        status, output = ran.retrain()
        assert status == 1
        assert f"process {first.pid} on" in output
        first.terminate()
