"""The ladder, the verdict and the comparison with the champion as the page shows them."""

import re
from typing import Any

from tasks.report import numbers
from tasks.report.run import Run

BASELINES = "baseline/"
"""Where the checkpoints lie that no model of the chain is."""


def verdict_view(run: Run) -> dict[str, Any]:
    """The decision of the gate with its reasons and the numbers behind it."""
    decision = run.decision()
    champion = decision["champion"]
    mean = decision["candidate"]["mean"]
    facts = [{"label": f"mean of {decision['candidate']['rung']}", "value": numbers.score(mean)}]
    if champion is not None:
        facts += [
            {
                "label": f"mean of champion {champion['version']}",
                "value": numbers.score(champion["mean"]),
            },
            {"label": "change", "value": numbers.gain(mean - champion["mean"])},
        ]
    facts += [
        {"label": f"mean of {rung}", "value": numbers.score(rival)}
        for rung, rival in decision["must_beat"].items()
    ]
    return {
        "passed": decision["publish"],
        "reasons": decision["reasons"],
        "facts": facts,
        "fingerprint": decision["candidate"]["fingerprint"],
    }


def champion_view(run: Run) -> dict[str, Any] | None:
    """Candidate against champion, task by task; None before anything was published."""
    decision = run.decision()
    if decision["champion"] is None:
        return None
    allowed = run.params.gate.max_task_loss
    rows = [
        {
            "task": row["task"],
            "candidate": numbers.score(row["candidate"]),
            "champion": numbers.score(row["champion"]),
            "change": numbers.gain(row["change"]),
            "tone": _tone(row["change"], allowed),
        }
        for row in decision["tasks"]
    ]
    return {
        "version": decision["champion"]["version"],
        "rows": rows,
        "allowed": numbers.score(allowed),
    }


def ladder_view(run: Run) -> dict[str, Any]:
    """The rungs: bars of their mean, what each model gained on the one before, and a table."""
    rows = run.ladder()
    tasks = list(run.params.evaluate.tasks)
    spans = {task: _span([row["tasks"][task] for row in rows]) for task in tasks}
    span = _span([row["mean"] for row in rows])
    best = max(row["mean"] for row in rows)
    candidate = next(row for row in rows if row["rung"] == run.params.gate.candidate)
    shown: list[dict[str, Any]] = []
    below: float | None = None
    for row in rows:
        is_model = not run.params.evaluate.checkpoints[row["rung"]].startswith(BASELINES)
        gain = "" if below is None or not is_model else numbers.gain(row["mean"] - below)
        below = row["mean"] if is_model else below
        shown.append(
            {
                "rung": row["rung"],
                "is_model": is_model,
                "is_candidate": row["rung"] == run.params.gate.candidate,
                "cells": [
                    {
                        "text": numbers.score(row["tasks"][task]),
                        "heat": _heat(row["tasks"][task], spans[task]),
                    }
                    for task in tasks
                ],
                "mean": numbers.score(row["mean"]),
                "heat": _heat(row["mean"], span),
                "mean_by_type": numbers.score(row["mean_by_type"]),
                "left_out": [numbers.score(value) for value in row["left_out"].values()],
                "step": gain,
                "bar": round(100 * row["mean"] / best, 1) if best > 0 else 0,
            }
        )
    return {
        "left_out": [
            {"name": name, "short": _short(name), "task": run.params.ingest.sources[name].task}
            for name in candidate["left_out"]
        ],
        "tasks": [_task(run, name) for name in tasks],
        "rows": shown,
        "better": [row["rung"] for row in rows if row["mean"] > candidate["mean"]],
    }


def _task(run: Run, name: str) -> dict[str, Any]:
    official = run.params.evaluate.tasks[name]
    scores = run.json(f"evaluate/{run.params.gate.candidate}/scores.json") or {}
    return {
        "name": name,
        "official": official,
        "is_stand_in": name != official,
        "type": scores.get("types", {}).get(name, ""),
        "splits": ", ".join(scores.get("splits", {}).get(name, [])),
        "short": _short(name),
    }


def _short(name: str) -> str:
    """A name that can break in a narrow column, at its capitals."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=_)", "\u200b", name)


def _span(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def _heat(value: float, span: tuple[float, float]) -> int:
    """0 for the lowest value of a column, 100 for its highest."""
    low, high = span
    return round(100 * (value - low) / (high - low)) if high > low else 0


def _tone(change: float | None, allowed: float) -> str:
    if change is None:
        return "muted"
    if change < -allowed:
        return "bad"
    return "good" if change > 0 else ""
