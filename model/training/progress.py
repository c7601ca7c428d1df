"""Progress of a training for a person: a line of the log every few seconds."""

import logging

from model.encoder.pace import Pace
from model.training.step_log import StepRecord

logger = logging.getLogger(__name__)


class Progress:
    """Logs the first and the last step and, between them, one line per few seconds at most."""

    def __init__(self, max_steps: int, most_tokens_per_s: float, *, done: int = 0) -> None:
        """Start the clock.

        Args:
            max_steps: The last step.
            most_tokens_per_s: As many as a step of arithmetic alone would take on these devices.
            done: Steps before this process.
        """
        self._max_steps = max_steps
        self._most_tokens_per_s = most_tokens_per_s
        self._pace = Pace(max_steps, done=done, shows_first=True)
        self._pairs = 0
        self._tokens = 0

    def show(self, record: StepRecord) -> None:
        """Count the step and log it if it is time; rates count from the start of this process."""
        self._pairs += record.pairs
        self._tokens += record.tokens
        if not self._pace.is_due(record.step):
            return
        tokens_per_s = self._pace.per_s(self._tokens)
        logger.info(
            "step %d/%d loss %.3f nats (%s), %.0f pairs/s, %.0f tokens/s, utilisation %.1f %%, "
            "%.0f negatives per query, %.0f s left",
            record.step,
            self._max_steps,
            record.loss,
            record.source,
            self._pace.per_s(self._pairs),
            tokens_per_s,
            100 * tokens_per_s / self._most_tokens_per_s,
            record.report.in_batch_negatives + record.report.hard_negatives,
            self._pace.seconds_left,
        )
