"""Closes the runs that a killed process left as Running.

A run that holds the checkout knows that no other run of it does anything, so whatever the server
still shows as running there is dead, or waits and says so (flows/run/alive.py). Runs are found by a
tag that names the checkout.
"""

from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from flows.checkout.names import run_tags
from flows.run.alive import DIED


def close_dead_runs(root: Path, own: UUID) -> list[str]:
    """Close the runs of this checkout, other than `own`, that seem to be alive.

    Returns:
        The names of the runs that were closed.
    """
    alive = FlowRunFilter(
        tags=FlowRunFilterTags(all_=run_tags(root)),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
    )
    with get_client(sync_client=True) as client:
        dead = [run for run in client.read_flow_runs(flow_run_filter=alive) if run.id != own]
        for run in dead:
            state = Crashed(message=DIED)
            client.set_flow_run_state(run.id, state, force=True)
    return [run.name for run in dead]
