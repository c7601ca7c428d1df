"""Which admitted rows stay, and on which side: sampling and the development split."""

import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.contract.records import CLASS_TASKS

FEWEST_MEMBERS = 10
"""Texts a class must have for some of them to be held out: a rare one is needed for training."""


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

    The key of the query decides: equal queries fall on one side, in every source and run. A
    labelled text is held out only where another one of its class is, and the class is not rare.
    """
    if task == "documents":
        return np.zeros(len(table), dtype=np.bool_)
    marked = query_keys(table) < np.uint64(fraction * 2.0**64)
    return marked & _has_company(table, marked) if task in CLASS_TASKS else marked


def _has_company(table: pa.Table, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether at least two rows of each row's class are marked, of FEWEST_MEMBERS in all."""
    classes = [tuple(own) for own in table["labels"].to_pylist()]
    members, held_out = Counter(classes), Counter(itertools.compress(classes, marked))
    return np.array(
        [held_out[own] > 1 and members[own] >= FEWEST_MEMBERS for own in classes], dtype=np.bool_
    )


def holds_key(table: pa.Table, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether the query or a positive of each row is one of `keys`."""
    lists = table["keys"].combine_chunks()
    hits = np.isin(lists.flatten().to_numpy(), keys)
    rows = np.repeat(np.arange(len(table)), lists.value_lengths().to_numpy())
    held = np.zeros(len(table), dtype=np.bool_)
    held[rows[hits]] = True
    return held
