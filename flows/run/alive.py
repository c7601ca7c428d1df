"""Keeps the state of a living run true: a run cut off from the server is taken for dead there.

The server closes a run that it has not heard of for a while (flows/server/deployment.py). When the
network is back the run says that it goes on.
"""

import contextlib
import threading
from collections.abc import Iterator
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Running

from flows.terminal import say

SILENT = "no heartbeat"
"""How the message begins with which the server closes a run that it does not hear of."""
DIED = "the process of this run died"
"""That of a run that holds the checkout, about one that may be waiting for it."""
LOOK_EVERY_S = 15.0
AWAY = (httpx.HTTPError, RuntimeError)
"""What Prefect's client raises when a server cannot be reached, or answers that it cannot."""


@contextlib.contextmanager
def stays_running(own: UUID) -> Iterator[None]:
    """Open the run `own` again whenever it was closed as dead.

    How it ends is told by Prefect itself, whatever the server thought of it meanwhile.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(own, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()  # later it would open a run that has ended


def _watch(own: UUID, ended: threading.Event) -> None:
    while not ended.wait(LOOK_EVERY_S):
        _reopen(own)


def _reopen(own: UUID) -> None:
    """Set it to Running if it was taken for dead; a server that is away is asked later."""
    with contextlib.suppress(*AWAY), get_client(sync_client=True) as client:
        state = client.read_flow_run(own).state
        if state is None or state.type != StateType.CRASHED:
            return
        if (state.message or "").startswith((SILENT, DIED)):
            message = "this run was taken for dead; it goes on"
            client.set_flow_run_state(own, Running(message=message), force=True)
            say(message)
