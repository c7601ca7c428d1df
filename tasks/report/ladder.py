"""The quality ladder: every evaluated rung with its mean and its score per task.

Light on purpose: the flow and `make demo` print it without importing anything heavy. Run as
`python -m tasks.report.ladder`, it prints artifacts/report/ladder.json.
"""

import sys
from pathlib import Path
from typing import Any

from tasks.contract.stage import read_json
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS, LADDER


def ladder_rows(params: Params, artifacts: Path = ARTIFACTS) -> list[dict[str, Any]]:
    """One row per rung of evaluate.checkpoints that has been evaluated, lowest rung first.

    Keys: rung, checkpoint, mean, mean_by_type, tasks (scores from 0 to 1 in the order of
    evaluate.tasks), left_out (scores on the sources that no training read; {} without any).
    """
    rows = []
    for rung, checkpoint in params.evaluate.checkpoints.items():
        path = artifacts / "evaluate" / rung / "scores.json"
        if path.exists():
            scores = read_json(path)
            rows.append(
                {
                    "rung": rung,
                    "checkpoint": checkpoint,
                    "mean": scores["mean"],
                    "mean_by_type": scores["mean_by_type"],
                    "left_out": scores.get("left_out", {}),
                    "tasks": {task: scores["tasks"][task] for task in params.evaluate.tasks},
                }
            )
    return rows


def ladder_text(rows: list[dict[str, Any]]) -> str:
    """The ladder as aligned plain text, scores times 100."""
    width = max([len(row["rung"]) for row in rows], default=0)
    lines = []
    for row in rows:
        bar = "#" * round(row["mean"] * 40)
        lines.append(f"{row['rung']:<{width}}  {100 * row['mean']:5.1f}  {bar}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(ladder_text(read_json(LADDER)) + "\n")
