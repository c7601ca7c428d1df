"""What is ours on a server that others use as well."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import RelatedResource, Resource

from flows.checkout.names import GIVEN, checkout_name, run_tags
from flows.server import deployment


@pytest.fixture(autouse=True)
def no_name_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GIVEN, raising=False)


def test_two_checkouts_of_one_name_are_two_and_a_name_can_be_read(tmp_path: Path) -> None:
    one, other = (tmp_path / person / "samovar" for person in ("ann", "bob"))
    assert checkout_name(one) == checkout_name(one)
    assert checkout_name(one) != checkout_name(other)
    assert "-samovar-" in checkout_name(one)
    assert not set(run_tags(one)[1:]) & set(run_tags(other))
    assert "/" not in checkout_name(tmp_path / "a b%c")


def test_a_container_is_called_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GIVEN, "team / gpu")
    assert checkout_name(Path("/one")) == checkout_name(Path("/other")) == "team-gpu"


@pytest.mark.parametrize("automation", deployment.automations(), ids=lambda each: each.name)
def test_runs_of_others_are_none_of_our_business(automation: Any) -> None:
    trigger = EventTrigger.model_validate(automation.trigger.model_dump(mode="json"))
    run = Resource({"prefect.resource.id": f"prefect.flow-run.{uuid4()}"})

    def tagged(*tags: str) -> list[RelatedResource]:
        names = [{"prefect.resource.id": f"prefect.tag.{tag}"} for tag in tags]
        return [RelatedResource({**name, "prefect.resource.role": "tag"}) for name in names]

    assert trigger.covers_resources(run, tagged("nightly", *run_tags(Path("/srv/samovar"))))
    assert not trigger.covers_resources(run, tagged("nightly", "checkout:samovar"))
    assert not trigger.covers_resources(run, [])


def test_a_run_killed_before_its_first_heartbeat_is_closed_as_well() -> None:
    dead = next(each for each in deployment.automations() if "sign of life" in each.name)
    trigger = cast("Any", dead.trigger)
    assert trigger.after == {"prefect.flow-run.Running", "prefect.flow-run.heartbeat"}
    assert "prefect.flow-run.Running" not in trigger.expect


def test_a_schedule_given_or_switched_off_earlier_is_kept() -> None:
    schedule = CronSchedule(cron="30 4 * * 1", timezone="Europe/Moscow")
    old = DeploymentSchedule(schedule=schedule, active=False)
    client = SimpleNamespace(read_deployment_by_name=lambda _: SimpleNamespace(schedules=[old]))
    kept = deployment._schedules(cast("Any", client), "name")
    assert kept == [DeploymentScheduleCreate(schedule=schedule, active=False)]
    assert kept is not None
    assert deployment._said(kept[0]) == "'30 4 * * 1' Europe/Moscow, switched off"


def test_a_new_deployment_has_no_schedule_to_keep() -> None:
    def missing(name: str) -> None:
        raise ObjectNotFound(Exception(name))

    client = SimpleNamespace(read_deployment_by_name=missing)
    assert deployment._schedules(cast("Any", client), "name") is None
