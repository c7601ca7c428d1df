"""Stage teach: what finished embedding models say of the texts of the corpora, once for all runs.

A training imitates a teacher by its vectors (distillation) or lets it judge negatives (a guide).
The vectors do not change while the student learns, so they are computed here and kept by content: a
next run asks about new texts alone.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from model.training.data.recorded_vectors import write_vectors
from tasks.contract.stage import StageError, atomic_folder, run_stage, write_json
from tasks.outside import recorded
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.teach.agreement import agreement
from tasks.teach.asking import Record, ask, texts_of
from tasks.teach.cache import Keys
from tasks.teach.texts import shown_texts

EXPORTED_ROWS = 50_000

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the stage."""
    run_stage("teach", recorded("teach", teach))


def teach(params: Params) -> None:
    """Write artifacts/teach: a folder of vectors for each teacher, and metrics.json.

    Raises:
        StageError: A teacher cannot be used, a source has no rows, or there are no texts.
    """
    settings = params.teach
    keys, records = _all_records(params) if settings.teachers else (np.zeros(0, np.uint64), {})
    metrics: dict[str, Any] = {}
    with atomic_folder(ARTIFACTS / "teach") as folder:
        (folder / "vectors").mkdir()
        for name, record in records.items():
            blocks = (record.read(keys[rows]) for rows in _slices(len(keys)))
            write_vectors(folder / "vectors" / name, keys, record.size, blocks)
            shares = agreement(name, settings, record.read)
            metrics[name] = {"texts": len(keys), "embedding_size": record.size} | record.metrics
            metrics[name] |= {"positive_is_nearer": shares} if shares else {}
            logger.info("%s: %s", name, metrics[name])
        # beside the vectors, since a clone does not get an empty folder
        write_json(folder / "vectors" / "teachers.json", sorted(metrics))
        write_json(folder / "metrics.json", {"teachers": metrics})


def _all_records(params: Params) -> tuple[Keys, dict[str, Record]]:
    """Keys of the texts, rising, and what every teacher says of them."""
    settings = params.teach
    texts = texts_of(lambda: shown_texts(settings))
    if not len(texts.keys):
        raise StageError(
            "teach.teachers are shown nothing: name teach.sources, or set teach.documents to true"
        )
    return texts.keys, ask(settings.teachers, texts, settings, params.compute)


def _slices(rows: int) -> Iterator[slice]:
    return (slice(start, start + EXPORTED_ROWS) for start in range(0, rows, EXPORTED_ROWS))


if __name__ == "__main__":
    main()
