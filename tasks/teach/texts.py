"""The texts that a teacher is shown: those that trainings may ask about."""

from collections.abc import Iterator

from model.training.data.recorded_vectors import Shown
from tasks.contract.prompts import SYMMETRIC_TASKS
from tasks.contract.records import read_shards
from tasks.contract.stage import StageError
from tasks.params.load import SYNTHETIC
from tasks.params.paths import ARTIFACTS
from tasks.params.teach import Teach

INGESTED = ARTIFACTS / "ingest" / "examples"
SYNTHESIZED = ARTIFACTS / "synthesize" / "examples"
DOCUMENTS = ARTIFACTS / "ingest" / "documents"
COLUMNS = ["source", "task", "query", "positives", "negatives"]


def shown_texts(settings: Teach) -> Iterator[list[Shown]]:
    """The texts of each shard of the corpora, each text of a shard once.

    Raises:
        StageError: A source has no rows.
    """
    found: set[str] = set()
    folders = [INGESTED, *([SYNTHESIZED] if SYNTHETIC in settings.sources else [])]
    for folder in folders:
        for table in read_shards(folder, COLUMNS):
            rows = [row for row in table.to_pylist() if row["source"] in settings.sources]
            found |= {row["source"] for row in rows}
            yield list(dict.fromkeys(text for row in rows for text in _of_row(row)))
    if settings.documents:
        for table in read_shards(DOCUMENTS, ["text"]):
            yield list(dict.fromkeys((False, text) for text in table["text"].to_pylist()))
    absent = sorted(set(settings.sources) - found)
    if absent:
        raise StageError(
            f"teach.sources names {', '.join(absent)}, of which there are no rows: correct the "
            "name, or see artifacts/ingest/metrics.json for why they were rejected"
        )


def _of_row(row: dict) -> Iterator[Shown]:
    yield True, row["query"]
    is_symmetric = row["task"] in SYMMETRIC_TASKS
    for text in (*row["positives"], *row["negatives"]):
        yield is_symmetric, text
