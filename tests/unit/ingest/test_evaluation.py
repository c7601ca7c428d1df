"""Which strings of the benchmark count as evaluation texts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contract.stage import StageError
from tasks.ingest.evaluation import Benchmark, read_benchmark


def benchmark(root: Path, **columns: list[object]) -> Benchmark:
    return splits(root, {"test": columns})


def splits(root: Path, tables: dict[str, dict[str, list[object]]]) -> Benchmark:
    folder = root / "Task" / "default"
    folder.mkdir(parents=True)
    for split, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return read_benchmark(str(root), None)


def test_strings_and_lists_of_strings_are_texts(tmp_path: Path) -> None:
    found = benchmark(tmp_path, text=["а", " б  в "], positive=[["г", "д"], ["е"]], n=[1, 2])
    assert found.evaluation["text"].to_pylist() == ["а", "б в", "г", "д", "е"]
    assert set(found.evaluation["task"].to_pylist()) == {"Task"}


@pytest.mark.parametrize(
    "column", ["id", "_id", "query-id", "corpus_id", "label", "labels", "label_text", "lang"]
)
def test_identifiers_and_labels_are_no_texts(tmp_path: Path, column: str) -> None:
    found = benchmark(tmp_path, text=["а"], **{column: ["не текст"]})
    assert found.evaluation["text"].to_pylist() == ["а"]


def test_a_column_that_repeats_its_values_holds_classes(tmp_path: Path) -> None:
    found = benchmark(tmp_path, text=[f"т{row}" for row in range(40)], topic=["спорт", "дом"] * 20)
    assert found.evaluation["text"].to_pylist() == [f"т{row}" for row in range(40)]


def test_a_text_of_a_task_stands_once(tmp_path: Path) -> None:
    assert len(benchmark(tmp_path, text=["а", "б", "а"]).evaluation) == 2


def test_the_train_split_is_kept_apart(tmp_path: Path) -> None:
    found = splits(tmp_path, {"train": {"text": ["учебный"]}, "test": {"text": ["проверочный"]}})
    assert found.evaluation["text"].to_pylist() == ["проверочный"]
    assert found.train["text"].to_pylist() == ["учебный"]


def test_a_task_with_only_a_train_split_is_scored_on_it(tmp_path: Path) -> None:
    found = splits(tmp_path, {"train": {"text": ["учебный"]}})
    assert found.evaluation["text"].to_pylist() == ["учебный"]
    assert len(found.train) == 0


def test_a_task_without_texts_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="task Task has no column of texts"):
        benchmark(tmp_path, label=["а"])


def test_a_broken_line_of_the_benchmark_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "Task").mkdir()
    (tmp_path / "Task" / "test.jsonl").write_text('{"text": "а"}\n{"text"\n', encoding="utf-8")
    with pytest.raises(StageError, match=r"row 1 of Task/test\.jsonl"):
        read_benchmark(str(tmp_path), None)
