"""The suites of the stage: which table, seen how, meets which checks."""

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from tasks.contract.records import (
    DOCUMENT_SCHEMA,
    EVALUATION_SCHEMA,
    EXAMPLE_SCHEMA,
    QUARANTINE_SCHEMA,
)
from tasks.contract.stage import StageError
from tasks.params.load import Params
from tasks.validate.checks import documents_checks, examples_checks, fields_checks, run_checks
from tasks.validate.light_view import documents_view, examples_view, fields_view
from tasks.validate.overlap import evaluation_keys, query_keys, texts_with_keys
from tasks.validate.suite import Outcome, SuiteResult, run_suite

SCHEMAS = {
    "examples": EXAMPLE_SCHEMA,
    "development": EXAMPLE_SCHEMA,
    "documents": DOCUMENT_SCHEMA,
    "evaluation": EVALUATION_SCHEMA,
    "quarantine": QUARANTINE_SCHEMA,
}
ROW_NAMES = ["id", "source"]
TEXT_CHARACTERS = 120
LIMITS = {
    "too_long": "ingest.max_characters",
    "too_short": "ingest.min_characters",
    "language": "ingest.languages",
    "evaluation_overlap": "ingest.overlap",
}
"""Reasons of refusal that a key of params.yaml decides."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Totals:
    """Counts of ingest that its tables do not hold."""

    read: int
    """Rows read from all sources."""

    @classmethod
    def of(cls, metrics: dict[str, Any]) -> Self:
        """Counts of the metrics.json of ingest.

        Raises:
            StageError: The file has no such counts.
        """
        try:
            return cls(read=int(metrics["totals"]["read"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StageError(
                "artifacts/ingest/metrics.json has no totals.read: run the stage ingest again"
            ) from error


def check_fields(name: str, table: pa.Table) -> SuiteResult:
    """Columns of a table and their types against the data contract."""
    view = fields_view(table, SCHEMAS[name])
    names = ["column", "expected", "found"]
    return run_suite(f"{name}-columns", view, fields_checks(), row_names=names)


def check_rows(params: Params, tables: dict[str, pa.Table], totals: Totals) -> list[SuiteResult]:
    """Rows of examples, development and documents, and the share that ingest refused."""
    started = time.monotonic()
    limits = params.validate_
    held_out = evaluation_keys(tables["evaluation"]["text"])
    development = query_keys(tables["development"]["query"])
    suites = []
    for name, in_training in (("examples", True), ("development", False)):
        table = tables[name]
        pairs = [table["query"], table["positives"]]
        view = examples_view(
            table,
            in_evaluation=texts_with_keys([*pairs, table["negatives"]], held_out),
            in_development=texts_with_keys(pairs, development) if in_training else set(),
        )
        checks = examples_checks(
            limits,
            min_rows=_min_examples(params) if in_training else _min_development(params),
            in_training=in_training,
        )
        suites.append(_with_texts(run_suite(name, view, checks, row_names=ROW_NAMES), table))
        logger.info("%s: %d rows checked, %.1f s", name, len(view), time.monotonic() - started)
    documents = tables["documents"]
    view = documents_view(documents, in_evaluation=texts_with_keys([documents["text"]], held_out))
    result = run_suite("documents", view, documents_checks(limits), row_names=ROW_NAMES)
    suites.append(_with_texts(result, documents))
    logger.info("documents: %d rows checked, %.1f s", len(view), time.monotonic() - started)
    quarantined = tables["quarantine"].num_rows
    share = quarantined / totals.read if totals.read else None
    run = pd.DataFrame(
        {
            "rows_read": [totals.read],
            "refused": [_reasons(tables["quarantine"])],
            "quarantine_share": [share],
        }
    )
    names = ["rows_read", "refused"]
    return [*suites, run_suite("run", run, run_checks(limits), row_names=names)]


def _reasons(quarantine: pa.Table) -> str:
    """Why rows were refused, the commonest reason first, with the key of params.yaml behind it."""
    counts = Counter(quarantine["reason"].to_pylist())
    return " + ".join(
        f"{number} {reason}" + (f" ({LIMITS[reason]})" if reason in LIMITS else "")
        for reason, number in counts.most_common()
    )


def _min_examples(params: Params) -> int:
    """Of documents alone every example is synthetic, written after this stage."""
    return params.validate_.min_examples if params.ingest.has_examples else 0


def _min_development(params: Params) -> int:
    """Nothing is held out where development_fraction is 0, or there are no examples."""
    holds_out = params.ingest.development_fraction > 0 and params.ingest.has_examples
    return 1 if holds_out else 0


def _with_texts(result: SuiteResult, table: pa.Table) -> SuiteResult:
    """The result with the start of the text of each row that is shown as an example."""
    shown = {row["id"] for outcome in result.outcomes for row in outcome.examples}
    if not shown:
        return result
    column = "query" if "query" in table.column_names else "text"
    rows = zip(table["id"].to_pylist(), table[column], strict=True)
    texts = {name: text.as_py() for name, text in rows if name in shown}
    outcomes = [_with_text(outcome, texts) for outcome in result.outcomes]
    return replace(result, outcomes=outcomes)


def _with_text(outcome: Outcome, texts: dict[str, str | None]) -> Outcome:
    examples = [
        {**row, "text": (texts.get(row["id"]) or "")[:TEXT_CHARACTERS]} for row in outcome.examples
    ]
    return replace(outcome, examples=examples)
