"""Closes the runs that a killed process left as Running.

A run that holds the checkout knows that no other run of it is alive, so whatever the server still
shows as running there is dead. Runs are found by a tag that names machine and checkout.
"""

import socket
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


def close_dead_runs(root: Path, own: UUID) -> list[str]:
    """Tag the run `own` with its checkout and close the other runs of it that seem to be alive.

    Returns:
        The names of the runs that were closed.
    """
    tag = f"checkout:{socket.gethostname()}:{root}"
    alive = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[tag]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
    )
    with get_client(sync_client=True) as client:
        dead = [run for run in client.read_flow_runs(flow_run_filter=alive) if run.id != own]
        for run in dead:
            state = Crashed(message="the process of this run died")
            client.set_flow_run_state(run.id, state, force=True)
        client.update_flow_run(own, tags=[*client.read_flow_run(own).tags, tag])
    return [run.name for run in dead]
