"""Orders, runs and groups of many rows, beside numpy's and Arrow's plain ways."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model.training.data import sorting
from model.training.data.groups import group_rows, string_hashes
from model.training.data.memory_mapped import RowReader, keep_array, table_digest
from model.training.data.sorting import run_starts, stable_order, take


@pytest.fixture(params=[1, 7, 1 << 20], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of one row, of some, of all."""
    monkeypatch.setattr(sorting, "ROWS_AT_ONCE", request.param)


@pytest.mark.parametrize("rows", [1, 2, 200])
@pytest.mark.parametrize("distinct", [1, 5, 10**6])
def test_order_is_numpys_stable_argsort(rows: int, distinct: int) -> None:
    """Few coarse values, so that most ties are told apart by the fine one."""
    value = np.random.default_rng(rows).integers(0, distinct, rows) / 7
    coarse = np.minimum(value, 2**32 - 1).astype(np.uint32)
    expected = np.argsort(value, kind="stable").tolist()
    assert stable_order(coarse, value).tolist() == expected
    top = np.full(rows, 2**32 - 1, dtype=np.uint32)
    assert stable_order(top, value).tolist() == expected


def test_runs_begin_where_the_sorted_value_changes() -> None:
    value = np.array([3, 1, 3, 1, 1, 2])
    order = stable_order(value.astype(np.uint32))
    assert order.tolist() == [1, 3, 4, 5, 0, 2]
    assert run_starts(value, order).tolist() == [0, 3, 4, 6]
    assert take(value, order).tolist() == sorted(value.tolist())


def test_more_rows_than_a_number_can_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "MOST_ROWS", 5)
    with pytest.raises(ValueError, match="5 rows in one source, at most 4: split the source"):
        stable_order(np.zeros(5, dtype=np.uint32))


# ---- hashes and groups


def test_hash_depends_on_the_string_alone() -> None:
    """Not on its chunk, its neighbours, or the offset of a slice."""
    texts = ["", "а", "Самовар", "самовар", "x" * 8, "x" * 9, "x" * 64, "a\0", "a", "\0a", "б" * 99]
    whole = string_hashes(pa.array(texts))
    assert len(set(whole.tolist())) == len(texts)
    assert string_hashes(pa.array(texts).slice(3, 5)).tolist() == whole[3:8].tolist()
    for text, number in zip(texts, whole, strict=True):
        assert string_hashes(pa.array([text], pa.large_string())).tolist() == [number]
    assert string_hashes(pa.array([], pa.string())).tolist() == []


def test_hashes_of_similar_strings_spread_over_all_bits() -> None:
    hashes = string_hashes(pa.array([f"вопрос {number}" for number in range(20_000)]))
    assert len(np.unique(hashes)) == 20_000
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02


def plain_groups(positives: list[list[str]]) -> list[int]:
    """Rank of each first positive among all, by first appearance of the text."""
    flat = [text for texts in positives for text in texts]
    places = [flat.index(texts[0]) for texts in positives]
    return [sorted(set(places)).index(place) for place in places]


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_numbered_by_first_appearance(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    rows = [[f"ответ {n}" for n in rng.integers(0, 40, rng.integers(1, 4))] for _ in range(120)]
    chunks = pa.chunked_array([rows[:50], [], rows[50:53], rows[53:]], pa.list_(pa.string()))
    file = tmp_path / "groups.npy"
    found = group_rows(chunks, file)
    assert found.tolist() == plain_groups(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["groups.npy"]
    assert np.load(file).tolist() == found.tolist()


def test_rows_of_equal_first_positives_are_one_group(tmp_path: Path) -> None:
    rows = pa.chunked_array([[["x"], ["y", "x"], ["x", "y"]]], pa.list_(pa.string()))
    assert group_rows(rows, tmp_path / "groups.npy").tolist() == [0, 1, 0]


def test_a_row_without_a_positive_is_named(tmp_path: Path) -> None:
    rows = pa.chunked_array([[["x"], None, []]], pa.list_(pa.string()))
    with pytest.raises(ValueError, match="2 rows have no positive, the first is row 1"):
        group_rows(rows, tmp_path / "groups.npy")


# ---- tables


def test_rows_of_a_mapped_table_of_many_chunks_come_as_asked(tmp_path: Path) -> None:
    table = pa.table(
        {"id": [str(row) for row in range(10)], "texts": [["а"] * row for row in range(10)]}
    )
    path = str(tmp_path / "table.arrow")
    with pa.ipc.new_file(path, table.schema) as writer:
        for start in (0, 4, 5):
            writer.write_table(table.slice(start, {0: 4, 4: 1, 5: 5}[start]))
    mapped = pa.ipc.open_file(pa.memory_map(path)).read_all()
    rows = np.array([9, 0, 4, 4, 3, 7], dtype=np.uint32)
    taken = RowReader(mapped).take(rows)
    assert taken.to_pylist() == table.take(pa.array(rows)).to_pylist()
    assert table_digest(mapped) == table_digest(table)
    assert table_digest(table.slice(1)) != table_digest(table)


def test_a_kept_array_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keep_array(np.arange(3), tmp_path / "new" / "a.npy").tolist() == [0, 1, 2]
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        keep_array(np.arange(4), tmp_path / "new" / "b.npy")
    assert not (tmp_path / "new" / "b.npy").exists()
