"""Stage validate: the chain stops here when the ingested tables are not what training expects."""

import logging
import shutil

from tasks.contract.records import read_table
from tasks.contract.stage import StageError, atomic_folder, read_json, run_stage, write_json
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.validate.data_docs import write_data_docs
from tasks.validate.suites import SCHEMAS, Totals, check_fields, check_rows
from tasks.validate.summary import describe_failures, metrics, summary

FAILED = ARTIFACTS / "validate-failed"

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the stage."""
    run_stage("validate", validate)


def validate(params: Params) -> None:
    """Write artifacts/validate: passed.json, summary.json, data_docs/ and metrics.json.

    Raises:
        StageError: A check failed. The other files lie in artifacts/validate-failed then, for
            a person to look at, and artifacts/validate does not exist.
    """
    ingested = ARTIFACTS / "ingest"
    tables = {name: read_table(ingested / name) for name in SCHEMAS}
    suites = [check_fields(name, table) for name, table in tables.items()]
    if all(suite.success for suite in suites):
        # The checks of rows need the columns, so wrong columns are reported alone.
        totals = Totals.of(read_json(ingested / "metrics.json"))
        suites = check_rows(params, tables, totals) + suites
    success = all(suite.success for suite in suites)
    target = ARTIFACTS / "validate" if success else FAILED
    for stale in (ARTIFACTS / "validate", FAILED):
        shutil.rmtree(stale, ignore_errors=True)
    with atomic_folder(target) as folder:
        write_data_docs(suites, folder / "data_docs")
        write_json(folder / "summary.json", summary(suites))
        write_json(folder / "metrics.json", metrics(suites, tables))
        if success:
            # Later stages wait for this file alone: it stays the same while numbers change.
            write_json(folder / "passed.json", {"passed": True})
    if not success:
        raise StageError(describe_failures(suites, target / "data_docs" / "index.html"))
    logger.info("all %d checks passed", sum(len(suite.outcomes) for suite in suites))


if __name__ == "__main__":
    main()
