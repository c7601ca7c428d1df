"""The result of a validation as numbers, and as a message when it failed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.validate.suite import Outcome, SuiteResult


def summary(suites: list[SuiteResult]) -> dict[str, Any]:
    """Content of summary.json: every check of every suite with what was seen."""
    return {
        "success": all(suite.success for suite in suites),
        "suites": [
            {
                "suite": suite.name,
                "rows": suite.rows,
                "success": suite.success,
                "checks": [asdict(outcome) for outcome in suite.outcomes],
            }
            for suite in suites
        ],
    }


def metrics(suites: list[SuiteResult], tables: dict[str, pa.Table]) -> dict[str, Any]:
    """Content of metrics.json: counts of checks, of rows, and of examples by task and language."""
    outcomes = [outcome for suite in suites for outcome in suite.outcomes]
    examples = tables["examples"]
    return {
        "checks": len(outcomes),
        "failed": sum(not outcome.success for outcome in outcomes),
        "rows": {name: table.num_rows for name, table in tables.items()},
        **{
            f"examples_by_{column}": _counts(examples[column])
            for column in ("task", "lang")
            if column in examples.column_names
        },
    }


def describe_failures(suites: list[SuiteResult], page: Path) -> str:
    """Each failed check with its rows and three examples, by id: a log holds no corpus texts."""
    failed = [
        (suite, outcome) for suite in suites for outcome in suite.outcomes if not outcome.success
    ]
    lines = [f"  {suite.name}: {_describe(suite, outcome)}" for suite, outcome in failed]
    count = sum(len(suite.outcomes) for suite in suites)
    head = f"{len(failed)} of {count} checks of the ingested data failed"
    tail = f"Look at {page}; correct the sources, or the bounds in the section validate."
    return "\n".join([f"{head}:", *lines, tail])


def _describe(suite: SuiteResult, outcome: Outcome) -> str:
    if not outcome.unexpected_count:
        return f"not true that {outcome.says}: {outcome.observed}"
    shown = [
        ", ".join(f"{name} {value}" for name, value in row.items() if name != "text")
        for row in outcome.examples
    ]
    rows = f"{outcome.unexpected_count} of {suite.rows} rows are against it"
    return f"not true that {outcome.says}: {rows}, such as {'; '.join(shown)}"


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counts = column.value_counts().to_pylist()
    return {str(each["values"]): each["counts"] for each in counts}
