"""The pages of a validation: plain files that read the same without a network and on every run."""

import shutil
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.validate.suite import PAGES, SuiteResult


def write_data_docs(suites: list[SuiteResult], folder: Path) -> None:
    """Write index.html, one page of Great Expectations per suite, and their style sheet."""
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    outcomes = [outcome for suite in suites for outcome in suite.outcomes]
    index = environment.get_template("index.html").render(
        suites=suites,
        total=len(outcomes),
        failed=sum(not outcome.success for outcome in outcomes),
    )
    folder.mkdir(parents=True)
    shutil.copyfile(PAGES / "style.css", folder / "style.css")
    (folder / "index.html").write_text(index, encoding="utf-8")
    for suite in suites:
        (folder / f"{suite.name}.html").write_text(suite.page, encoding="utf-8")
