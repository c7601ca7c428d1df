"""No secret of the environment reaches a file: outputs, logs, settings, Prefect's database, git."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server.server import free_port
from tests.flows.receiver import webhook
from tests.flows.s3 import KEYS, S3
from tests.flows.toy import AUTH, Toy, api, git, start, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.s3]

PLANTED = {
    "OPENAI_API_KEY": "planted-key-of-the-model",
    "HF_TOKEN": "planted-token-of-the-hub",
    "AWS_SESSION_TOKEN": "",
}


def holders(root: Path, secrets: list[str]) -> Iterator[str]:
    """Files below `root` that hold one of the secrets, and which."""
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        for secret in secrets:
            if secret.encode() in content:
                yield f"{path.relative_to(root)} holds {secret}"


def test_secrets_stay_in_the_environment(toy: Toy, s3: S3):
    """A green run of the deployment, a failed one, a refusing store, a notice: then every file."""
    toy.set_params(store={"url": "s3://samovar/secrets", "endpoint_url": s3.endpoint_url})
    git(toy.root, "commit", "-q", "--all", "-m", "store")
    with webhook() as (address, bodies):
        notify = address.replace("json://", "json://user:planted-word-of-the-chat@")
        shown = live(toy, {**KEYS, **PLANTED, "SAMOVAR_NOTIFY": notify})
        assert len(bodies) == 3, "a version, a failure, a refusal"
    planted = [value for value in (*PLANTED.values(), KEYS["AWS_SECRET_ACCESS_KEY"]) if value]
    planted += ["planted-word-of-the-chat", "planted-wrong-secret", AUTH.partition(":")[2]]
    assert list(holders(toy.root, planted)) == []
    assert not [secret for secret in planted if secret in shown]
    assert any(".samovar/prefect/" in line for line in holders(toy.root, ["trouble 39 in merge"]))
    assert git(toy.root, "tag"), "what git keeps was looked at as well"


def live(toy: Toy, secrets: dict[str, str]) -> str:
    """Services up, three runs that end in three ways, services down; all that was printed."""
    port = free_port()
    local, served = Toy(toy.root, None), Toy(toy.root, f"http://127.0.0.1:{port}/api")
    with local.start("up", "--port", str(port), module="flows.services", **secrets) as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    try:
        run_deployment(served)
        toy.edit_corpus("other ")
        toy.knob("merge.fail")
        failed, more = local.retrain(**secrets)
        toy.unset("merge.fail")
        wrong = secrets | {"AWS_SECRET_ACCESS_KEY": "planted-wrong-secret"}
        refused, most = local.retrain(**wrong)
        assert (failed, refused) == (1, 1)
    finally:
        local.start("down", "--force", module="flows.services").communicate(timeout=60)
    return output + more + most


def run_deployment(toy: Toy) -> None:
    wanted = {"flow_runs": {"id": {"any_": [start(toy)]}}}
    wait_until(lambda: api(toy, "flow_runs/filter", wanted)[0]["state_type"] == "COMPLETED", 120)
