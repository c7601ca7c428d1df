"""Training rows that stand in the train split of an evaluation task, counted and kept.

A task with such rows is in-domain: its score shows fitting to its kind of text and must not be set
beside zero-shot scores without saying so.
"""

import numpy as np
import pyarrow as pa

from tasks.ingest.fingerprint import fingerprint
from tasks.ingest.overlap import is_telling
from tasks.ingest.split import holds_key


class InDomain:
    """The train splits of all evaluation tasks, as keys of their texts."""

    def __init__(self, train: pa.Table) -> None:
        """Index a table (task, text)."""
        keys: dict[str, list[int]] = {}
        for task, text in zip(train["task"].to_pylist(), train["text"].to_pylist(), strict=True):
            words, key = fingerprint(text)
            if is_telling(words):
                keys.setdefault(task, []).append(key)
        self._keys = {task: np.array(own, dtype=np.uint64) for task, own in keys.items()}

    def count(self, table: pa.Table) -> dict[str, int]:
        """How many rows hold a text of each task's train split; tasks without any are left out."""
        counts = {task: int(holds_key(table, keys).sum()) for task, keys in self._keys.items()}
        return {task: count for task, count in counts.items() if count}
