"""Progress of a training for a person: a line of the log every few seconds."""

import logging
import time

from model.training.step_log import StepRecord

SECONDS_BETWEEN_LINES = 5.0

logger = logging.getLogger(__name__)


class Progress:
    """Logs the first and the last step and, between them, one line per five seconds at most."""

    def __init__(self, max_steps: int, most_tokens_per_s: float) -> None:
        """Start the clock.

        Args:
            max_steps: The last step.
            most_tokens_per_s: As many as a step of arithmetic alone would take on these devices.
        """
        self._max_steps = max_steps
        self._most_tokens_per_s = most_tokens_per_s
        self._started = self._last_line = time.monotonic()
        self._pairs = 0
        self._tokens = 0
        self._steps = 0

    def show(self, record: StepRecord) -> None:
        """Count the step and log it if it is time; rates count from the start of this process."""
        self._pairs += record.pairs
        self._tokens += record.tokens
        self._steps += 1
        now = time.monotonic()
        is_edge = self._steps == 1 or record.step == self._max_steps
        if not is_edge and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        elapsed_s = max(now - self._started, 1e-9)
        logger.info(
            "step %d/%d loss %.3f nats (%s), %.0f pairs/s, %.0f tokens/s, utilisation %.1f %%, "
            "%.0f negatives per query, %.0f s left",
            record.step,
            self._max_steps,
            record.loss,
            record.source,
            self._pairs / elapsed_s,
            self._tokens / elapsed_s,
            100 * self._tokens / elapsed_s / self._most_tokens_per_s,
            record.in_batch_negatives + record.hard_negatives,
            elapsed_s / self._steps * (self._max_steps - record.step),
        )
