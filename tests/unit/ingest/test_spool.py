"""The table that grows on disk."""

from pathlib import Path

import pyarrow as pa
import pytest

from tasks.ingest.spool import FLUSH_ROWS, Spool

SCHEMA = pa.schema([("n", pa.int64()), ("texts", pa.list_(pa.string()))])


def test_rows_and_tables_come_back_in_order(tmp_path: Path) -> None:
    rows = [{"n": n, "texts": [str(n)] * (n % 3)} for n in range(2 * FLUSH_ROWS + 1)]
    extra = pa.Table.from_pylist([{"n": -1, "texts": []}], schema=SCHEMA)
    with Spool(tmp_path / "s", SCHEMA) as spool:
        spool.append(rows[0])
        spool.append_table(extra)
        for row in rows[1:]:
            spool.append(row)
        table = spool.finish()
    assert table.schema == SCHEMA
    assert table.to_pylist() == [rows[0], {"n": -1, "texts": []}, *rows[1:]]


def test_no_rows_give_an_empty_table(tmp_path: Path) -> None:
    with Spool(tmp_path / "s", SCHEMA) as spool:
        assert spool.finish().equals(SCHEMA.empty_table())


def test_a_device_that_is_full_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    table = pa.table({"n": [1], "texts": [["x" * 1_000_000]]}, schema=SCHEMA)
    with pytest.raises(OSError, match="cannot write /dev/full"), Spool(full, SCHEMA) as spool:
        spool.append_table(table)
