"""Rows of one file, in file order, whatever its format: Parquet, JSONL, CSV or Arrow.

A file that cannot be read as a whole raises StageError. A single row that cannot be read comes out
as a Fault with its reason, and reading goes on.
"""

import csv
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.contract.stage import StageError
from tasks.ingest.locations import Location

BATCH_ROWS = 1024

Values = dict[str, object]
"""The wanted columns of one row; undecodable text of a binary format stays bytes."""


class Fault(NamedTuple):
    """Why one row cannot be used."""

    reason: str
    detail: str
    content: str


Row = tuple[int, Values | Fault]
"""Number of the row in its file, from 0, and what it holds; for JSONL that of its line."""
Columns = list[str] | None
"""The columns to return; None returns all."""
Reader = Callable[[IO[bytes], Columns], Iterator[Row]]


class ColumnsMissingError(ValueError):
    """The file has no column of a name that params.yaml maps; carries the names it has."""

    def __init__(self, missing: list[str], found: list[str]) -> None:
        super().__init__(f"has no columns {missing}; found {found}")


def read_rows(location: Location, columns: Columns) -> Iterator[Row]:
    """Yield every row of a file.

    Args:
        location: The file and its layout, one of `READERS`.
        columns: The columns to return; None returns all.

    Raises:
        StageError: The file is missing, empty, truncated, of another format, or lacks a column.
    """
    rows = 0
    try:
        with location.open() as file:
            for row in READERS[location.layout](file, columns):
                rows += 1
                yield row
    except ColumnsMissingError as error:
        raise StageError(
            f"{location.path} {error}: correct `fields` of its source in params.yaml"
        ) from None
    except (pa.ArrowException, csv.Error, EOFError, OSError, zlib.error) as error:
        # An errno comes from the system, not from what the file holds.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise StageError(
            f"{location.path} cannot be read as {location.layout} ({error}): it is truncated or "
            "of another format; fetch it again or correct `format` of its source"
        ) from error
    if rows == 0:
        raise StageError(f"{location.path} holds no rows: remove it or fetch it again")


def read_parquet(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    """Rows of a Parquet file, at most one row group in memory."""
    parquet = pq.ParquetFile(file)
    wanted = _wanted(columns, parquet.schema_arrow.names)
    yield from _batch_rows(parquet.iter_batches(batch_size=BATCH_ROWS, columns=wanted), wanted)


def read_arrow(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    """Rows of an Arrow stream, the file that `Dataset.save_to_disk` writes."""
    stream = pa.ipc.open_stream(file)
    wanted = _wanted(columns, stream.schema.names)
    slices = (
        batch.select(wanted).slice(start, BATCH_ROWS)
        for batch in stream
        for start in range(0, batch.num_rows, BATCH_ROWS)
    )
    yield from _batch_rows(slices, wanted)


def read_jsonl(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    r"""One JSON object per line; only \n ends a line (U+2028 is text), blank lines are no rows."""
    found: set[str] = set()
    parsed = 0
    number = -1
    for number, line in enumerate(file):
        if not line.strip():
            continue
        values = _json_values(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line)
        if isinstance(values, dict):
            parsed += 1
            found.update(values)
            yield number, {column: values.get(column) for column in columns or values}
        else:
            yield number, values
    if number >= 0 and not parsed:
        raise pa.ArrowInvalid("no line of it is a JSON object")
    if parsed:
        _wanted(columns, sorted(found))


def read_csv(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    """Rows of a comma-separated file whose first line names the columns."""
    csv.field_size_limit(sys.maxsize)
    # Undecodable bytes become lone surrogates, which tell their row below.
    text = (line.decode("utf-8", "surrogateescape").removeprefix("\ufeff") for line in file)
    lines = csv.reader(text, strict=True)
    header = next(lines, None)
    if header is None:
        return
    positions = {column: header.index(column) for column in _wanted(columns, header)}
    number = 0
    while (cells := _next_cells(lines)) is not None:
        if isinstance(cells, Fault):
            yield number, cells
        elif cells:
            yield number, _csv_values(cells, len(header), positions)
        number += bool(cells)


READERS: dict[str, Reader] = {
    "parquet": read_parquet,
    "arrow": read_arrow,
    "jsonl": read_jsonl,
    "csv": read_csv,
}


def _wanted(columns: Columns, found: list[str]) -> list[str]:
    missing = [column for column in columns or [] if column not in found]
    if missing:
        raise ColumnsMissingError(missing, found)
    return found if columns is None else columns


def _batch_rows(batches: Iterator[pa.RecordBatch], columns: list[str]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for cells in zip(*(_cells(batch.column(column)) for column in columns), strict=True):
            yield number, dict(zip(columns, cells, strict=True))
            number += 1


def _cells(column: pa.Array) -> list[object]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(scalar) for scalar in column]


def _cell(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        is_text = isinstance(scalar, pa.StringScalar | pa.LargeStringScalar)
        return scalar.as_buffer().to_pybytes() if is_text else b"(undecodable list)"


def _json_values(line: bytes) -> Values | Fault:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault("invalid_utf8", str(error), line.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        return Fault("broken_json", str(error), line.decode("utf-8"))
    if not isinstance(values, dict):
        detail = f"expected an object, got {type(values).__name__}"
        return Fault("broken_json", detail, line.decode("utf-8"))
    return values


def _next_cells(lines: Iterator[list[str]]) -> list[str] | Fault | None:
    """Cells of the next row, none for a blank line; None at the end."""
    try:
        return next(lines, None)
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise csv.Error("a quote is opened and never closed") from None
        return Fault("broken_csv", str(error), "")


def _csv_values(cells: list[str], width: int, positions: dict[str, int]) -> Values | Fault:
    content = ",".join(cells)
    if len(cells) != width:
        return Fault("broken_csv", f"{len(cells)} cells, the header has {width}", content)
    if not content.isascii() and any("\udc80" <= char <= "\udcff" for char in content):
        return Fault("invalid_utf8", "undecodable bytes", content)
    return {column: cells[position] for column, position in positions.items()}
