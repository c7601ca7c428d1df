"""Arrays and tables that stay on disk: the memory they take is the page cache's.

Shape letters: R = rows asked for.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.training.data.sorting import slices
from model.writing import writing

_ROWS_IN_DIGEST = 256


def keep_array(values: np.ndarray, file: Path) -> np.ndarray:
    """Write an array of one axis, whole or not at all, and map it.

    Raises:
        OSError: The disk is full.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".partial-{file.name}")
    try:
        with writing(file), partial.open("wb") as stream:
            header = np.lib.format.header_data_from_array_1_0(values)
            np.lib.format.write_array_header_2_0(stream, header)
            for part in slices(len(values)):
                # not numpy's own way: on a full disk it loses what its buffer holds, silently
                stream.write(values[part].tobytes())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(file)
    return np.load(file, mmap_mode="r")


class RowReader:
    """Rows of a table of many chunks; no more of a memory-mapped one is read than is asked for."""

    def __init__(self, table: pa.Table) -> None:
        """Note where the chunks begin."""
        self._schema = table.schema
        self._batches = [batch for batch in table.to_batches() if batch.num_rows]
        lengths = [batch.num_rows for batch in self._batches]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)

    def take(self, rows: np.ndarray) -> pa.Table:
        """The rows of these numbers, (R,), in this order, in one chunk.

        `Table.take` would join the chunks of a column first, and so read all of it.
        """
        batch_R = np.searchsorted(self._starts, rows, "right") - 1
        order_R = np.argsort(batch_R, kind="stable")
        found, first_R = np.unique(batch_R[order_R], return_index=True)
        taken = [
            self._batches[batch].take(pa.array(rows[own] - self._starts[batch]))
            for batch, own in zip(found, np.split(order_R, first_R[1:]), strict=False)
        ]
        back_R = np.empty(len(rows), dtype=np.int64)
        back_R[order_R] = np.arange(len(rows))
        joined = pa.Table.from_batches(taken, schema=self._schema).combine_chunks()
        return joined.take(pa.array(back_R)).combine_chunks()


def table_digest(table: pa.Table) -> str:
    """Name for what is derived from the rows of a table: by its size and some of the rows.

    Guards against files that an earlier table of the same name left behind; that a table is the
    same to the last byte is for the caller to know.
    """
    rows = np.unique(np.linspace(0, table.num_rows - 1, _ROWS_IN_DIGEST).astype(np.int64))
    sample = RowReader(table).take(rows).to_pylist() if table.num_rows else []
    text = json.dumps([table.num_rows, sample], ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
