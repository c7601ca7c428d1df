"""One suite of checks run by Great Expectations, and its page."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tasks.validate.checks import Check

if TYPE_CHECKING:
    from great_expectations.core import (
        ExpectationSuiteValidationResult,
        ExpectationValidationResult,
    )

PAGES = Path(__file__).parent / "pages"
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Outcome:
    """What came of one check."""

    says: str
    success: bool
    observed: str
    """What was seen, for a person."""
    unexpected_count: int
    """Rows against the check; a check with a tolerance may succeed with some."""
    examples: list[dict[str, Any]]
    """The first three of them: the columns that name the row, and its value."""


@dataclass(frozen=True)
class SuiteResult:
    """What came of a suite."""

    name: str
    rows: int
    outcomes: list[Outcome]
    page: str
    """The page of Great Expectations about it, HTML."""

    @property
    def success(self) -> bool:
        """Whether every check succeeded."""
        return all(outcome.success for outcome in self.outcomes)


def run_suite(
    name: str, frame: pd.DataFrame, checks: list[Check], *, row_names: list[str]
) -> SuiteResult:
    """Check every row of `frame`.

    Args:
        name: Name of the suite.
        frame: Numbers, flags and short strings; see light_view.
        checks: What is expected.
        row_names: Columns that name a row to a person.
    """
    gx = _great_expectations()
    from great_expectations import expectations
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("ingest").add_dataframe_asset(name)
    batch = source.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(
        name=name,
        expectations=[
            getattr(expectations, check.expectation)(**check.arguments, meta={"check": number})
            for number, check in enumerate(checks)
        ],
    )
    result = batch.validate(
        suite,
        result_format={
            "result_format": "SUMMARY",
            "partial_unexpected_count": NUM_EXAMPLES,
            "unexpected_index_column_names": row_names,
        },
    )
    return SuiteResult(name, len(frame), _outcomes(checks, result, row_names), _render(result))


def _great_expectations() -> ModuleType:
    """The library: 3 seconds and 260 MB that nobody should pay for importing this module."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    # It tells hundreds of its own steps at level INFO, most of them while it is imported.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    return great_expectations


def _outcomes(
    checks: list[Check], result: "ExpectationSuiteValidationResult", row_names: list[str]
) -> list[Outcome]:
    # The library sorts its results by column.
    found = {
        each.expectation_config.meta["check"]: each
        for each in result.results
        if each.expectation_config is not None
    }
    return [_outcome(check, found[number], row_names) for number, check in enumerate(checks)]


def _outcome(check: Check, found: "ExpectationValidationResult", row_names: list[str]) -> Outcome:
    result = found.result
    count = int(result.get("unexpected_count", 0))
    if "observed_value" in result:
        observed = f"{result['observed_value']} rows"
    elif "element_count" in result:
        observed = f"{count} of {result['element_count']} rows against it"
    else:
        observed = f"could not be checked: {found.exception_info}"
    column = check.arguments.get("column")
    examples = [
        {name: _plain(row[name]) for name in row_names}
        | ({} if column in row_names else {"value": _plain(row[column])})
        for row in result.get("partial_unexpected_index_list") or []
    ]
    return Outcome(check.says, bool(found.success), observed, count, examples[:NUM_EXAMPLES])


def _plain(value: Any) -> Any:  # noqa: ANN401 - a cell of a frame
    """A JSON value: null for NaN, and whole numbers whole: a null makes a column float."""
    plain = value.item() if isinstance(value, np.generic) else value
    if pd.isna(plain):
        return None
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def _render(result: "ExpectationSuiteValidationResult") -> str:
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    # The library's own template loads styles and scripts from six sites, and tells the time.
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    view = DefaultJinjaPageView(custom_views_directory=str(PAGES))
    return view.render(document, template="suite.j2")
