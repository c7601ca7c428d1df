"""Texts that stand on two sides that must not meet, found anew and independently of ingest."""

import logging

import pyarrow as pa

from tasks.contract.records import match_key

MIN_TELLING_CHARACTERS = 12
"""Letters and digits below which an equal evaluation text (`yes`, a class name) means nothing."""

BATCH_ROWS = 100_000
"""Rows whose texts are Python strings at a time."""

logger = logging.getLogger(__name__)


def evaluation_keys(texts: pa.ChunkedArray) -> set[str]:
    """Match keys of the evaluation texts that are long enough to give something away."""
    return {key for key in _keys(texts) if len(key) >= MIN_TELLING_CHARACTERS}


def query_keys(queries: pa.ChunkedArray) -> set[str]:
    """Match keys of queries; a query without letters and digits has none."""
    return _keys(queries) - {""}


def texts_with_keys(columns: list[pa.ChunkedArray], keys: set[str]) -> set[str]:
    """The texts of `columns`, strings or lists of strings, whose match key is one of `keys`."""
    found: set[str] = set()
    for column in columns:
        for start in range(0, len(column), BATCH_ROWS):
            texts = _flat(column.slice(start, BATCH_ROWS)).unique().to_pylist()
            found.update(text for text in texts if text and match_key(text) in keys)
            if len(column) > BATCH_ROWS:
                done = min(start + BATCH_ROWS, len(column))
                logger.info("%d of %d rows compared with held-out texts", done, len(column))
    return found


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_list(column.type):
        return column
    return pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)


def _keys(texts: pa.ChunkedArray) -> set[str]:
    return {match_key(text) for text in texts.to_pylist() if text}
