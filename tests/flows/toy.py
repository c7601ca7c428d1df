"""A toy checkout: the real flows/ over a small dvc.yaml whose stages take milliseconds."""

import base64
import http
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from flows.checkout.names import checkout_name, run_tags

Popen = subprocess.Popen[str]
ROOT = Path(__file__).resolve().parents[2]
AUTH = "toy:password of the toys"
"""Of every Prefect server of these tests."""

STAGE_SCRIPT = """
import json, os, pathlib, signal, sys, time
name, target = sys.argv[1], pathlib.Path(sys.argv[2])
knobs = pathlib.Path("knobs")
if (knobs / f"{name}.stubborn").exists():
    signal.signal(signal.SIGTERM, lambda *_: (knobs / f"{name}.asked").touch())
(knobs / f"{name}.pid").write_text(str(os.getpid()))
print(f"INFO toy: {name} begins", flush=True)
if name == "merge":
    print("INFO toy: step 1/4 loss 2.5 nats, 3 s left", flush=True)
    print("INFO toy: step 3/4 loss 1.5 nats, 1 s left", flush=True)
if (knobs / f"{name}.fail").exists():
    for number in range(40):
        print(f"ERROR toy: trouble {number} in {name}", flush=True)
    sys.exit(3)
if (knobs / f"{name}.hog").exists():
    hog = b"x" * int((knobs / f"{name}.hog").read_text())
if (knobs / f"{name}.sleep").exists():
    deadline = time.monotonic() + float((knobs / f"{name}.sleep").read_text())
    while (knobs / f"{name}.sleep").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
target.mkdir(parents=True, exist_ok=True)
text = "".join(pathlib.Path(p).read_text() for p in sys.argv[3:])
(target / "text.txt").write_text(text + name)
metrics = {"characters": len(text), "nested": {"loss_nats": 1.25}}
if name == "ingest":
    counts = {"read": 9, "kept": 6, "development": 1, "quarantined": {"too_long": 2}}
    metrics["sources"] = {"corpus": counts}
(target / "metrics.json").write_text(json.dumps(metrics))
if name == "gate":
    champion = {"version": "v0000", "mean": 0.4}
    tasks = [{"task": "SampleSTS", "champion": 0.2, "candidate": 0.25, "change": 0.05}]
    decision = {"publish": True, "reasons": ["It is better."], "champion": champion, "tasks": tasks}
    decision["candidate"] = {"mean": 0.5}
    (target / "decision.json").write_text(json.dumps(decision))
if name == "report":
    (target / "index.html").write_text("<p>report</p>")
    ladder = [{"rung": "final", "mean": 0.5, "tasks": {"SampleSTS": 0.25}}]
    (target / "ladder.json").write_text(json.dumps(ladder))
with (knobs / "order.txt").open("a") as file:
    file.write(name + "\\n")
"""

HOOK_SCRIPT = """
import pathlib, sys
name = "{name}"
if (pathlib.Path("knobs") / f"{{name}}.fail").exists():
    sys.exit(f"ERROR toy: no registry for {{name}}")
with open("knobs/order.txt", "a") as file:
    file.write(name + "\\n")
{body}
"""
PUBLISH_BODY = """
import hashlib, json
number = hashlib.sha256(pathlib.Path("artifacts/merge/text.txt").read_bytes()).hexdigest()[:8]
result = {"version": f"v0001-{number}", "is_new": True, "address": "s3://toy/model"}
result |= {"mean": 0.5, "scores": {"SampleSTS": 0.25}}
if (pathlib.Path("knobs") / "publish.refuse").exists():
    result = {"version": None, "is_new": False, "reasons": ["mean 0.4 is below the champion's 0.5"]}
pathlib.Path(".samovar/published.json").write_text(json.dumps(result))
"""
CHAMPION_BODY = """pathlib.Path("champion.json").write_text('{"mean": null}')"""


def toy_stage(name: str, inputs: list[str], folder: str | None = None) -> dict[str, object]:
    """The dvc.yaml entry of a stage that copies its inputs."""
    target = f"artifacts/{folder or name}"
    return {
        "cmd": f"python stage.py {name} {target} {' '.join(inputs)}",
        "deps": ["stage.py", *inputs],
        "outs": [f"{target}/text.txt"],
        "metrics": [{f"{target}/metrics.json": {"cache": False}}],
    }


def toy_report() -> dict[str, object]:
    entry = toy_stage("report", ["artifacts/gate/text.txt"])
    files = [f"artifacts/report/{name}" for name in ("text.txt", "index.html", "ladder.json")]
    return entry | {"outs": files}


def toy_pipeline() -> dict[str, object]:
    """ingest -> two trainings side by side -> merge -> gate (after champion) -> report."""
    training = toy_stage("training-${item.variant}", ["artifacts/ingest/text.txt"])
    return {
        "stages": {
            "ingest": toy_stage("ingest", ["data/corpus.txt"]),
            "training": {"matrix": {"variant": ["balanced", "retrieval"]}, **training},
            "merge": toy_stage(
                "merge",
                [f"artifacts/training-{name}/text.txt" for name in ("balanced", "retrieval")],
            ),
            "gate": toy_stage("gate", ["artifacts/merge/text.txt", "champion.json"]),
            "report": toy_report(),
        }
    }


