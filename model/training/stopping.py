"""SIGTERM as a flag that a training reads between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TrainingStoppedError(Exception):
    """SIGTERM arrived; the state after the last step is on disk, so a rerun goes on from there."""


@contextlib.contextmanager
def sigterm_flag() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets; the earlier handler returns at the end.

    Only the main thread may handle signals: elsewhere the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    earlier = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, earlier)
