"""How long work takes: when a line of the log is due, how fast it went, how long is left."""

import time

SECONDS_BETWEEN_LINES = 5.0


class Pace:
    """A clock of work whose end is known; rates count from the start of this process."""

    def __init__(
        self, total: int, *, done: int = 0, shows_first: bool = False, shows_last: bool = True
    ) -> None:
        """Start the clock.

        Args:
            total: Steps, texts or the like in all.
            done: As many were done before this process.
            shows_first: Whether a line is due the first time, however early.
            shows_last: Whether a line is due at the end, however early.
        """
        self._total = total
        self._before = self._done = done
        self._is_first = shows_first
        self._shows_last = shows_last
        self._started = self._shown = self._now = time.monotonic()

    def is_due(self, done: int) -> bool:
        """Take note that so much is done; whether to log it, seconds after the last line."""
        self._done, self._now = done, time.monotonic()
        is_edge = self._is_first or (self._shows_last and done >= self._total)
        self._is_first = False
        if not is_edge and self._now - self._shown <= SECONDS_BETWEEN_LINES:
            return False
        self._shown = self._now
        return True

    def per_s(self, amount: float) -> float:
        """Rate of what was done so far, given its amount."""
        return amount / max(self._now - self._started, 1e-9)

    @property
    def seconds_each(self) -> float:
        """Time of one piece of the work, on average."""
        return 1 / self.per_s(self._done - self._before)

    @property
    def seconds_left(self) -> float:
        """Time until the end, at this pace."""
        return self.seconds_each * (self._total - self._done)