def _heed_ctrl_c() -> None:
    """As at a terminal: what a shell starts in the background ignores it, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Toy:
    """A toy checkout."""

    root: Path
    api_url: str | None
    """Of the Prefect server; without one a run starts its own."""

    @staticmethod
    def host() -> str:
        return socket.gethostname()

    def knob(self, name: str, text: str = "") -> None:
        """Make the next run of a stage fail (`merge.fail`) or last (`training-balanced.sleep`).

        `training-balanced.stubborn` makes it do nothing on SIGTERM but leave `.asked`.
        """
        (self.root / "knobs" / name).write_text(text)

    def unset(self, name: str) -> None:
        (self.root / "knobs" / name).unlink()

    def edit_corpus(self, text: str) -> None:
        (self.root / "data" / "corpus.txt").write_text(text)

    def order(self) -> list[str]:
        """The stages and hooks that have really run, in order of their ends."""
        path = self.root / "knobs" / "order.txt"
        return path.read_text().split() if path.exists() else []

    def pid(self, stage: str, timeout_s: float = 90.0) -> int:
        """The process of a stage that is running now."""
        path = self.root / "knobs" / f"{stage}.pid"

        def runs() -> bool:
            # an earlier run may have left the file of a process that has ended
            text = path.read_text() if path.exists() else ""
            return text != "" and psutil.pid_exists(int(text))

        wait_until(runs, timeout_s)
        return int(path.read_text())

    def start(self, *arguments: str, module: str = "flows.retrain", **environment: str) -> Popen:
        """`python -m flows.retrain ARGUMENTS`, not waited for."""
        server = {"PREFECT_API_URL": self.api_url} if self.api_url else {}
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.root,
            env=toy_environment() | server | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_heed_ctrl_c,
        )

    def retrain(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """`python -m flows.retrain ARGUMENTS` to its end: exit status and all it printed."""
        with self.start(*arguments, **environment) as process:
            output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def dvc(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.root,
            env=toy_environment() | environment,
            text=True,
            capture_output=True,
            check=False,
        )

    def store_url(self) -> str:
        return yaml.safe_load((self.root / "params.yaml").read_text())["store"]["url"]

    def set_params(self, **sections: object) -> None:
        """Replace whole sections of params.yaml."""
        path = self.root / "params.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))


def toy_environment() -> dict[str, str]:
    """The environment without what would reach into a toy checkout from outside."""
    outside = ("PREFECT_", "AWS_", "PYTHONPATH", "DVC_", "DATABASE_URL", "SAMOVAR_CHECKOUT")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    auth = {"PREFECT_SERVER_API_AUTH_STRING": AUTH, "PREFECT_API_AUTH_STRING": AUTH}
    return clean | auth | {"PATH": f"{Path(sys.executable).parent}:{clean['PATH']}"}


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Poll until `condition` holds.

    Raises:
        TimeoutError: It did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s")
        pause.wait(0.05)


def write_toy(root: Path) -> None:
    """Make `root` an initialised toy checkout in which nothing has run."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("flows", "tasks/machine/gpus", "tasks/params", "infra/profiles"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ("infra/prefect.env", "infra/prefect-logging.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    shutil.copyfile(ROOT / "infra" / "profiles" / "sample.yaml", root / "params.yaml")
    (root / "tasks" / "__init__.py").touch()
    (root / "tasks" / "machine" / "__init__.py").touch()
    (root / "tasks" / "champion.py").write_text(
        HOOK_SCRIPT.format(name="champion", body=CHAMPION_BODY)
    )
    (root / "tasks" / "outside.py").write_text(HOOK_SCRIPT.format(name="outside", body=""))
    (root / "tasks" / "publish.py").write_text(
        HOOK_SCRIPT.format(name="publish", body=PUBLISH_BODY)
    )
    (root / "stage.py").write_text(STAGE_SCRIPT)
    (root / "dvc.yaml").write_text(yaml.safe_dump(toy_pipeline(), sort_keys=False))
    (root / "champion.json").write_text("{}")
    (root / "knobs").mkdir()
    (root / "data").mkdir()
    (root / "data" / "corpus.txt").write_text("corpus ")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    (root / ".dvc" / "config").write_text("[core]\n    remote = store\n    analytics = false\n")
    ignored = ("artifacts", "knobs", "store", ".samovar", "__pycache__")
    (root / ".gitignore").write_text("".join(f"{name}/\n" for name in ignored))
    git(root, "add", "--all")
    git(root, "commit", "-q", "-m", "A toy")


def git(root: Path, *arguments: str) -> str:
    """The output of a git command, by an author of its own."""
    author = ("-c", "user.name=Toy", "-c", "user.email=toy@localhost")
    result = subprocess.run(
        ["git", *author, *arguments], cwd=root, check=True, capture_output=True, text=True
    )
    return result.stdout.strip()


def api(toy: Toy, path: str, body: dict[str, Any], tries: int = 3) -> Any:
    """What the server answers; asked again while its SQLite is locked, as Prefect's client does."""
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{toy.api_url}/{path}",
        data=json.dumps(body).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(AUTH.encode()).decode()}",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE or tries == 1:
            raise
    time.sleep(2)
    return api(toy, path, body, tries - 1)


def deployment(toy: Toy) -> dict[str, Any] | None:
    """That of this checkout, once it is there."""
    body = {"deployments": {"name": {"any_": [checkout_name(toy.root)]}}}
    return next(iter(api(toy, "deployments/filter", body)), None)


def start(toy: Toy, **parameters: object) -> str:
    """Start a run of that deployment, as the schedule or the UI does; its id."""
    found = deployment(toy)
    assert found is not None
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return api(toy, f"deployments/{found['id']}/create_flow_run", body)["id"]


def last_run(toy: Toy) -> dict[str, Any]:
    """The flow run of this checkout that began last, as the server shows it."""
    begun = {"tags": {"all_": run_tags(toy.root)}, "start_time": {"is_null_": False}}
    runs = api(toy, "flow_runs/filter", {"flow_runs": begun, "sort": "START_TIME_DESC"})
    return runs[0]
