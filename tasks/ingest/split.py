"""Which admitted rows stay, and on which side: sampling and the development split."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DEVELOPMENT_TASKS = frozenset({"retrieval", "nli", "sts", "bitext"})


def sample(table: pa.Table, max_rows: int | None) -> pa.Table:
    """The `max_rows` rows with the smallest ids, in their old order."""
    if max_rows is None or len(table) <= max_rows:
        return table
    order = np.argsort(table["id"].to_numpy(), kind="stable")
    return table.take(np.sort(order[:max_rows]))


def query_keys(table: pa.Table) -> NDArray[np.uint64]:
    """Fingerprint key of each row's query."""
    return np.array([keys[0] for keys in table["keys"].to_pylist()], dtype=np.uint64)


def is_development(table: pa.Table, task: str, fraction: float) -> NDArray[np.bool_]:
    """Whether each row belongs to the development split.

    The key of the query decides alone: equal queries fall on one side, in every source and run.
    """
    if task not in DEVELOPMENT_TASKS:
        return np.zeros(len(table), dtype=np.bool_)
    return query_keys(table) < np.uint64(fraction * 2.0**64)


def holds_key(table: pa.Table, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether the query or a positive of each row is one of `keys`."""
    lists = table["keys"].combine_chunks()
    hits = np.isin(lists.flatten().to_numpy(), keys)
    rows = np.repeat(np.arange(len(table)), lists.value_lengths().to_numpy())
    held = np.zeros(len(table), dtype=np.bool_)
    held[rows[hits]] = True
    return held
