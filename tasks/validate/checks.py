"""What is expected of the ingested tables: every check of every suite, with its sentence."""

from dataclasses import dataclass, field
from typing import Any, get_args

from tasks.params.base import Task
from tasks.params.data import Validate


@dataclass(frozen=True)
class Check:
    """One expectation of Great Expectations."""

    says: str
    """What holds when it succeeds, as a sentence without a full stop."""
    expectation: str
    """Name of a class of great_expectations.expectations."""
    arguments: dict[str, Any] = field(default_factory=dict)


def fields_checks() -> list[Check]:
    """Columns of a table and their types."""
    return [
        # An empty frame passes every check of a column.
        _at_least_rows("the table has columns", 1),
        _always("every column has its name and its type", "agrees", value=True),
    ]


def examples_checks(limits: Validate, *, min_rows: int, in_training: bool) -> list[Check]:
    """Rows of `examples` or, with `in_training` off, of `development`.

    Args:
        limits: Section validate.
        min_rows: Smallest number of rows.
        in_training: Whether the rows are trained on: shares count there only, and no text of the
            development split may appear.
    """
    checks = [
        _at_least_rows(f"there are at least {min_rows} rows", min_rows),
        *_filled("id", "task", "source", "lang"),
        _unique("id"),
        Check(
            "the task is one that training knows",
            "ExpectColumnValuesToBeInSet",
            {"column": "task", "value_set": list(get_args(Task))},
        ),
        *_text_checks(limits),
        _always("classification and clustering rows have a label", "lacks_label", value=False),
        _between("every label has at least two rows in its source", "rows_of_label", 2, None),
        _always("sts rows have a score", "lacks_score", value=False),
        _between("every score lies in [0, 1]", "score", 0.0, 1.0),
        _always("no text equals a text of an evaluation set", "text_in_evaluation", value=False),
    ]
    return checks + (_training_checks(limits) if in_training else [])


def _text_checks(limits: Validate) -> list[Check]:
    """The query, its positives and its negatives."""
    return [
        *_lengths("the query", "query_characters", limits.max_query_characters),
        _between("there is at least one positive", "positives", 1, None),
        _between("no positive is empty", "shortest_positive", 1, None),
        _between(
            f"every positive has at most {limits.max_positive_characters} characters",
            "longest_positive",
            None,
            limits.max_positive_characters,
        ),
        _between("no negative is empty", "shortest_negative", 1, None),
        _always("no positive is among the negatives", "positive_among_negatives", value=False),
        _always(
            "negative scores, where given, are as many as negatives",
            "scores_fit_negatives",
            value=True,
        ),
    ]


def documents_checks(limits: Validate) -> list[Check]:
    """Rows of `documents`."""
    return [
        _at_least_rows(f"there are at least {limits.min_documents} rows", limits.min_documents),
        *_filled("id", "source", "lang"),
        _unique("id"),
        *_filled("text_characters"),
        _between("no text is empty", "text_characters", 1, None),
        _always("no text equals a text of an evaluation set", "text_in_evaluation", value=False),
    ]


def run_checks(limits: Validate) -> list[Check]:
    """The one row of numbers about the whole ingest."""
    return [
        _at_least_rows("ingest has counted its rows", 1),
        *_filled("quarantine_share"),
        _between(
            f"at most {limits.max_quarantine_share:.0%} of the rows read were refused",
            "quarantine_share",
            None,
            limits.max_quarantine_share,
        ),
    ]


def _training_checks(limits: Validate) -> list[Check]:
    return [
        _always(
            "no query or positive equals a query of the development split",
            "text_in_development",
            value=False,
        ),
        _always(
            f"at most {limits.max_duplicate_share:.1%} of the rows repeat an earlier row",
            "repeats_earlier_row",
            value=False,
            share=1 - limits.max_duplicate_share,
        ),
        *(
            Check(
                f"at least {share:.1%} of the rows are in {lang}",
                "ExpectColumnValuesToBeInSet",
                {"column": "lang", "value_set": [lang], "mostly": share},
            )
            for lang, share in sorted(limits.language_share.items())
        ),
    ]


def _lengths(what: str, column: str, longest: int) -> list[Check]:
    return [
        *_filled(column),
        _between(f"{what} has 1 to {longest} characters", column, 1, longest),
    ]


def _at_least_rows(says: str, rows: int) -> Check:
    return Check(says, "ExpectTableRowCountToBeBetween", {"min_value": rows})


def _filled(*columns: str) -> list[Check]:
    return [
        Check(
            f"the {column.removesuffix('_characters').replace('_', ' ')} is never missing",
            "ExpectColumnValuesToNotBeNull",
            {"column": column},
        )
        for column in columns
    ]


def _unique(column: str) -> Check:
    return Check(
        f"no two rows share the {column}", "ExpectColumnValuesToBeUnique", {"column": column}
    )


def _between(says: str, column: str, low: float | None, high: float | None) -> Check:
    bounds = {"min_value": low, "max_value": high}
    given = {name: value for name, value in bounds.items() if value is not None}
    return Check(says, "ExpectColumnValuesToBeBetween", {"column": column, **given})


def _always(says: str, column: str, *, value: bool, share: float = 1.0) -> Check:
    arguments = {"column": column, "value_set": [value]}
    return Check(
        says, "ExpectColumnValuesToBeInSet", arguments | ({"mostly": share} if share < 1 else {})
    )
