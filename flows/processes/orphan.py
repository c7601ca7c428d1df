"""Ends a run whose worker is gone: nobody could cancel it any more, and its log leads nowhere.

A run typed by hand is left alone: it may outlive its shell on purpose.
"""

import os
import signal
import threading

STARTED_BY_WORKER = "PREFECT__FLOW_RUN_ID"
LOOK_EVERY_S = 1.0


def end_with_worker() -> None:
    """Have this process get SIGTERM, which ends the run in order, when its worker dies."""
    if STARTED_BY_WORKER in os.environ:
        watch = threading.Thread(target=_watch, args=(os.getppid(),), daemon=True)
        watch.start()


def _watch(worker: int) -> None:
    pause = threading.Event()
    while os.getppid() == worker:
        pause.wait(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
