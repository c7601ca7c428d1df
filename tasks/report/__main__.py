"""Stage report: the HTML page, the model card and the ladder of a run."""

import logging

from tasks.contract.stage import atomic_folder, refuse_leftovers, run_stage, write_json
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.report.card import model_card
from tasks.report.ladder import ladder_text
from tasks.report.page import report_page
from tasks.report.run import Run

logger = logging.getLogger(__name__)


def write_report(params: Params) -> None:
    """Write artifacts/report/: index.html, model_card.md and ladder.json.

    Raises:
        StageError: Scores are missing, or there are some that params.yaml does not name.
    """
    refuse_leftovers(params)
    run = Run(params=params, artifacts=ARTIFACTS)
    rows = run.ladder()
    page, card = report_page(run), model_card(run)
    with atomic_folder(ARTIFACTS / "report") as folder:
        (folder / "index.html").write_text(page, encoding="utf-8")
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        write_json(folder / "ladder.json", rows)
    logger.info("the ladder\n%s", ladder_text(rows))


def main() -> None:
    """Run the stage on params.yaml."""
    run_stage("report", write_report)


if __name__ == "__main__":
    main()
