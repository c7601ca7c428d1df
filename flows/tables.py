"""The tables of a run, for Prefect's UI and for the terminal alike."""

import json
from pathlib import Path
from typing import Any

from flows.schedule import Outcome

REPORT = Path("artifacts/report/index.html")
LADDER = Path("artifacts/report/ladder.json")
WORDS = {
    "Completed": "ran",
    "Cached": "from the run cache",
    "Skipped": "up to date",
    "NotRun": "not run",
}


def stage_rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row per step that is no push: what it was, what became of it, how long it took."""
    return [
        {
            "stage": outcome.name,
            "state": WORDS.get(outcome.state, outcome.state.lower()),
            "seconds": round(outcome.seconds, 1),
        }
        for outcome in outcomes
        if outcome.kind != "push"
    ]


def read_ladder(path: Path) -> list[dict[str, Any]]:
    """The rungs `{"rung", "mean", "tasks"}` the report stage wrote; none when it has not run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def ladder_rows(ladder: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per rung: its mean and its score on each task, in points of 0-100."""
    return [
        {
            "rung": rung["rung"],
            "mean": points(rung["mean"]),
            **{task: points(score) for task, score in rung["tasks"].items()},
        }
        for rung in ladder
    ]


def points(score: float | None) -> str:
    """A score of 0-1 as points of 0-100 with one decimal, as leaderboards print it."""
    return "" if score is None else f"{100 * score:.1f}"
