"""The corpus of a training: memory-mapped, complete, and kept exactly as long as it is right."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tasks.contract.records import EXAMPLE_SCHEMA, read_table, write_table
from tasks.contract.stage import StageError
from tasks.training.corpus import KEPT, Tables, open_corpus, remove_corpora


def examples(source: str, task: str, rows: range, note: str = "") -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "id": f"{source}-{row}",
                "task": task,
                "source": source,
                "lang": "ru",
                "query": f"вопрос {row}{note}",
                "positives": [f"ответ {row}", "общий"][: 1 + row % 2],
                "negatives": ["мимо"] * (row % 3),
                "score": row / 10 if task == "sts" else None,
            }
            for row in rows
        ],
        schema=EXAMPLE_SCHEMA,
    )


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """Shards of seven rows that hold several sources each."""
    parts = {
        "examples": [
            examples("a", "retrieval", range(10)),
            examples("b.1", "sts", range(5)),
            examples("a", "nli", range(10, 14)),
            examples("c", "retrieval", range(3)),
        ],
        "synthetic": [examples("synthetic", "retrieval", range(8))],
        "mined": [
            examples("a", "retrieval", range(6, 9), " добыто"),
            examples("a", "retrieval", range(90, 95), " ничьё"),
            examples("c", "retrieval", range(2), " добыто"),
        ],
    }
    for name, found in parts.items():
        write_table(pa.concat_tables(found), tmp_path / name, shard_rows=7)
    return {name: tmp_path / name for name in parts}


def plain_corpus(tables: dict[str, Path], *, is_mined: bool) -> pa.Table:
    """All rows in memory, the way it is described."""
    table = pa.concat_tables([read_table(tables["examples"]), read_table(tables["synthetic"])])
    if not is_mined:
        return table
    mined = read_table(tables["mined"])
    mined = mined.filter(pc.field("id").isin(table["id"].combine_chunks()))
    is_replaced = pc.field("id").isin(mined["id"].combine_chunks())
    return pa.concat_tables([table.filter(~is_replaced), mined])


@pytest.mark.parametrize("is_mined", [False, True])
def test_each_source_and_task_has_the_rows_it_has_in_memory(
    tables: dict[str, Path], tmp_path: Path, is_mined: bool
) -> None:
    names = ["a", "b.1", "synthetic"]
    mined = tables["mined"] if is_mined else None
    found, present = open_corpus(
        tmp_path / "corpora", names, [tables["examples"], tables["synthetic"]], mined
    )
    expected = plain_corpus(tables, is_mined=is_mined)
    assert present == sorted(expected["source"].unique().to_pylist())
    assert {name: list(by_task) for name, by_task in found.items()} == {
        "a": ["nli", "retrieval"],
        "b.1": ["sts"],
        "synthetic": ["retrieval"],
    }
    for name, by_task in found.items():
        for task, table in by_task.items():
            is_own = (pc.field("source") == name) & (pc.field("task") == task)
            assert table.to_pylist() == expected.filter(is_own).select(KEPT).to_pylist()


def test_mapped_rows_take_no_memory_of_arrow(tables: dict[str, Path], tmp_path: Path) -> None:
    wanted = (tmp_path / "corpora", ["a"], [tables["examples"]], None)
    open_corpus(*wanted)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())  # counts none of what others free
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        found, _ = open_corpus(*wanted)
        assert found["a"]["retrieval"].num_rows == 10
        assert pool.bytes_allocated() == 0
    finally:
        pa.set_memory_pool(before)


def folders(corpora: Path) -> list[Path]:
    return [path for path in corpora.iterdir() if path.is_dir()]


def test_a_corpus_is_written_once_for_all_and_gives_way_to_another(
    tables: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora, seen = tmp_path / "corpora", []

    def opened(names: list[str], mined: Path | None = None) -> Tables:
        found, _ = open_corpus(corpora, names, [tables["examples"]], mined)
        [folder] = folders(corpora)
        seen.append(folder)
        return found

    first = opened(["a"])["a"]["retrieval"]
    rows = first.to_pylist()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.training.corpus.read_shards", None)
        assert list(opened(["c"])) == ["c"], "one training wants these sources and another those"
    assert seen[0] == seen[1]
    opened(["a"], tables["mined"])
    for path in tables["examples"].iterdir():
        path.unlink()
    write_table(examples("a", "retrieval", range(3)), tables["examples"])
    opened(["a"])
    assert len({*seen}) == 3
    assert first.to_pylist() == rows, "what a training has mapped stays with it"
    remove_corpora(corpora)
    assert folders(corpora) == []


def test_two_trainings_that_begin_at_once_share_one(
    tables: dict[str, Path], tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as pool:
        begun = [
            pool.submit(open_corpus, tmp_path / "corpora", [name], [tables["examples"]], None)
            for name in ("a", "c", "a", "c")
        ]
    assert [list(each.result()[0]) for each in begun] == [["a"], ["c"], ["a"], ["c"]]
    assert len(folders(tmp_path / "corpora")) == 1


def test_a_broken_shard_leaves_no_corpus(tables: dict[str, Path], tmp_path: Path) -> None:
    last = max(tables["examples"].glob("*.parquet"))
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(StageError, match=r"part-00003.parquet is truncated or altered"):
        open_corpus(tmp_path / "corpora", ["a"], [tables["examples"]], None)
    assert folders(tmp_path / "corpora") == []
