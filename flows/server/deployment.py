"""What a Prefect server has to know to retrain by itself: pool, deployment, automations.

Imported after `use_settings` and with PREFECT_API_URL set. Everything here may be done again; what
is there already is brought to the same state.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    DeploymentSchedule,
    StateType,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger, emit_event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from flows.checkout.names import OURS, checkout_name, run_tags
from flows.plan.cron import MONTHLY
from flows.run.alive import SILENT
from flows.run.pipeline import retrain

DATA_ARRIVED = "samovar.data.arrived"
"""Event that starts a retraining: `python -m flows.arrived`."""
FOR = "samovar.checkout"
"""Label of that event: whose retraining."""
ONE_AT_A_TIME = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
)
WAIT_HOURS = 24.0
"""How long a run of the deployment waits for one that was typed by hand; its form has another."""
NO_SIGN_OF_LIFE = timedelta(seconds=90)
"""Three heartbeats of PREFECT_FLOWS_HEARTBEAT_FREQUENCY, infra/prefect.env."""
PENDING_TOO_LONG = timedelta(seconds=90)
"""From when a worker takes a run to its first line; some ten seconds on a busy machine."""
ENDS = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}


def register(root: Path, cron: str | None, timezone: str) -> str:
    """Make pool, deployment and automations what they should be.

    Args:
        root: Checkout that the worker runs in.
        cron: When; None leaves a deployment that is there the schedule it has, also one given or
            switched off in the UI.
        timezone: Of `cron`, and of the monthly schedule of a new deployment.

    Returns:
        The schedule, for a person.
    """
    name = checkout_name(root)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"), overwrite=True)
        kept = _schedules(client, name) if cron is None else None
    if kept is None:
        kept = [DeploymentScheduleCreate(schedule=_cron(cron or MONTHLY, timezone))]
    # runs are started elsewhere, so that the root has to be on the path by name
    job = {"working_dir": str(root), "env": {"PYTHONPATH": str(root)}}
    source: Any = retrain.from_source(source=str(root), entrypoint="flows/run/pipeline.py:retrain")
    source.deploy(
        name=name,
        work_pool_name=name,
        job_variables=job,
        schedules=kept,
        tags=run_tags(root),
        parameters={"wait_hours": WAIT_HOURS},
        triggers=[DeploymentEventTrigger(expect={DATA_ARRIVED}, match=cast("Any", {FOR: name}))],
        concurrency_limit=ONE_AT_A_TIME,
        build=False,
        push=False,
        print_next_steps=False,
        ignore_warnings=True,
    )
    for automation in automations():
        _replace(automation)
    return ", ".join(_said(each) for each in kept) or "none, it was removed in the UI"


def _cron(cron: str, timezone: str) -> CronSchedule:
    return CronSchedule(cron=cron, timezone=timezone)


def _schedules(client: SyncPrefectClient, name: str) -> list[DeploymentScheduleCreate] | None:
    """Those of the deployment as it is; None when there is none."""
    try:
        found = client.read_deployment_by_name(f"{retrain.name}/{name}").schedules
    except ObjectNotFound:
        return None
    return [
        DeploymentScheduleCreate(
            schedule=each.schedule,
            active=each.active,
            max_scheduled_runs=each.max_scheduled_runs,
            parameters=each.parameters,
            slug=each.slug,
        )
        for each in found
    ]


def _said(each: DeploymentScheduleCreate | DeploymentSchedule) -> str:
    schedule = each.schedule
    text = (
        f"{schedule.cron!r} {schedule.timezone}"
        if isinstance(schedule, CronSchedule)
        else (type(schedule).__name__)
    )
    return text if each.active else f"{text}, switched off"


def automations() -> list[AutomationCore]:
    """What the server does about runs of ours whose process can say nothing any more."""
    started = {"prefect.flow-run.Running"}
    heard = {"prefect.flow-run.heartbeat"}
    # also one killed before its first heartbeat was heard
    dead = _silence(after=started | heard, expect=heard, within=NO_SIGN_OF_LIFE)
    stuck = _silence(after={"prefect.flow-run.Pending"}, expect=started, within=PENDING_TOO_LONG)
    return [
        _closing("samovar: no sign of life", dead, f"{SILENT} for {NO_SIGN_OF_LIFE}"),
        _closing("samovar: never started", stuck, f"pending for {PENDING_TOO_LONG}"),
    ]


def tell_arrival(source: str, name: str) -> None:
    """Emit the event that starts a retraining.

    Args:
        source: Where the data are, for the record.
        name: Of the checkout that retrains.
    """
    emit_event(DATA_ARRIVED, {"prefect.resource.id": f"samovar.data.{source}", FOR: name})


def _silence(*, after: set[str], expect: set[str], within: timedelta) -> EventTrigger:
    """Fires for a run of which nothing that is expected, nor its end, comes in time."""
    return EventTrigger(
        after=after,
        expect=expect | ENDS,
        match=cast("Any", {"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=cast("Any", {"prefect.resource.id": [f"prefect.tag.{OURS}"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )


def _closing(name: str, trigger: EventTrigger, message: str) -> AutomationCore:
    action = ChangeFlowRunState(
        state=StateType.CRASHED, name="Crashed", message=message, force=False
    )
    return AutomationCore(name=name, trigger=trigger, actions=[action])


def _replace(automation: AutomationCore) -> None:
    """Create it in place of any of its name; the same one stays, with what it has seen so far."""
    with get_client(sync_client=True) as client:
        old = client.read_automations_by_name(automation.name)
        if [_content(each) for each in old] == [_content(automation)]:
            return
        client.create_automation(automation)
        for each in old:
            client.delete_automation(each.id)


def _content(automation: AutomationCore) -> dict[str, Any]:
    """All of it but the ids that the server gives."""
    fields = {"name", "enabled", "trigger", "actions"}
    dumped = automation.model_dump(include=fields)  # as JSON sets would be lists in any order
    dumped["trigger"].pop("id", None)
    return dumped


def deployment_state(name: str) -> tuple[str, str]:
    """Whether the deployment is there and its schedule on, and when it runs next."""
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(f"{retrain.name}/{name}")
        except ObjectNotFound:
            return "missing", "`make up` makes it"
        dates = [
            run.expected_start_time
            for run in client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[found.id])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(
                        type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])
                    )
                ),
            )
            if run.expected_start_time is not None
        ]
    if found.paused or not any(each.active for each in found.schedules):
        return "paused", "its schedule is switched off"
    following = f", next at {min(dates).astimezone():%Y-%m-%d %H:%M %Z}" if dates else ""
    schedules = ", ".join(_said(each) for each in found.schedules)
    return "ready", f"{retrain.name}/{name}: {schedules}{following}"


def worker_state(pool: str, name: str) -> str:
    """ONLINE or OFFLINE as the server sees the worker of this name; MISSING when it never came."""
    with get_client(sync_client=True) as client:
        try:
            workers = client.read_workers_for_work_pool(pool)
        except ObjectNotFound:
            return "MISSING"
    return next((str(each.status.value) for each in workers if each.name == name), "MISSING")
