"""The quality gate: is the candidate good enough to replace the published model?

A rejected candidate is a result, not an error: the stage succeeds and decision.json says no.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.champion import CHAMPION_FILE
from tasks.contract.stage import (
    StageError,
    atomic_folder,
    read_json,
    refuse_leftovers,
    run_stage,
    write_json,
)
from tasks.params.evaluation import Gate
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.store.registry import fingerprint_folder

TOLERANCE = 1e-9
"""Scores closer than this are equal: 0.57 - 0.56 is a gain of 0.01."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """The evaluation of one model, scores from 0 to 1."""

    name: str
    """Rung of the ladder, or published version."""
    mean: float
    tasks: dict[str, float]


def main() -> None:
    """Run the stage `gate`."""
    run_stage("gate", judge_candidate)


def judge_candidate(params: Params) -> None:
    """Write artifacts/gate/decision.json and metrics.json.

    Raises:
        StageError: Scores are missing or unusable.
    """
    refuse_leftovers(params)
    candidate = read_scores(params.gate.candidate)
    champion = read_champion(CHAMPION_FILE)
    rivals = [read_scores(rung) for rung in params.gate.must_beat]
    failures, passes = decide(params.gate, candidate, champion, rivals)
    decision = {
        "publish": not failures,
        "reasons": failures or passes,
        "candidate": {
            "rung": candidate.name,
            "mean": candidate.mean,
            "scores": candidate.tasks,
            "fingerprint": fingerprint_folder(ARTIFACTS / params.publish.checkpoint),
        },
        "champion": None if champion is None else {"version": champion.name, "mean": champion.mean},
        "must_beat": {rival.name: rival.mean for rival in rivals},
        "tasks": compare_tasks(candidate, champion),
    }
    with atomic_folder(ARTIFACTS / "gate") as target:
        write_json(target / "decision.json", decision)
        write_json(target / "metrics.json", _metrics(candidate, champion, publish=not failures))
    logger.info("publish: %s", "yes" if not failures else "no")
    for reason in failures or passes:
        logger.info("  %s", reason)


def decide(
    rules: Gate, candidate: Scores, champion: Scores | None, rivals: list[Scores]
) -> tuple[list[str], list[str]]:
    """Apply every rule.

    Returns:
        Sentences of the rules that failed and of those that hold; publish when none failed.
    """
    failures: list[str] = []
    passes: list[str] = []
    for rival in rivals:
        _judge_rival(candidate, rival, failures, passes)
    if champion is None:
        passes.append(
            "No other model was published when this was judged: there was no champion to beat."
        )
    elif candidate.tasks.keys() != champion.tasks.keys():
        failures.append(
            f"{_other_tasks(candidate, champion)} Their means cannot be compared: evaluate the "
            "same tasks again, or publish under a new publish.name."
        )
    else:
        _judge_mean(rules, candidate, champion, failures, passes)
        _judge_tasks(rules, candidate, champion, failures, passes)
    return failures, passes


def compare_tasks(candidate: Scores, champion: Scores | None) -> list[dict[str, Any]]:
    """One row per task of either model: both scores and the change, null where one is missing."""
    known = {} if champion is None else champion.tasks
    rows = []
    for task in sorted(candidate.tasks.keys() | known.keys()):
        new, old = candidate.tasks.get(task), known.get(task)
        change = None if new is None or old is None else round(new - old, 6)
        rows.append({"task": task, "candidate": new, "champion": old, "change": change})
    return rows


def read_scores(rung: str) -> Scores:
    """The scores that stage `evaluate` wrote for a rung.

    Raises:
        StageError: They are missing or hold no finite numbers.
    """
    path = ARTIFACTS / "evaluate" / rung / "scores.json"
    return _to_scores(rung, read_json(path), path)


def read_champion(path: Path) -> Scores | None:
    """The champion of champion.json; None when nothing is published yet.

    Raises:
        StageError: The file is missing or holds no finite scores.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "version" not in content:
        raise StageError(f"{path} names no version: refresh it with python -m tasks.champion")
    if content["version"] is None:
        return None
    return _to_scores(content["version"], {**content, "tasks": content.get("scores")}, path)


def _to_scores(name: str, content: dict[str, Any], path: Path) -> Scores:
    try:
        tasks = {task: float(score) for task, score in content["tasks"].items()}
        scores = Scores(name, float(content["mean"]), tasks)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StageError(f"{path} holds no mean and scores per task: write it again") from error
    unusable = [
        task for task, score in {"mean": scores.mean, **tasks}.items() if not math.isfinite(score)
    ]
    if unusable or not tasks:
        raise StageError(f"{path} has no finite score for {unusable or 'any task'}: evaluate again")
    return scores


def _judge_rival(candidate: Scores, rival: Scores, failures: list[str], passes: list[str]) -> None:
    if candidate.tasks.keys() != rival.tasks.keys():
        failures.append(f"{_other_tasks(candidate, rival)} Evaluate both on the same tasks.")
        return
    holds = candidate.mean > rival.mean + TOLERANCE
    verb = "exceeds" if holds else "must exceed"
    sentence = (
        f"The mean {candidate.mean:.4f} of {candidate.name} {verb} the mean {rival.mean:.4f} of "
        f"{rival.name}."
    )
    (passes if holds else failures).append(sentence)


def _judge_mean(
    rules: Gate, candidate: Scores, champion: Scores, failures: list[str], passes: list[str]
) -> None:
    gain = candidate.mean - champion.mean
    holds = gain >= rules.min_mean_gain - TOLERANCE
    sentence = (
        f"The mean changed by {gain:+.4f} against {champion.name} "
        f"({champion.mean:.4f} to {candidate.mean:.4f}); at least {rules.min_mean_gain:+.4f} is "
        "asked."
    )
    (passes if holds else failures).append(sentence)


def _judge_tasks(
    rules: Gate, candidate: Scores, champion: Scores, failures: list[str], passes: list[str]
) -> None:
    losses = {task: score - candidate.tasks[task] for task, score in champion.tasks.items()}
    lost = {task: loss for task, loss in losses.items() if loss > rules.max_task_loss + TOLERANCE}
    failures.extend(
        f"{task} lost {loss:.4f} against {champion.name} ({champion.tasks[task]:.4f} to "
        f"{candidate.tasks[task]:.4f}); at most {rules.max_task_loss:.4f} is allowed."
        for task, loss in sorted(lost.items())
    )
    if not lost:
        passes.append(f"No task lost more than {rules.max_task_loss:.4f} against {champion.name}.")


def _other_tasks(candidate: Scores, other: Scores) -> str:
    missing = sorted(other.tasks.keys() - candidate.tasks.keys())
    added = sorted(candidate.tasks.keys() - other.tasks.keys())
    parts = [f"{candidate.name} and {other.name} were evaluated on different tasks"]
    parts += [f"only {other.name} has {', '.join(missing)}"] if missing else []
    parts += [f"only {candidate.name} has {', '.join(added)}"] if added else []
    return "; ".join(parts) + "."


def _metrics(candidate: Scores, champion: Scores | None, *, publish: bool) -> dict[str, Any]:
    metrics: dict[str, Any] = {"publish": "yes" if publish else "no", "mean": candidate.mean}
    if champion is None:
        return metrics
    changes = [row["change"] for row in compare_tasks(candidate, champion)]
    known = [change for change in changes if change is not None]
    metrics |= {
        "champion_mean": champion.mean,
        "mean_gain": round(candidate.mean - champion.mean, 6),
    }
    return metrics | ({"worst_task_change": min(known)} if known else {})


if __name__ == "__main__":
    main()
