"""The progress of a training as one artifact of its task, which changes while the stage runs."""

import re
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.terminal import say_stage

STEP = re.compile(r"\bstep (\d+)/(\d+) (.+)")
"""A line of model/training/progress.py, or scratch.py of model/backbone, every five seconds."""


class StageProgress:
    """Follows the lines of one stage; a stage without steps gets no artifact."""

    def __init__(self, stage: str, key: str) -> None:
        """Prepare for the stage; `key` is the name of its artifact."""
        self._stage = stage
        self._key = key
        self._artifact: UUID | None = None
        self._is_lost = False

    def show(self, line: str) -> None:
        """Bring the artifact up to date if the line tells of a step.

        A server that does not take it ends neither the stage nor its log: that is said once.
        """
        found = STEP.search(line)
        if found is None or self._is_lost:
            return
        step, steps, rest = found.groups()
        percent = 100 * int(step) / max(1, int(steps))
        text = f"{self._stage}: step {step} of {steps}, {rest}"
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, self._key, text)  # pyright: ignore[reportAttributeAccessIssue]  # typed as if it had to be awaited
            else:
                update_progress_artifact(self._artifact, percent, text)
        except Exception as error:  # noqa: BLE001 - whatever the server answers
            self._is_lost = True
            say_stage(self._stage, f"its progress is not shown in Prefect: {error}")
