"""The table folders and the forms of a text."""

import json
import unicodedata
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import xxhash

from tasks.contract.records import (
    DOCUMENT_SCHEMA,
    EXAMPLE_SCHEMA,
    match_key,
    normalise_text,
    read_table,
    text_id,
    write_table,
)
from tasks.contract.stage import StageError


def documents(rows: int) -> pa.Table:
    items = [
        {"id": str(row), "source": "s", "lang": "ru", "title": "", "text": f"текст {row}"}
        for row in range(rows)
    ]
    return pa.Table.from_pylist(items, schema=DOCUMENT_SCHEMA)


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    example = {
        "id": "1",
        "task": "sts",
        "source": "s",
        "lang": "ru",
        "query": "а",
        "positives": ["б", "в"],
        "negatives": [],
        "negative_scores": None,
        "label": None,
        "score": 0.5,
    }
    table = pa.Table.from_pylist([example], schema=EXAMPLE_SCHEMA)
    write_table(table, tmp_path / "t")
    back = read_table(tmp_path / "t")
    assert back.equals(table)
    assert back.schema.equals(EXAMPLE_SCHEMA)


def test_shards_hold_the_rows_in_order(tmp_path: Path) -> None:
    write_table(documents(25), tmp_path / "t", shard_rows=10)
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [10, 10, 5]
    assert manifest["rows"] == 25
    assert read_table(tmp_path / "t")["id"].to_pylist() == [str(row) for row in range(25)]


def test_another_reader_of_parquet_sees_the_same_rows(tmp_path: Path) -> None:
    write_table(documents(25), tmp_path / "t", shard_rows=10)
    frame = pl.read_parquet(tmp_path / "t" / "*.parquet")
    assert frame.to_dicts() == documents(25).to_pylist()


def test_an_empty_table_keeps_its_schema(tmp_path: Path) -> None:
    write_table(EXAMPLE_SCHEMA.empty_table(), tmp_path / "t")
    assert read_table(tmp_path / "t").schema.equals(EXAMPLE_SCHEMA)


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(documents(25), tmp_path / name, shard_rows=10)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    write_table(documents(3), tmp_path / "t")
    assert read_table(tmp_path / "t", ["text", "id"]).column_names == ["text", "id"]


def test_an_unknown_column_is_named(tmp_path: Path) -> None:
    write_table(documents(3), tmp_path / "t")
    with pytest.raises(StageError, match=r"no columns \['body'\]; found .*'title'"):
        read_table(tmp_path / "t", ["body"])


def test_a_truncated_shard_is_found(tmp_path: Path) -> None:
    write_table(documents(3), tmp_path / "t")
    shard = tmp_path / "t" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(StageError, match=r"part-00000\.parquet is truncated or altered"):
        read_table(tmp_path / "t")


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    write_table(documents(3), tmp_path / "t")
    (tmp_path / "t" / "part-00000.parquet").unlink()
    with pytest.raises(StageError, match=r"part-00000\.parquet is missing"):
        read_table(tmp_path / "t")


@pytest.mark.parametrize("content", ["{}", "[]", '{"rows": 1, "shards": [1]}', "{"])
def test_a_broken_manifest_is_found(tmp_path: Path, content: str) -> None:
    write_table(documents(3), tmp_path / "t")
    (tmp_path / "t" / "manifest.json").write_text(content)
    with pytest.raises(StageError, match=r"manifest\.json"):
        read_table(tmp_path / "t")


def test_a_missing_folder_says_which_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="does not exist: run the stage"):
        read_table(tmp_path / "t")


def test_a_table_is_not_overwritten(tmp_path: Path) -> None:
    write_table(documents(3), tmp_path / "t")
    with pytest.raises(StageError, match="holds a table already"):
        write_table(documents(3), tmp_path / "t")


def test_the_id_depends_on_where_parts_end() -> None:
    assert text_id("а", "бв") != text_id("аб", "в") != text_id("абв")


def test_the_id_is_xxh3_of_lengths_and_parts() -> None:
    encoded = "ёж".encode()
    expected = xxhash.xxh3_128_hexdigest(len(encoded).to_bytes(8, "little") + encoded)
    assert text_id("ёж") == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("  а \t б  ", "а б"),
        ("а\u00a0\u2003б", "а б"),
        ("а \r\n\n  б", "а\nб"),
        ("а\u2028б", "а\nб"),
        ("сло\u00adво\u200b\ufeff", "слово"),
        ("нуль\u200bширинный\u200b \u200bпробел", "нуль ширинный пробел"),
        ("а\x00\x07б", "аб"),
        ("и\u0306", "й"),
        ("а\ud800б", "аб"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("\u202eабв\u202c", "абв"),
        (" \n\t ", ""),
    ],
)
def test_the_stored_form_of_a_text(given: str, expected: str) -> None:
    assert normalise_text(given) == expected


def test_a_mark_freed_by_a_removed_character_is_composed() -> None:
    text = normalise_text("и\x00\u0306")
    assert text == unicodedata.normalize("NFC", text) == "й"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ёжик, в тумане!", "ежик в тумане"),
        ("СТРАßЕ", "страssе"),
        ("№ 5", "No5"),
        ("a_b", "ab"),
    ],
)
def test_texts_that_count_as_the_same(one: str, other: str) -> None:
    assert match_key(one) == match_key(other)


def test_a_text_of_signs_has_an_empty_key() -> None:
    assert match_key("😍 :-)") == ""
