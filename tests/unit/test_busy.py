"""params.yaml is left alone while a run reads it."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.states import Crashed

from flows import retrain
from flows.checkout.locks import hold_checkout
from flows.errors import FlowError
from flows.run import alive, pipeline


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of one profile."""
    profiles = Path("infra/profiles/sample.yaml").read_bytes()
    monkeypatch.chdir(tmp_path)
    Path("infra/profiles").mkdir(parents=True)
    Path("infra/profiles/sample.yaml").write_bytes(profiles)
    return tmp_path


def test_a_profile_is_not_installed_under_a_run(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["retrain", "--profile", "sample"])
    with hold_checkout(checkout), pytest.raises(SystemExit, match="another run holds"):
        retrain.main()
    assert not Path("params.yaml").exists()


def test_the_lock_is_held_while_a_profile_is_installed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(_name: str, _data: Path | None) -> None:
        with pytest.raises(FlowError, match="another run holds"), hold_checkout(checkout):
            pass
        raise FlowError("looked at")

    monkeypatch.setattr(retrain, "install_profile", install)
    monkeypatch.setattr(sys, "argv", ["retrain", "--profile", "sample"])
    with pytest.raises(SystemExit, match="looked at"):
        retrain.main()


def test_a_dry_run_in_the_ui_installs_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "use_terminal", lambda: None)
    monkeypatch.setattr(pipeline, "end_with_worker", lambda: None)
    with pytest.raises(FlowError, match=r"a dry run leaves params\.yaml alone: drop the profile"):
        pipeline.retrain.fn(profile="sample", dry_run=True)
    assert not Path("params.yaml").exists()


def test_a_waiting_run_that_was_taken_for_dead_says_that_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever gets the checkout first closes all that seem to run."""
    states: list[Any] = []

    class Client:
        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read_flow_run(self, _run: object) -> SimpleNamespace:
            return SimpleNamespace(state=Crashed(message=alive.DIED))

        def set_flow_run_state(self, _run: object, state: object, *, force: bool) -> None:
            states.append((cast("Any", state).name, force))

    monkeypatch.setattr(alive, "get_client", lambda **_: Client())
    monkeypatch.setattr(alive, "say", lambda _: None)
    alive._reopen(uuid4())
    assert states == [("Running", True)]
