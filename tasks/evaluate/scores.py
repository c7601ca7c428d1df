"""From mteb's results to the few numbers that a gate and a report read."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mteb import TaskResult

VOLATILE = {
    "date",
    "evaluation_phases",
    "evaluation_time",
    "kg_co2_emissions",
}
"""Fields of an mteb result that differ between two runs on the same inputs."""


@dataclass(frozen=True)
class TaskScore:
    """What one task said of one rung."""

    task_type: str
    main_score: float
    result: dict[str, Any]
    """mteb's result without its volatile fields."""


def task_score(result: TaskResult, task_type: str) -> TaskScore:
    """The main score, averaged over splits and subsets, and the result to be kept."""
    kept = {key: value for key, value in result.to_dict().items() if key not in VOLATILE}
    return TaskScore(
        task_type=task_type,
        main_score=round(float(result.get_score()), 6),
        result=_plain(kept),
    )


def summary(scores: Mapping[str, TaskScore]) -> dict[str, Any]:
    """scores.json: every task, its type, the mean over tasks and the mean over types."""
    by_type: defaultdict[str, list[float]] = defaultdict(list)
    for score in scores.values():
        by_type[score.task_type].append(score.main_score)
    types = {name: round(fmean(values), 6) for name, values in by_type.items()}
    return {
        "tasks": {name: score.main_score for name, score in scores.items()},
        "types": {name: score.task_type for name, score in scores.items()},
        "by_type": types,
        "mean": round(fmean(score.main_score for score in scores.values()), 6),
        "mean_by_type": round(fmean(types.values()), 6),
        "splits": {name: sorted(score.result["scores"]) for name, score in scores.items()},
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """`value` with numpy numbers as Python's, floats cut to 6 digits and NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return None if value != value else round(value, 6)  # noqa: PLR0124 - NaN
    return value
