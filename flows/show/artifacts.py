"""What a run shows in the Prefect UI beside its log: stages, scores, metrics, the report."""

import json
import re
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows import pages
from flows.plan.dag import Stage
from flows.plan.schedule import Outcome
from flows.results import read_data_flow, read_decision, read_ladder
from flows.show.tables import (
    champion_row,
    data_flow_rows,
    gate_text,
    ladder_rows,
    markdown_table,
    stage_rows,
)
from tasks.params.paths import DATA_DOCS, REPORT


def show_run(stages: list[Stage], outcomes: list[Outcome]) -> None:
    """Create the artifacts of the flow run that is going on."""
    create_table_artifact(
        key="stages", table=stage_rows(outcomes), description="What each stage did"
    )
    decision = read_decision()
    ladder = ladder_rows(read_ladder())
    if ladder:
        champion = None if decision is None else champion_row(decision)
        create_table_artifact(
            key="score-ladder",
            table=ladder if champion is None else [*ladder, champion],
            description="Mean score and every task, by rung; last the champion, where there is one",
        )
    if decision is not None:
        create_markdown_artifact(
            key="gate", markdown=gate_text(decision), description="What the gate decided"
        )
    flow = read_data_flow()
    if flow is not None:
        create_table_artifact(
            key="data-flow",
            table=data_flow_rows(flow),
            description="Rows of each source, and why some were refused",
        )
    for stage in stages:
        text = metrics_text(stage.metrics)
        if text:
            create_markdown_artifact(
                key=artifact_key(f"metrics-{stage.name}"),
                markdown=text,
                description=f"Metrics of {stage.name}",
            )
    _show_page("report", REPORT, "The report of this run")
    _show_page("data-docs", DATA_DOCS, "What was checked of the data, and what came out")


def _show_page(key: str, file: Path, what: str) -> None:
    """A link to a page of this run, if it has been written."""
    if not file.exists():
        return
    address = pages.address_of(file)
    hint = (
        "Browsers follow an address of a file only when it is typed: copy it, or have `make up` "
        "serve the pages of later runs"
        if address is None
        else "The next run puts its own there; it asks for the name and the password of this server"
    )
    address = address or file.resolve().as_uri()
    create_link_artifact(key=key, link=address, link_text=address, description=f"{what}. {hint}.")


def show_forecast(rows: list[dict[str, Any]], text: str) -> None:
    """Create the table of what a run would do."""
    create_table_artifact(key="dry-run", table=rows, description=text)


def show_history(rows: list[dict[str, Any]]) -> None:
    """Create the table of the last retrainings, as it is at the end of this one.

    As markdown: a table artifact cuts long cells off, and the result says why a run failed.
    """
    create_markdown_artifact(
        key="retrainings",
        markdown=markdown_table(rows),
        description="The last retrainings of this checkout",
    )


def show_publication(markdown: str) -> None:
    """Create the page that says which version is published, or why none is."""
    create_markdown_artifact(
        key="publication", markdown=markdown, description="What became of the model"
    )


def metrics_text(files: tuple[Path, ...]) -> str:
    """A markdown table of the numbers in metrics files; empty when none of them exists."""
    rows = [
        row
        for path in files
        if path.exists()
        for row in _rows("", json.loads(path.read_text(encoding="utf-8")))
    ]
    return "\n".join(["| metric | value |", "|---|---:|", *rows]) if rows else ""


def artifact_key(name: str) -> str:
    """`name` in the letters a key may have: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _rows(prefix: str, content: Any) -> list[str]:  # noqa: ANN401 - any JSON value
    if isinstance(content, dict):
        return [
            row
            for name, value in content.items()
            for row in _rows(f"{prefix}.{name}" if prefix else name, value)
        ]
    value = f"{content:.6g}" if isinstance(content, float) else str(content)
    return [f"| {prefix} | {value.replace('|', '/')} |"]
