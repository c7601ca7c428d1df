"""What a run would do, and why, without doing it: `python -m flows.retrain --dry-run`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.plan.dag import Stage
from flows.results import last_record
from tasks.params.load import Cost
from tasks.params.paths import TIMINGS

LONGEST_REASON = 120
FORCED = "asked for by --force"


@dataclass(frozen=True)
class Expected:
    """What a run would do with one stage."""

    stage: str
    reason: str | None
    """Why it would run; None when it is up to date."""
    is_certain: bool
    """False where only a stage before it would run: its outputs may turn out the same, and what
    ran before with the same inputs comes from DVC's run cache."""
    seconds: float | None
    """Its last run on this machine; None where none is on record."""
    gpu_seconds: float
    """What that held of GPUs."""


def forecast(
    stages: Sequence[Stage], changes: Mapping[str, str], forced: set[str], timings: Path = TIMINGS
) -> list[Expected]:
    """What a run over these stages would do, in their order.

    Args:
        stages: In DVC's order, each after all it reads.
        changes: What is not up to date and why, as `dag.changed` says it.
        forced: Stages that run in any case.
        timings: Folder of the stages' `<name>.json`.
    """
    found: dict[str, Expected] = {}
    for stage in stages:
        before = [name for name in stage.upstream if name in found and found[name].reason]
        if stage.name in forced:
            reason, is_certain = FORCED, True
        elif stage.name in changes:
            reason, is_certain = changes[stage.name], True
        elif before:
            reason, is_certain = f"after {', '.join(before)}", False
        else:
            reason, is_certain = None, False
        last = last_record(stage.name, timings)
        found[stage.name] = Expected(
            stage.name, reason, is_certain, last.get("wall_s"), last.get("gpu_s", 0.0)
        )
    return list(found.values())


def forecast_rows(expected: Sequence[Expected]) -> list[dict[str, Any]]:
    """One row per stage, for a table."""
    return [
        {
            "stage": each.stage,
            "would": _verb(each),
            "last time, s": "" if each.seconds is None else f"{each.seconds:.1f}",
            "why": _shortened(each.reason or ""),
        }
        for each in expected
    ]


def _verb(each: Expected) -> str:
    if each.reason is None:
        return "be skipped"
    return "run" if each.is_certain else "run if its inputs change"


def _shortened(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 1] + "…"


def total(expected: Sequence[Expected], cost: Cost) -> str:
    """One line: how many stages would run, and what that took and cost, one after another."""
    would_run = [each for each in expected if each.reason is not None]
    if not would_run:
        return "every stage is up to date: nothing would run"
    known = [each.seconds for each in would_run if each.seconds is not None]
    unknown = len(would_run) - len(known)
    note = f", without {unknown} that no time is known of" if unknown else ""
    price = cost.of(sum(known), sum(each.gpu_seconds for each in would_run))
    money = "" if price is None else f" and cost {price}"
    return (
        f"{len(would_run)} of {len(expected)} stages would run or might; last time they took "
        f"{sum(known) / 60:.1f} min one after another{money}{note}"
    )
