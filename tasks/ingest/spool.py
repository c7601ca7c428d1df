"""A growing table on disk, read back without loading it: keeps memory flat for any corpus."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from model.writing import writing

FLUSH_ROWS = 4096


class Spool:
    """Rows appended one by one to an Arrow file, then mapped into memory as a table."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Create the file `path`; its folder must exist."""
        self._path = path
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, row: dict[str, Any]) -> None:
        """Add one row; its keys are the columns of the schema."""
        self._rows.append(row)
        if len(self._rows) >= FLUSH_ROWS:
            self._flush()

    def append_table(self, table: pa.Table) -> None:
        """Add the rows of a table of the same schema."""
        self._flush()
        self._write(table)

    def finish(self) -> pa.Table:
        """Close the file and return its rows, memory-mapped."""
        self._flush()
        self.close()
        with pa.memory_map(str(self._path)) as source:
            return pa.ipc.open_file(source).read_all()

    def close(self) -> None:
        """Close the file; rows not yet written are dropped."""
        if not self._file.closed:
            with writing(self._path):
                self._writer.close()
            self._file.close()

    def _flush(self) -> None:
        if self._rows:
            self._write(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()

    def _write(self, table: pa.Table) -> None:
        with writing(self._path):
            self._writer.write_table(table)
