"""How the model was made: trainings, removed blocks, merge candidates."""

from typing import Any

from tasks.report import numbers
from tasks.report.line_chart import Line, line_chart
from tasks.report.run import Run

DEVELOPMENT_ROWS = {
    "queries": "queries",
    "documents": "documents",
    "pairs": "pairs",
    "labelled": "texts of a class",
}
"""Names in the metrics of merge, and their words."""


def curves_view(run: Run) -> list[dict[str, Any]]:
    """One chart of the loss per training, the multitask variants together in one."""
    charts = [
        _chart(run, "backbone", ["backbone"], "nats per token by step, as a language model"),
        _chart(run, "pretrain", ["pretrain"], "nats by step of stage 1"),
        _chart(run, "finetune", ["finetune"], "nats by step of stage 2"),
        _chart(
            run,
            "multitask",
            [f"multitask/{name}" for name in run.params.multitask.variants],
            "nats by step of stage 3, one line per variant",
        ),
    ]
    return [chart for chart in charts if chart is not None]


def pruning_view(run: Run) -> dict[str, Any] | None:
    """The influence of each block and which ones were removed."""
    metrics = run.metrics("prune")
    if metrics is None:
        return None
    removed = {int(block) for block in metrics["removed"].split(",") if block}
    influence = list(metrics["block_influence"].values())
    most = max(influence, default=0.0) or 1.0
    return {
        "method": metrics["method"].replace("_", " "),
        "before": metrics["blocks_before"],
        "after": metrics["blocks_after"],
        "parameters": numbers.count(metrics["parameters"]),
        "blocks": [
            {
                "number": number,
                "influence": numbers.magnitude(value),
                "width": round(100 * value / most, 1),
                "is_removed": number in removed,
            }
            for number, value in enumerate(influence)
        ],
    }


def merge_view(run: Run) -> dict[str, Any] | None:
    """The candidates of the merge with their development scores, the chosen one marked."""
    metrics = run.metrics("merge")
    if metrics is None:
        return None
    scores = metrics.get("scores", {})
    columns = sorted({name for own in scores.values() for name in own} - {"mean"})
    candidates = [
        {
            "name": _words(name),
            "scores": [numbers.score(own.get(column)) for column in columns],
            "mean": numbers.score(own["mean"]),
            "is_chosen": name == metrics["chosen"],
        }
        for name, own in sorted(scores.items(), key=lambda item: -item[1]["mean"])
    ]
    return {
        "method": metrics["method"].replace("_", " "),
        "chosen": _words(metrics["chosen"]),
        "columns": [column.replace("_", " ") for column in columns],
        "candidates": candidates,
        "facts": _merge_facts(metrics),
    }


def _merge_facts(metrics: dict[str, Any]) -> list[dict[str, str]]:
    facts = []
    if "development_queries" in metrics:
        facts += [
            {
                "label": f"development {words}",
                "value": numbers.count(metrics[f"development_{what}"]),
            }
            for what, words in DEVELOPMENT_ROWS.items()
        ]
    vectors = metrics["task_vectors"]
    facts += [
        {"label": f"cosine of task vectors, {pair.replace('|', ' and ')}", "value": f"{cosine:.3f}"}
        for pair, cosine in vectors["cosines"].items()
    ]
    position = metrics.get("self_positioning")
    if position is not None:
        weights = ", ".join(f"{name} {value:.2f}" for name, value in position["weights"].items())
        facts += [
            {"label": "weights found by self positioning", "value": weights},
            {"label": "length found by self positioning", "value": f"{position['length']:.3f}"},
        ]
    return facts


def _chart(run: Run, name: str, folders: list[str], caption: str) -> dict[str, Any] | None:
    lines = []
    for folder in folders:
        curve = run.curve(folder)
        if curve is not None:
            lines.append(Line(folder.rpartition("/")[2], curve["step"], curve["loss"]))
    if not lines:
        return None
    return {
        "name": name,
        "caption": caption,
        "svg": line_chart(lines, f"Loss of {name} by step"),
        "lines": [
            {
                "name": line.name,
                "number": number,
                "first": f"{line.trend[0]:.2f}",
                "last": f"{line.trend[-1]:.2f}",
            }
            for number, line in enumerate(lines)
        ],
    }


def _words(candidate: str) -> str:
    return candidate.replace("_", " ").replace(":", " ")
