"""What a person reads at the end of a run: stages, scores, the model, where to look."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.pages import address_of
from flows.plan.schedule import Outcome
from flows.results import read_ladder, read_published
from flows.server.server import OPEN_COMMAND
from flows.show.tables import ladder_rows, stage_rows
from tasks.params.paths import REPORT

FINAL_MODEL = Path("artifacts/merge/model")


def show_summary(outcomes: list[Outcome], ui_url: str | None, console: Console) -> None:
    """Write the summary of a green run to `console`.

    Args:
        outcomes: How its steps ended.
        ui_url: Where a server that stays up shows the run; none names the command that starts one.
        console: Where to write.
    """
    stages = [outcome for outcome in outcomes if outcome.kind == "stage"]
    if stages and all(outcome.state == "Skipped" for outcome in stages):
        console.print("every stage is up to date", style="bold green")
    console.print(as_table("Stages", stage_rows(outcomes)))
    ladder = ladder_rows(read_ladder())
    if ladder:
        console.print(as_table("Scores (0-100)", rung_columns(ladder)))
    if REPORT.exists():
        console.print(f"Report:     {address_of(REPORT) or REPORT.resolve()}", soft_wrap=True)
    model = published_model()
    if model.exists():
        console.print(
            "Use the model:", *load_lines(model), sep="\n    ", soft_wrap=True, highlight=False
        )
    console.print(f"Prefect UI: {ui_url or OPEN_COMMAND}", soft_wrap=True)


def as_table(title: str, rows: list[dict[str, Any]], texts: Container[str] = ()) -> Table:
    """Rows with the same keys as a table; columns but the first and `texts` stand to the right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(rows[0]):
        is_name = number == 0
        table.add_column(
            name,
            justify="left" if is_name or name in texts else "right",
            overflow="fold",
            no_wrap=is_name,
        )
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


def rung_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ladder turned on its side, one column per rung: names of tasks are too long for heads."""
    measures = [name for name in rows[0] if name != "rung"]
    return [
        {"score": name} | {row["rung"].replace("-", "-\n"): row[name] for row in rows}
        for name in measures
    ]


def published_model() -> Path:
    """The folder of the version published last, or of this run's model when none is local."""
    address = (read_published() or {}).get("address")
    return Path(address) if address and Path(address).is_dir() else FINAL_MODEL


def load_lines(model: Path) -> list[str]:
    """Three lines of Python that load the model and embed a sentence."""
    return [
        "from sentence_transformers import SentenceTransformer",
        f'model = SentenceTransformer("{model}")',
        'print(model.encode(["Самовар стоит на столе"]).shape)',
    ]
