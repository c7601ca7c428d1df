"""Whether a teacher knows these texts: how often a positive is nearer than that of another row."""

import logging

import numpy as np

from model.training.data.recorded_vectors import Shown, text_keys
from tasks.contract.prompts import SYMMETRIC_TASKS
from tasks.contract.records import read_shards
from tasks.params.teach import Teach
from tasks.teach.cache import Reader
from tasks.teach.texts import INGESTED

SAMPLED_ROWS = 2000
FEWEST_ROWS = 2
WEAK = 0.8
"""Share below which a teacher teaches little: chance is a half, e5-small reaches 0.99 on news."""

logger = logging.getLogger(__name__)


def agreement(teacher: str, settings: Teach, read: Reader) -> dict[str, float]:
    """Shares of sampled rows whose positive is nearer than another row's, by source.

    Args:
        teacher: Its name.
        settings: Which sources were shown.
        read: Gives vectors of texts that were shown.
    """
    shares: dict[str, float] = {}
    for source, rows in _rows(settings).items():
        query_RD, positive_RD = (
            read(text_keys(texts)).astype(np.float32) for texts in zip(*rows, strict=True)
        )
        own_R = (query_RD * positive_RD).sum(axis=1)
        other_R = (query_RD * np.roll(positive_RD, 1, axis=0)).sum(axis=1)
        shares[source] = round(float((own_R > other_R).mean()), 4)
        if shares[source] < WEAK:
            logger.warning(
                "in only %.0f %% of the rows of %s the teacher %s finds the positive nearer than "
                "that of another row: it does not know this language or subject, or its prompts "
                "are wrong. Correct query_prompt and document_prompt, or take another teacher; "
                "a training that imitates this one learns little",
                *(100 * shares[source], source, teacher),
            )
    return shares


def _rows(settings: Teach) -> dict[str, list[tuple[Shown, Shown]]]:
    """Query and first positive of the first rows of each source whose positives answer queries."""
    rows: dict[str, list[tuple[Shown, Shown]]] = {}
    for table in read_shards(INGESTED, ["source", "task", "query", "positives"]):
        for row in table.to_pylist():
            own = rows.setdefault(row["source"], [])
            if row["task"] not in SYMMETRIC_TASKS and len(own) < SAMPLED_ROWS:
                own.append(((True, row["query"]), (False, row["positives"][0])))
    return {
        source: own
        for source, own in rows.items()
        if source in settings.sources and len(own) >= FEWEST_ROWS
    }
