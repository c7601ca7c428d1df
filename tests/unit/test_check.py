"""The doctor's checks of this machine, against a server and a lock file of the test."""

import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from flows import check
from flows.server.server import free_port
from tasks import probe
from tasks.contract.stage import StageError
from tasks.params.data import Chat, Completion, Endpoint
from tasks.params.load import Params, load_params
from tasks.params.teach import Teach
from tasks.store.registry import Registry
from tasks.store.storage import open_storage
from tests.unit.fake_embeddings import VARIABLE, teacher_at

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "infra" / "profiles" / "sample.yaml"
ANY_PATH = re.compile("")


@contextmanager
def answering(status: int, content: object) -> Iterator[str]:
    """Address of a server that gives this answer to every request that bears a secret, else 401."""

    def answer(request: Request) -> Response:
        is_known = request.headers.get("Authorization", "").endswith(("c2VjcmV0", "secret"))
        return Response(json.dumps(content), status if is_known else 401)

    with HTTPServer() as server:
        server.expect_request(ANY_PATH).respond_with_handler(answer)
        yield server.url_for("").rstrip("/")


def test_every_finding_of_a_probe_is_missed_when_it_does_not_come() -> None:
    assert check.PROBES["tasks.probe"] == tuple(probe.PROBES)


def test_packages_that_differ_are_named(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    version = importlib.metadata.version("pytest")
    lock.write_text(f"# pinned\npytest=={version}\npluggy==0.0.1\nno-such-thing==1.0\n")
    [(level, text)] = check.packages(lock)
    assert level == "warning"
    assert "pluggy" in text
    assert "no-such-thing missing, pinned 1.0" in text
    assert "pytest " not in text
    lock.write_text(f"pytest=={version}\n")
    assert next(check.packages(lock)) == ("ok", f"1 packages as in {lock}")


@pytest.mark.parametrize(("platform", "level"), [("linux", "ok"), ("darwin", "warning")])
def test_another_system_than_linux_is_a_warning(
    platform: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.sys, "platform", platform)
    [(found, _)] = list(check.system())
    assert found == level


@pytest.mark.parametrize(
    ("free", "level"), [(2**30, "error"), (5 * 2**30, "warning"), (2**40, "ok")]
)
def test_the_disk_is_judged_by_its_free_bytes(
    free: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        pass

    Usage.free = free
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage)
    assert next(check.disk())[0] == level


def test_a_server_of_another_version_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = importlib.metadata.version("prefect")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")  # base64 ends in c2VjcmV0
    for version, level in (("2.0.0", "error"), (ours, "ok")):
        with answering(200, version) as address:
            monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
            [(found, text)] = check.server()
        assert (found, version in text) == (level, True)


@pytest.mark.parametrize(
    ("name", "status", "is_warned"),
    [
        ("elsewhere:samovar", "ONLINE", True),
        ("elsewhere:samovar", "OFFLINE", False),
        (f"{socket.gethostname()}:samovar", "ONLINE", False),
    ],
)
def test_workers_of_other_machines_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, name: str, status: str, is_warned: bool
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
    with answering(200, [{"name": name, "status": status}]) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        [(level, text)] = check.workers()
    assert (level, name in text) == ("warning" if is_warned else "ok", is_warned)


def test_workers_that_are_not_known_are_not_called_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
    with answering(404, {"detail": "no such pool"}) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        assert next(check.workers())[0] == "ok"
    with answering(500, "no database") as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        assert list(check.workers()) == [("warning", "not known, the server answers HTTP 500")]
    [(level, text)] = check.workers()  # by now it is down
    assert (level, "does not answer" in text) == ("warning", True)


def test_a_server_that_refuses_or_is_down_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    with answering(200, "3") as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        [(level, text)] = check.server()
    assert (level, "PREFECT_API_AUTH_STRING" in text) == ("error", True)
    [(level, text)] = check.server()  # by now it is down
    assert (level, "cannot reach" in text) == ("error", True)


def test_bad_params_hide_no_other_fault_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = {"params.yaml": check.parameters, "disk": lambda: [("error", "full")]}
    monkeypatch.setattr(check, "CHECKS", checks)
    monkeypatch.setattr(check, "_probes", lambda: pytest.fail("they need params.yaml"))
    monkeypatch.chdir(tmp_path)
    found = [(finding.name, finding.level) for finding in check.findings()]
    assert found == [("params.yaml", "error"), ("disk", "error")]


def fake_probe(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> list[check.Finding]:
    """What the check makes of a module `fake` that reports on the store, then does `code`."""
    line = json.dumps({"name": "llm", "level": "ok", "text": "there"})
    (folder / "fake.py").write_text(f"print({line!r}, flush=True)\n{code}")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(check, "PROBES", {"fake": ("llm", "store")})
    return list(check._probes())


def test_a_probe_that_is_slow_is_a_warning_and_what_it_found_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PROBE_WAIT_S", 2.0)
    found, cut = fake_probe(tmp_path, monkeypatch, "import time\ntime.sleep(60)")
    assert found == check.Finding("llm", "ok", "there")
    assert (cut.name, cut.level) == ("store", "warning")
    assert "not known after 2 s: this machine is busy" in cut.text


def test_a_probe_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, failed = fake_probe(tmp_path, monkeypatch, "raise SystemExit('trouble')")
    assert failed == check.Finding("store", "error", "trouble")


def params_with(**sections: dict[str, object]) -> Params:
    params = load_params(PROFILE)
    update = {
        name: getattr(params, name).model_copy(update=values) for name, values in sections.items()
    }
    return params.model_copy(update=update)


@pytest.mark.parametrize(
    ("compute", "gpus", "level", "text"),
    [
        ({"device": "cuda"}, 0, "error", "sees no GPU"),
        ({"device": "auto", "processes": 4}, 2, "error", "processes is 4, one per GPU"),
        ({"device": "auto", "processes": 2}, 2, "ok", "2 GPUs"),
        ({"device": "cpu", "processes": 4}, 2, "ok", "no GPU"),
        ({"device": "cpu", "threads": 10**6}, 0, "warning", "compute.threads is 1000000"),
    ],
)
def test_more_gpus_than_there_are_is_an_error(
    compute: dict[str, object],
    gpus: int,
    level: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "_count_gpus", lambda: gpus)
    found = next(probe.processors(params_with(compute={"threads": 1} | compute)))
    assert (found[0], text in found[1]) == (level, True), found


def test_a_folder_as_store_is_tried_and_left_empty(tmp_path: Path) -> None:
    store = {"url": str(tmp_path / "store"), "endpoint_url": None}
    assert next(probe.store(params_with(store=store)))[0] == "ok"
    assert list((tmp_path / "store").iterdir()) == []


def test_a_champion_of_other_tasks_is_an_error_before_the_run(tmp_path: Path) -> None:
    """The gate finds it as well, after all trainings."""
    store = {"url": str(tmp_path / "store"), "endpoint_url": None}
    params = params_with(store=store)
    tasks = dict.fromkeys(params.evaluate.tasks, 0.5)
    assert next(probe.champion(params))[0] == "ok"
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    registry = Registry(open_storage(store["url"], None), params.publish.name)
    for fingerprint, scores in (("a" * 64, {"Old": 0.5} | tasks), ("b" * 64, tasks)):
        registry.publish(model, fingerprint=fingerprint, mean=0.5, scores=scores, run={})
    level, text = next(probe.champion(params))
    assert (level, text) == ("ok", f"v0002-bbbbbbbb was evaluated on the same {len(tasks)} tasks")
    with_another = params_with(store=store, evaluate={"tasks": {"SampleSTS": "", "New": ""}})
    level, text = next(probe.champion(with_another))
    assert level == "error"
    assert "only it has SampleClustering, " in text
    assert "it lacks New)" in text


def test_an_endpoint_without_its_key_or_that_is_down_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(address: str) -> tuple[str, str]:
        endpoint = Endpoint(
            base_url=f"{address}/v1", model="m", concurrency=1, timeout_s=1.0, max_retries=0,
            max_backoff_s=1.0, temperature=0.0, interface=Chat(kind="chat", min_score=3),
        )  # fmt: skip
        return next(probe.llm(params_with(synthesize={"endpoint": endpoint})))

    monkeypatch.delenv(probe.API_KEY_VARIABLE, raising=False)
    with answering(200, {"data": []}) as address:
        level, text = found(address)
        assert (level, probe.API_KEY_VARIABLE in text) == ("error", True)
        monkeypatch.setenv(probe.API_KEY_VARIABLE, "secret")
        assert found(address)[0] == "ok"
    with answering(404, {}) as address:
        assert found(address)[0] == "ok"
    level, text = found(address)
    assert (level, "cannot reach" in text) == ("error", True)


def test_a_teacher_behind_an_endpoint_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(address: str) -> list[tuple[probe.Level, str]]:
        teachers = {"far": teacher_at(f"{address}/v1")}
        taught = Teach(teachers=teachers, sources=[], documents=True, block_texts=1)  # pyright: ignore[reportArgumentType]
        return list(probe.teachers(params_with().model_copy(update={"teach": taught})))

    monkeypatch.delenv(VARIABLE, raising=False)
    with answering(200, {"data": []}) as address:
        ((level, text),) = found(address)
        assert (level, f"set {VARIABLE}" in text) == ("error", True)
        monkeypatch.setenv(VARIABLE, "secret")
        ((level, _),) = found(address)
        assert level == "ok"
    ((level, text),) = found(address)
    assert (level, "check teach.teachers.far" in text) == ("error", True)
    assert next(probe.teachers(params_with()))[0] == "ok"


def test_a_missing_file_of_examples_is_an_error() -> None:
    interface = Completion(
        kind="completion", examples={"documents": "novels"}, styles=["question"],
        passage_characters=300, max_tokens=40,
    )  # fmt: skip
    endpoint = Endpoint(
        base_url="http://127.0.0.1:9/v1", model="m", interface=interface, concurrency=1,
        timeout_s=1.0, max_retries=0, max_backoff_s=1.0, temperature=0.0,
    )  # fmt: skip
    with pytest.raises(StageError, match=r"examples names novels, but .*novels\.txt does not"):
        next(probe.llm(params_with(synthesize={"endpoint": endpoint})))


def test_addresses_for_notices_are_read_and_their_secrets_are_not_shown(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("SAMOVAR_NOTIFY", "json://user:hidden@127.0.0.1/ nonsense://hidden")
    found = list(check.notifications())
    assert [level for level, _ in found] == ["error", "ok"]
    assert "address 2 of SAMOVAR_NOTIFY (nonsense://...)" in found[0][1]
    assert "json://user:****@127.0.0.1" in found[1][1]
    assert "hidden" not in str(found)
    monkeypatch.delenv("SAMOVAR_NOTIFY")
    assert [level for level, _ in check.notifications()] == ["ok"]


ALONE = """
from flows import check

check.CHECKS = {"server": check.server}
check.PROBES = {"fake": ("no_proxy",)}
check.main()
"""


def test_what_runs_on_this_machine_is_asked_without_a_proxy(tmp_path: Path) -> None:
    """As `make check` does, by itself and by the modules that it starts."""
    (tmp_path / "infra").mkdir()
    for name in ("prefect.env", "prefect-logging.yaml"):
        shutil.copyfile(ROOT / "infra" / name, tmp_path / "infra" / name)
    (tmp_path / "fake.py").write_text(
        "import json, os\n"
        "finding = {'name': 'no_proxy', 'level': 'ok', 'text': os.environ['no_proxy']}\n"
        "print(json.dumps(finding))\n"
    )
    dead = f"http://127.0.0.1:{free_port()}"
    with answering(200, importlib.metadata.version("prefect")) as address:
        environment = os.environ | {
            "PREFECT_API_URL": f"{address}/api",
            "PREFECT_API_AUTH_STRING": "me:secret",
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "http_proxy": dead,
            "HTTP_PROXY": dead,
            "no_proxy": "",
            "NO_PROXY": "",
        }
        command = [sys.executable, "-c", ALONE]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    server, probed = done.stdout.splitlines()
    assert server.split()[:2] == ["server", "ok"], done.stdout + done.stderr
    assert probed.split()[1:] == ["ok", "127.0.0.1,localhost,::1"]
