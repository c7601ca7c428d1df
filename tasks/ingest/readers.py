"""Rows of one file, in file order, whatever its format: Parquet, JSONL, JSON, CSV or Arrow.

A file that cannot be read as a whole raises StageError. A single row that cannot be read comes out
as a Fault with its reason, and reading goes on.
"""

import csv
import json
import logging
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.contract.stage import StageError
from tasks.ingest.dialects import (
    EncodingError,
    Text,
    is_undecoded,
    open_text,
    seen_separator,
)
from tasks.ingest.json_array import array_items, is_array
from tasks.ingest.locations import Location

BATCH_ROWS = 1024

logger = logging.getLogger(__name__)

Values = dict[str, object]
"""The wanted columns of one row; undecodable text of a binary format stays bytes."""
UNDECODABLE_LIST = b"\xff"
"""Stands for a list with such a text, and is no valid UTF-8 either."""


class Unreadable(NamedTuple):
    """Stands for a value that Python cannot hold, such as a date of the year 0."""

    type: str

    def __str__(self) -> str:
        return f"a {self.type} that Python cannot hold"


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
TextReader = Callable[[Text, Columns, str | None], Iterator[Row]]
"""Reads decoded text; the last argument is the declared separator of the columns."""


class ColumnsMissingError(ValueError):
    """The file has no column of a name that params.yaml maps; carries the names it has."""

    def __init__(self, missing: list[str], found: list[str], how: str = "") -> None:
        super().__init__(f"has no columns {missing}; found {found}{how}")


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
            for row in _rows(location, file, columns):
                rows += 1
                yield row
    except ColumnsMissingError as error:
        raise StageError(
            f"{location.path} {error}: correct `fields` of its source in params.yaml"
        ) from None
    except EncodingError as error:
        raise StageError(f"{location.path} {error}") from None
    except UnicodeError as error:
        raise StageError(
            f"{location.path} is not in the encoding taken for it ({error}): correct `encoding` "
            "of its source, or fetch the file again"
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


def read_json(text: Text, columns: Columns, _separator: str | None = None) -> Iterator[Row]:
    r"""One JSON object per line, or the objects of one JSON array.

    Only \n ends a line (U+2028 is text), blank lines are no rows.
    """
    found: set[str] = set()
    parsed = 0
    number = -1
    for number, values in _json_rows(text):
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


def read_csv(text: Text, columns: Columns, separator: str | None = None) -> Iterator[Row]:
    """Rows of a file whose first line names the columns."""
    csv.field_size_limit(sys.maxsize)
    separator = separator or seen_separator(text, columns)
    lines = csv.reader(text.file, delimiter=separator, strict=True)
    header = next(lines, None)
    if header is None:
        return
    how = f" (encoding {text.encoding}, columns separated by {separator!r})"
    if separator != ",":
        logger.info("columns %s are separated by %r", header, separator)
    positions = {column: header.index(column) for column in _wanted(columns, header, how)}
    number = 0
    while (cells := _next_cells(lines)) is not None:
        if isinstance(cells, Fault):
            yield number, cells
        elif cells:
            yield number, _csv_values(cells, len(header), positions, text.encoding)
        number += bool(cells)


READERS: dict[str, Reader] = {"parquet": read_parquet, "arrow": read_arrow}
TEXT_READERS: dict[str, TextReader] = {"jsonl": read_json, "csv": read_csv}


def _rows(location: Location, file: IO[bytes], columns: Columns) -> Iterator[Row]:
    if location.layout in READERS:
        yield from READERS[location.layout](file, columns)
        return
    with open_text(file, location.name, location.dialect) as text:
        yield from TEXT_READERS[location.layout](text, columns, location.dialect.separator)


def _wanted(columns: Columns, found: list[str], how: str = "") -> list[str]:
    missing = [column for column in columns or [] if column not in found]
    if missing:
        raise ColumnsMissingError(missing, found, how)
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
    except (ValueError, OverflowError):
        return [_cell(scalar) for scalar in column]


def _cell(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        is_text = isinstance(scalar, pa.StringScalar | pa.LargeStringScalar)
        return scalar.as_buffer().to_pybytes() if is_text else UNDECODABLE_LIST
    except (ValueError, OverflowError):
        return Unreadable(str(scalar.type))


def _json_rows(text: Text) -> Iterator[Row]:
    if is_array(text.sample):
        for number, item in enumerate(array_items(text.file)):
            yield number, _json_object(item, json.dumps(item, ensure_ascii=False))
        return
    for number, line in enumerate(text.file):
        if line.strip():
            yield number, _json_values(line, text.encoding)


def _json_values(line: str, encoding: str) -> Values | Fault:
    if is_undecoded(line):
        return Fault("invalid_utf8", _undecoded(encoding), line)
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Fault("broken_json", str(error), line)
    return _json_object(values, line)


def _json_object(values: object, content: str) -> Values | Fault:
    if not isinstance(values, dict):
        detail = f"expected an object, got {type(values).__name__}"
        return Fault("broken_json", detail, content)
    return values


def _undecoded(encoding: str) -> str:
    return f"bytes that are not {encoding}: set `encoding` of the source if it is another"


def _next_cells(lines: Iterator[list[str]]) -> list[str] | Fault | None:
    """Cells of the next row, none for a blank line; None at the end."""
    try:
        return next(lines, None)
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise csv.Error("a quote is opened and never closed") from None
        return Fault("broken_csv", str(error), "")


def _csv_values(
    cells: list[str], width: int, positions: dict[str, int], encoding: str
) -> Values | Fault:
    content = ",".join(cells)
    if len(cells) != width:
        return Fault("broken_csv", f"{len(cells)} cells, the header has {width}", content)
    if is_undecoded(content):
        return Fault("invalid_utf8", _undecoded(encoding), content)
    return {column: cells[position] for column, position in positions.items()}
