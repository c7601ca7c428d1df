"""The last retrainings of this checkout: when, how long, how good, and what became of them."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.plan.schedule import Outcome
from flows.results import last_record, read_decision, read_published
from flows.show.reasons import cause_of
from flows.show.tables import points
from tasks.params.load import Params
from tasks.params.paths import STATE

FILE = STATE / "history.jsonl"
SHOWN = 20


@dataclass(frozen=True)
class Retraining:
    """One run of the flow."""

    started: str
    """UTC, to the second."""
    seconds: float
    ran: int | None
    """Stages that were not up to date; None for a run that failed."""
    mean: float | None
    """Of the candidate that the gate judged, 0-1; None when the run did not come to its report."""
    result: str
    gpu_seconds: float = 0.0
    """What its stages held of GPUs."""


def describe(
    started: datetime,
    seconds: float,
    outcomes: Sequence[Outcome],
    error: str | None,
) -> Retraining:
    """What is kept of a run that has just ended.

    Args:
        started: When it began.
        seconds: How long it took.
        outcomes: How its steps ended; empty when it failed.
        error: Why it failed.
    """
    stages = [outcome for outcome in outcomes if outcome.kind == "stage"]
    has_report = any(outcome.name == "report" for outcome in stages)
    return Retraining(
        started=started.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        seconds=round(seconds, 1),
        ran=None if error is not None else sum(outcome.is_new for outcome in stages),
        mean=_mean() if has_report else None,
        result=_result(outcomes, error),
        gpu_seconds=_gpu_seconds(stages),
    )


def _gpu_seconds(stages: Sequence[Outcome]) -> float:
    """Of the stages that ran; what came from the run cache has the record of an earlier run."""
    ran = [stage.name for stage in stages if stage.state == "Completed"]
    return round(sum(last_record(name).get("gpu_s", 0.0) for name in ran), 1)


def _mean() -> float | None:
    """Of the candidate that the gate judged, which is what is published."""
    decision = read_decision()
    return None if decision is None else decision["candidate"]["mean"]


def _result(outcomes: Sequence[Outcome], error: str | None) -> str:
    if error is not None:
        return f"failed: {cause_of(error) or 'stopped'}"
    published = read_published() or {}
    if any(outcome.name == "publish" for outcome in outcomes) and published.get("is_new"):
        return f"published {published['version']}"
    return "green, nothing new published"


def add(retraining: Retraining, file: Path = FILE) -> None:
    """Append it; a line is written whole or, by a process that dies meanwhile, not read again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(asdict(retraining), ensure_ascii=False) + "\n")


def last(file: Path = FILE) -> list[Retraining]:
    """The last of them, newest first; lines that cannot be read are left out."""
    found: list[Retraining] = []
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError):
            found.append(Retraining(**json.loads(line)))
        if len(found) == SHOWN:
            break
    return found


def history_rows(retrainings: Sequence[Retraining], params: Params) -> list[dict[str, Any]]:
    """One row per run, for a table."""
    return [
        {
            "started (UTC)": each.started,
            "minutes": f"{each.seconds / 60:.1f}",
            "stages run": "" if each.ran is None else each.ran,
            "mean": points(each.mean),
            "cost": params.cost.of(each.seconds, each.gpu_seconds) or "",
            "result": each.result,
        }
        for each in retrainings
    ]
