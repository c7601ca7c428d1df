"""Rows of each format, the faults of single rows, and files that cannot be read at all."""

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tasks.contract.stage import StageError
from tasks.ingest.dialects import Dialect
from tasks.ingest.locations import Location
from tasks.ingest.readers import BATCH_ROWS, UNDECODABLE_LIST, Fault, Row, Unreadable, read_rows

ROWS = [{"a": "один", "b": "1"}, {"a": "два\u2028два", "b": "2"}, {"a": 'три, "3"', "b": "3"}]


def rows_of(path: Path, layout: str, columns: list[str] | None) -> list[Row]:
    location = Location(fsspec.filesystem("file"), str(path), path.name, layout, None)
    return list(read_rows(location, columns))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_parquet_rows_are_numbered_from_zero(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet", row_group_size=2)
    assert rows_of(tmp_path / "x.parquet", "parquet", ["a", "b"]) == list(enumerate(ROWS))


def test_parquet_rows_are_numbered_across_batches(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": list(range(2 * BATCH_ROWS + 1))}), tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "x.parquet", "parquet", ["a"])
    assert [(number, values["a"]) for number, values in rows if isinstance(values, dict)] == [
        (number, number) for number in range(2 * BATCH_ROWS + 1)
    ]


def test_a_dataset_saved_by_datasets_is_read(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    file = next((tmp_path / "saved").glob("*.arrow"))
    assert rows_of(file, "arrow", ["a", "b"]) == list(enumerate(ROWS))


def test_a_line_separator_inside_a_text_does_not_split_a_jsonl_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", jsonl(ROWS))
    assert rows_of(path, "jsonl", ["a", "b"]) == list(enumerate(ROWS))


def test_csv_rows_are_read_with_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", '\ufeffa,b\n"один\nдва",1\n"три ""3""",2\n'.encode())
    rows = [values for _, values in rows_of(path, "csv", ["a", "b"])]
    assert rows == [{"a": "один\nдва", "b": "1"}, {"a": 'три "3"', "b": "2"}]


def test_a_csv_cell_may_be_a_megabyte_long(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", b"a\n" + b"x" * 1_000_000 + b"\n")
    assert rows_of(path, "csv", ["a"]) == [(0, {"a": "x" * 1_000_000})]


def test_compressed_jsonl_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(jsonl(ROWS)))
    assert rows_of(path, "jsonl", ["a", "b"]) == list(enumerate(ROWS))


def test_without_columns_every_column_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", jsonl(ROWS))
    assert rows_of(path, "jsonl", None) == list(enumerate(ROWS))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "x"', "broken_json"),
        (b"[1, 2]", "broken_json"),
        (b"[" * 100_000, "broken_json"),
        (b'{"a": "\xff"}', "invalid_utf8"),
    ],
)
def test_a_broken_jsonl_line_is_a_fault_of_its_row(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = write(tmp_path / "x.jsonl", b'{"a": "1"}\n\n' + line + b'\n{"a": "2"}')
    first, fault, last = rows_of(path, "jsonl", ["a"])
    assert (first, last) == ((0, {"a": "1"}), (3, {"a": "2"}))
    assert fault[0] == 2
    assert isinstance(fault[1], Fault)
    assert fault[1].reason == reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"1,2,3", "broken_csv"), (b'"1"x,2', "broken_csv"), (b"\xff,2", "invalid_utf8")],
)
def test_a_broken_csv_line_is_a_fault_of_its_row(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "x.csv", b"a,b\n1,2\n" + line + b"\n3,4\n")
    first, fault, last = rows_of(path, "csv", ["a", "b"])
    assert (first, last) == ((0, {"a": "1", "b": "2"}), (2, {"a": "3", "b": "4"}))
    assert isinstance(fault[1], Fault)
    assert fault[1].reason == reason


def test_undecodable_parquet_text_stays_bytes(tmp_path: Path) -> None:
    column = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "x.parquet", "parquet", ["a"])
    assert rows == [(0, {"a": "ok"}), (1, {"a": b"\xff"})]


def test_an_undecodable_list_is_no_text(tmp_path: Path) -> None:
    column = pa.array([[b"ok", b"\xff"]], pa.list_(pa.binary())).view(pa.list_(pa.string()))
    pq.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    assert rows_of(tmp_path / "x.parquet", "parquet", ["a"]) == [(0, {"a": UNDECODABLE_LIST})]


def test_a_date_that_python_cannot_hold_is_told_from_texts(tmp_path: Path) -> None:
    dates = pa.array([0, -(2**60)], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"a": ["x", "y"], "at": dates}), tmp_path / "x.parquet")
    _, (number, values) = rows_of(tmp_path / "x.parquet", "parquet", ["a", "at"])
    assert (number, values) == (1, {"a": "y", "at": Unreadable("timestamp[us]")})
    assert str(Unreadable("timestamp[us]")) == "a timestamp[us] that Python cannot hold"


def truncated_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": ["x" * 1000]}), sink)
    return sink.getvalue().to_pybytes()[:-20]


def parquet_with_a_broken_page() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [str(row) for row in range(5000)]}), sink)
    content = bytearray(sink.getvalue().to_pybytes())
    content[4:400] = b"\xff" * 396
    return bytes(content)


@pytest.mark.parametrize(
    ("layout", "content"),
    [
        ("parquet", b""),
        ("parquet", b"a,b\n1,2\n"),
        ("parquet", truncated_parquet()),
        ("parquet", parquet_with_a_broken_page()),
        ("arrow", b"not arrow at all"),
        ("jsonl", b"a,b\n1,2\n"),
        ("jsonl", truncated_parquet()),
        ("csv", b'a,b\n1,2\n"3,4\n5,6\n'),
    ],
)
def test_a_file_of_another_format_stops_the_run(
    tmp_path: Path, layout: str, content: bytes
) -> None:
    path = write(tmp_path / "x", content)
    with pytest.raises(StageError, match=f"/x cannot be read as {layout}"):
        rows_of(path, layout, ["a"])


def test_a_truncated_archive_stops_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(jsonl(ROWS * 1000))[:-50])
    with pytest.raises(StageError, match="cannot be read as jsonl"):
        rows_of(path, "jsonl", ["a"])


@pytest.mark.parametrize(
    ("layout", "content"), [("jsonl", b""), ("jsonl", b"\n\n"), ("csv", b""), ("csv", b"a,b\n")]
)
def test_an_empty_file_stops_the_run(tmp_path: Path, layout: str, content: bytes) -> None:
    path = write(tmp_path / "x", content)
    with pytest.raises(StageError, match=r"/x (holds no rows|cannot be read)"):
        rows_of(path, layout, ["a"])


def test_a_parquet_file_without_rows_stops_the_run(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(StageError, match="holds no rows"):
        rows_of(tmp_path / "x.parquet", "parquet", ["a"])


@pytest.mark.parametrize("layout", ["parquet", "jsonl", "csv"])
def test_a_missing_column_names_those_that_were_found(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "x"
    if layout == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(jsonl(ROWS) if layout == "jsonl" else b"a,b\n1,2\n")
    with pytest.raises(StageError, match=r"no columns \['c'\]; found \['a', 'b'\]"):
        rows_of(path, layout, ["a", "c"])


RUSSIAN = [{"текст": f"самовар стоит на столе {n}", "метка": "хорошо"} for n in range(9)]


def russian_csv(separator: str = ",", end: str = "\r\n") -> str:
    lines = [separator.join(RUSSIAN[0]), *(separator.join(row.values()) for row in RUSSIAN)]
    return end.join(lines) + end


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1251", "koi8-r", "cp866"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encoding_and_separator_of_a_csv_file_are_seen(
    tmp_path: Path, encoding: str, separator: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.csv", russian_csv(separator).encode(encoding))
    with caplog.at_level("INFO"):
        rows = rows_of(path, "csv", ["текст", "метка"])
    assert rows == list(enumerate(RUSSIAN))
    assert rows_of(path, "csv", None) == rows
    assert (f"the encoding {encoding}" in caplog.text) == (not encoding.startswith("utf-8"))
    assert (f"separated by {separator!r}" in caplog.text) == (separator != ",")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1251"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_and_its_encoding_are_seen(
    tmp_path: Path, encoding: str, indent: int | None
) -> None:
    content = json.dumps(RUSSIAN, ensure_ascii=False, indent=indent)
    path = write(tmp_path / "x.json", content.encode(encoding))
    assert rows_of(path, "jsonl", ["текст", "метка"]) == list(enumerate(RUSSIAN))


def test_a_json_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.ingest.json_array.CHUNK_CHARACTERS", 7)
    path = write(
        tmp_path / "x.json", b'\n[ {"a": "1"} ,\n{"a": [{}, "]"]}, 1234567890, {"a":"4"}]\n'
    )
    rows = rows_of(path, "jsonl", ["a"])
    assert [rows[0], rows[1], rows[3]] == [(0, {"a": "1"}), (1, {"a": [{}, "]"]}), (3, {"a": "4"})]
    assert rows[2] == (2, Fault("broken_json", "expected an object, got int", "1234567890"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a": 2', "item 1 of its array"),
        (b'[{"a": 1} {"a": 2}]', "no comma after item 0"),
        (b'[{"a": 1}]\n{"a": 2}\n', "text follows its array of 1 items"),
        (b'[{"a": ' + b"[" * 100_000, "item 0 of its array"),
    ],
)
def test_a_broken_json_array_stops_the_run(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(StageError, match=f"cannot be read as jsonl .*{message}"):
        rows_of(write(tmp_path / "x", content), "jsonl", ["a"])


def test_what_is_declared_is_not_looked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,b;c\nё,1;2\n".encode("cp1251"))
    location = Location(
        fsspec.filesystem("file"), str(path), "x.csv", "csv", None, Dialect("cp1251", ";")
    )
    assert list(read_rows(location, None)) == [(0, {"a,b": "ё,1", "c": "2"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"PK\x03\x04" + b"\0" * 60,
            r"is a spreadsheet \(xlsx\).*save its table as CSV",
        ),
        ("текст,метка\nа,б\n".encode("cp1251"), "is not in the encoding utf-8: set `encoding`"),
        ("text,label\nа,б\n".encode("utf-16-le"), "is no text, or UTF-16 without a mark: set"),
        (b"caf\xe9,\xe0\n" * 40, ".* shows no other clearly: set `encoding`"),
        (b"a,b\n" + bytes(range(0x80, 0xC0)), ".* shows no other clearly: set `encoding`"),
        ("текст\nа,б".encode("utf-16")[:-1], "is not in the encoding taken for it"),
    ],
)
def test_the_encoding_is_blamed_and_not_the_columns(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(StageError, match=f"/x {message}"):
        rows_of(write(tmp_path / "x", content), "csv", ["текст"])


def test_missing_columns_tell_how_the_file_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x", russian_csv(";").encode("cp1251"))
    told = r"no columns \['text'\]; found \['текст', 'метка'\] \(encoding cp1251, .* ';'\)"
    with pytest.raises(StageError, match=told):
        rows_of(path, "csv", ["text"])


def test_a_few_bad_bytes_do_not_make_a_file_of_another_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "x", russian_csv().encode() + b"\xff" * 30 + b",1\n")
    rows = rows_of(path, "csv", None)
    assert rows[:-1] == list(enumerate(RUSSIAN))
    assert isinstance(rows[-1][1], Fault)
    assert rows[-1][1].detail.startswith("bytes that are not utf-8: set `encoding`")
